"""`Faults` counts the lines of a stream that cannot be read, and reports them at the end."""

from __future__ import annotations

import argparse
import os
import stat

from treadle.client.cli.display.notices import print_notice
from treadle.client.errors import InputError


def on_error(args: argparse.Namespace) -> str:
    """Returns how to treat a line that cannot be read.

    Returns:
        The given choice; else `stop` for a file, and `skip` for standard input or a named pipe.
    """
    if args.on_error:
        return str(args.on_error)
    try:
        is_file = args.file not in (None, "-") and stat.S_ISREG(os.stat(args.file).st_mode)
    except OSError:
        is_file = True
    return "stop" if is_file else "skip"


class Faults:
    """The lines of one stream that could not be read.

    Args:
        stops: Whether the first one is the last line.
        unit: What a row is: `line`, `event` or `chunk`.
    """

    def __init__(self, stops: bool, unit: str) -> None:
        self.stops = stops
        self.count = 0
        """The number of such lines."""
        self._unit = "chunk" if unit == "chunk" else "line"
        self._first = ""

    @property
    def is_over(self) -> bool:
        """Whether a line has stopped the stream."""
        return self.stops and self.count > 0

    def add(self, number: int, fault: str) -> None:
        """Counts a line.

        Args:
            number: The line's; 0 is the end of the input.
            fault: The reason, as a clause.
        """
        self.count += 1
        if not self._first:
            where = f"{self._unit} {number:,}" if number else "the end of the input"
            self._first = f"{where}: {fault}"

    def print_count(self) -> None:
        """Prints how many lines were skipped, if any."""
        if self.count and not self.stops:
            subject = f"{self._unit} could not be read and was"
            if self.count > 1:
                subject = f"{self._unit}s could not be read and were"
            print_notice(f"{self.count:,} {subject} skipped; the first: {self._first}")

    def check(self) -> None:
        """Checks that nothing stopped the stream.

        Raises:
            InputError: A line stopped it.
        """
        if self.is_over:
            raise InputError(f"{self._first} (--on-error skip marks such lines and continues)")
