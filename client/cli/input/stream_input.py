"""`units` cuts the input of `treadle score-stream` into lines, events or chunks."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from treadle.client.cli.input.json_items import json_item
from treadle.client.errors import InputError
from treadle.client.files.decoding import (
    READ_BYTES,
    Line,
    LineCutter,
    TextSource,
    replace_surrogates,
)

if TYPE_CHECKING:
    from treadle.client.streaming import StreamPiece

PIECE_CHARACTERS = 64 * 1024
"""Code points in one message; a longer line is several."""

EVENT = re.compile(r"\s*\S+\s*")
"""An event, with the white space around it."""


class StreamInput:
    """The bytes of a file or pipe as they arrive; a signal or another thread may `stop` it.

    Args:
        file: An open file with a descriptor.
        source: Its name and encoding.
        output: The descriptor of the output; the input ends when the output has no reader any
            more.
    """

    def __init__(self, file: Any, source: TextSource, output: int | None = None) -> None:
        # A duplicate, open to the end of the process: a thread may wait in it.
        with file:
            self._descriptor = os.dup(file.fileno())
        self._source = source
        self._output = output
        self._waking, self._wake = os.pipe()
        self.stopped = False
        """Whether `stop` was called, or an error ended the input."""
        self.reader_left = False
        """Whether it ended because the output has no reader any more."""
        self.error: OSError | None = None
        """The error that ended the input, if any."""

    def stop(self) -> None:
        """Ends the input at once, also while a thread waits for it."""
        self.stopped = True
        os.write(self._wake, b".")

    def chunks(self) -> Iterator[bytes]:
        """Yields bytes as soon as there are any."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.register(self._waking, select.POLLIN)
        if self._output is not None:
            waiting.register(self._output, 0)  # reports errors only
        while True:
            ready = {descriptor for descriptor, _ in waiting.poll()}
            if self._output in ready:
                self.stopped = True
                self.reader_left = True
            if self.stopped or self._waking in ready:
                return
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except OSError as error:
                self.stopped = True
                self.error = error
                return
            if not data:
                return
            yield data

    def lines(self) -> Iterator[Line]:
        """Yields lines, each as soon as it is whole.

        Raises:
            InputError: The input has the byte order mark of another encoding.
        """
        decoder = self._source.decoder(mark=True)
        cutter = LineCutter(self._source)
        for data in self.chunks():
            yield from cutter.push(decoder.decode(data))
        if not self.stopped:  # half a line is not a line
            yield from cutter.push(decoder.decode(b"", final=True))
            yield from cutter.end()

    def texts(self) -> Iterator[Line]:
        """Yields text as it arrives, never half a character.

        Raises:
            InputError: The input has the byte order mark of another encoding.
        """
        decoder = self._source.decoder(mark=True)
        for data in self.chunks():
            if text := decoder.decode(data):
                yield self._chunk(text)
        if rest := decoder.decode(b"", final=True):
            yield self._chunk(rest)

    def _chunk(self, text: str) -> Line:
        fault = self._source.fault(text) or ""
        return Line(replace_surrogates(text) if fault else text, "", fault)


class Unit(NamedTuple):
    """The part of the input that one row is about."""

    number: int
    """The line's number, or the chunk's, from 1."""
    text: str
    """The text to show."""
    pieces: list[StreamPiece]
    """The pieces to send: one, unless the unit is long."""
    fault: str = ""
    """Why it cannot be sent, in a clause that begins with `it`. An empty piece is sent instead; its
    answer shows when the row is due."""


def units(source: StreamInput, per: str, items: bool, column: str | None = None) -> Iterator[Unit]:
    """Cuts the input into units.

    Args:
        source: The input.
        per: The kind of unit: `line`, `event` or `chunk`.
        items: Whether the model's corpus has one item per line.
        column: The field of a line of JSON that holds the text; None where a line is the text.

    Yields:
        Units. Empty lines and texts are left out where a line is an item, and so are blank lines
        of JSON.

    Raises:
        InputError: The input has the byte order mark of another encoding.
    """
    if per == "chunk":
        for number, chunk in enumerate(source.texts(), 1):
            yield _unit(number, chunk.text, chunk.text, end=False, fault=chunk.fault)
        return
    for number, line in enumerate(source.lines(), 1):
        text, end, fault = line
        if column is not None and not fault:
            try:
                item = json_item(text, column)
            except InputError as error:
                fault = str(error)
            else:
                if item is None:
                    continue
                text = item
                end = "\n" if end else ""
        if items and not text and not fault:
            continue
        sent = text if items else text + end
        if per == "line" or fault:
            yield _unit(number, text, sent, end=items, fault=fault)
            continue
        events = EVENT.findall(sent) or [sent]
        for place, event in enumerate(events, 1):
            yield _unit(number, event.strip(), event, end=items and place == len(events))


def _unit(number: int, text: str, sent: str, *, end: bool, fault: str = "") -> Unit:
    """Returns a unit, in as many pieces as it takes."""
    from treadle.client.streaming import StreamPiece

    if fault:
        return Unit(number, text, [StreamPiece("")], fault)
    starts = range(0, max(1, len(sent)), PIECE_CHARACTERS)
    pieces = [
        StreamPiece(sent[at : at + PIECE_CHARACTERS], end and at == starts[-1], at != starts[-1])
        for at in starts
    ]
    return Unit(number, text, pieces)
