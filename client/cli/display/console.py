"""The terminal, or whatever stands in its place."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from treadle.client.messages.argument_names import PYTHON, ArgumentNames

FALLBACK_WIDTH = 80

GAP = "  "
"""Stands between the columns of a table."""

LEAST_CELL = 12
"""No cell is cut to less, however narrow the terminal is."""

CLEAR_LINE = "\r\x1b[K"
"""Takes away the line that the cursor is in."""


class Console:
    """Where a command writes.

    Args:
        out: Standard output.
        environment: The environment variables; TERM, NO_COLOR and COLUMNS count.
    """

    def __init__(self, out: TextIO, environment: dict[str, str]) -> None:
        self.out = out
        self.is_terminal = out.isatty()
        """Whether a person watches."""
        self.moves = self.is_terminal and environment.get("TERM", "dumb") != "dumb"
        """Whether a line can be drawn over."""
        self.color = self.moves and not environment.get("NO_COLOR")
        """Whether color is wanted."""
        self.transient = False
        """Whether the line that the cursor is in is to go away."""
        self.interruption: Callable[[], str] = lambda: "interrupted"
        """Says what a Ctrl-C now means."""
        self.argument_names: Callable[[], ArgumentNames] = lambda: PYTHON
        """Returns what the command calls the arguments that an error may name."""
        self.unicode = (out.encoding or "").lower().replace("-", "") == "utf8"
        """Whether more than ASCII can be shown."""

    @classmethod
    def standard(cls) -> Console:
        """Makes the console of this process.

        Elsewhere than on a terminal, text leaves as UTF-8, whatever the locale says.
        """
        if sys.stdout is None:  # closed by whoever started this
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
        if hasattr(sys.stdout, "reconfigure"):
            encoding = None if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="replace")
        return cls(sys.stdout, dict(os.environ))

    @property
    def descriptor(self) -> int | None:
        """The descriptor that is written to; None where there is none."""
        try:
            return self.out.fileno()
        except (OSError, ValueError):
            return None

    @property
    def width(self) -> int:
        """Columns of the terminal, as they are now."""
        return shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns

    def line(self, text: str = "") -> None:
        """Writes a line."""
        self.out.write(text + "\n")
        self.out.flush()

    def text(self, text: str) -> None:
        """Writes text as it is; on a terminal without what could command the terminal."""
        self.out.write(printable(text) if self.is_terminal else text)
        self.out.flush()

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, cut: int
    ) -> None:
        """Writes a table; on a terminal that is too narrow for it, one column is cut.

        Args:
            head: The columns' names.
            rows: The cells.
            left: This many columns, and the last, are aligned left; the others right.
            cut: The column whose cells lose their middle where the terminal is too narrow.
        """
        if self.is_terminal:
            rows = self._fitted(head, rows, cut)
        for line in table(head, rows, left=left):
            self.line(line)

    def _fitted(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], cut: int
    ) -> list[list[str]]:
        """Cuts the cells of one column so that the rows fit, as far as that can do it."""
        widths = _widths(head, rows)
        over = sum(widths) + len(GAP) * (len(widths) - 1) - (self.width - 1)
        room = max(len(head[cut]), LEAST_CELL, widths[cut] - max(0, over))
        dots = "…" if self.unicode else "..."
        return [
            [middle_cut(cell, room, dots) if i == cut else cell for i, cell in enumerate(row)]
            for row in rows
        ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lays out a table; see `Console.table`."""
    widths = _widths(head, rows)
    last = len(head) - 1
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i < left or i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(GAP.join(cells).rstrip())
    return lines


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Measures the columns of a table."""
    return [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]


def middle_cut(text: str, width: int, dots: str) -> str:
    """Cuts a text to a width; the dots stand in its middle, for what was there."""
    if len(text) <= width:
        return text
    kept = max(0, width - len(dots))
    last = kept // 2
    return text[: kept - last] + dots + (text[-last:] if last else "")


def printable(text: str) -> str:
    """Replaces control characters, line breaks and tabs excepted."""
    return "".join("\ufffd" if _controls(character) else character for character in text)


def one_line(text: str, width: int | None = None) -> str:
    """Shows a text on one line.

    Args:
        text: Any text; line breaks and control characters are shown as escapes.
        width: Cut it to this many characters; None shows it all.

    Returns:
        The text, ending in "..." where it was cut.
    """
    shown = "".join(
        character.encode("unicode_escape").decode()
        if _controls(character) or character in "\n\t\r"
        else character
        for character in text
    )
    if width is not None and len(shown) > width:
        shown = shown[: max(0, width - 3)] + "..."[:width]
    return shown


def _controls(character: str) -> bool:
    """Tells whether a character may command a terminal (C0, DEL and C1, bare CR included)."""
    code = ord(character)
    return (code < 32 and character not in "\n\t") or 127 <= code < 160
