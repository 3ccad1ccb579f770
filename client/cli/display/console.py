"""`Console` is the terminal or other output that a command writes to."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TextIO

from treadle.client.argument_names import PYTHON, ArgumentNames

FALLBACK_WIDTH = 80
FALLBACK_HEIGHT = 24

GAP = "  "
"""The text between the columns of a table."""

MIN_CELL = 12
"""The least width that a cell is cut to, however narrow the terminal is."""

CLEAR_LINE = "\r\x1b[K"
"""Clears the line of the cursor."""

SHOW_CURSOR = "\x1b[?25h"
"""Shows the cursor, which live displays hide."""


def _interrupted() -> str:
    """Returns the message after a Ctrl-C by default."""
    return "interrupted"


def _do_nothing() -> None:
    """Does nothing before an exit by default."""


def _names_of_python() -> ArgumentNames:
    """Returns the names of arguments by default."""
    return PYTHON


class Console:
    """The output of a command.

    Args:
        out: Standard output.
        environment: The environment variables; TERM, NO_COLOR and COLUMNS count.
    """

    def __init__(self, out: TextIO, environment: dict[str, str]) -> None:
        self.out = out
        self._environment = environment
        self._is_plain = False
        self._live: list[Callable[[], None]] = []
        self.is_terminal = out.isatty()
        """Whether the output is a terminal."""
        self.can_overwrite = self.is_terminal and environment.get("TERM", "dumb") != "dumb"
        """Whether a line can be overwritten."""
        self.color = self.can_overwrite and not environment.get("NO_COLOR")
        """Whether to use color."""
        self.has_live_line = False
        """Whether the line of the cursor is to be cleared."""
        self.interruption: Callable[[], str] = _interrupted
        """Returns the message after a Ctrl-C."""
        self.before_exit: Callable[[], None] = _do_nothing
        """Called after a Ctrl-C, before the process ends."""
        self.argument_names: Callable[[], ArgumentNames] = _names_of_python
        """Returns the command's names for the arguments that an error may name."""
        self.unicode = (out.encoding or "").lower().replace("-", "") == "utf8"
        """Whether the output shows more than ASCII."""

    @classmethod
    def standard(cls) -> Console:
        """Returns the console of this process.

        Output to a file or a pipe is UTF-8, whatever the locale is.
        """
        if sys.stdout is None:  # closed by the parent process
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end
        if hasattr(sys.stdout, "reconfigure"):
            encoding = None if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="replace")
        return cls(sys.stdout, dict(os.environ))

    def use_plain_lines(self) -> None:
        """Draws nothing from now on: no color, and no line is overwritten (--plain)."""
        self._is_plain = True
        self.can_overwrite = False
        self.color = False

    @cached_property
    def errors(self) -> Console:
        """The console of standard error, where progress is shown."""
        out = sys.stderr
        if out is None:  # closed by the parent process
            out = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end
        errors = Console(out, self._environment)
        if self._is_plain:
            errors.use_plain_lines()
        errors._live = self._live
        return errors

    @property
    def has_rich(self) -> bool:
        """Whether rich draws: on a terminal with color, where it is installed."""
        if not (self.color and self.unicode):
            return False
        from importlib.util import find_spec

        return find_spec("rich") is not None

    def begin_live(self, end: Callable[[], None]) -> None:
        """Notes how to remove what is drawn from now on, for a Ctrl-C."""
        self._live.append(end)

    def end_live(self) -> None:
        """Notes that nothing is drawn any more."""
        self._live.clear()

    def restore(self) -> None:
        """Removes what is drawn, after a Ctrl-C; the write under way may never end."""
        for console in (self, self.__dict__.get("errors", self)):
            if console.has_live_line and console.descriptor is not None:
                os.write(console.descriptor, CLEAR_LINE.encode())
                console.has_live_line = False
        for end in self._live:
            with contextlib.suppress(Exception):
                end()
            # A display that was interrupted while it drew may not have ended its line.
            os.write(sys.stderr.fileno(), (CLEAR_LINE + SHOW_CURSOR).encode())

    @property
    def descriptor(self) -> int | None:
        """The file descriptor of the output; None where it has none."""
        try:
            return self.out.fileno()
        except (OSError, ValueError):
            return None

    @property
    def width(self) -> int:
        """Columns of the terminal, as they are now."""
        return self._size().columns

    @property
    def height(self) -> int:
        """Lines of the terminal, as they are now."""
        return self._size().lines

    def _size(self) -> os.terminal_size:
        """Returns the size of this terminal, unless the environment gives one."""
        if self.descriptor is not None and not {"COLUMNS", "LINES"} & set(os.environ):
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(self.descriptor)
                if size.columns > 0 and size.lines > 0:
                    return size
        return shutil.get_terminal_size((FALLBACK_WIDTH, FALLBACK_HEIGHT))

    def line(self, text: str = "") -> None:
        """Writes a line; on a terminal, without characters that control the terminal."""
        self.drawn_line(printable(text) if self.is_terminal else text)

    def drawn_line(self, text: str) -> None:
        """Writes a line that has colors."""
        self.out.write(text + "\n")
        self.out.flush()

    def text(self, text: str) -> None:
        """Writes text; on a terminal, without characters that control the terminal."""
        self.out.write(printable(text) if self.is_terminal else text)
        self.out.flush()

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: int = 1,
        cut: int,
    ) -> None:
        """Writes a table; on a terminal that is too narrow for it, one column is cut.

        Args:
            head: The columns' names.
            rows: The cells.
            left: This many columns, and the last, are aligned left, the others right.
            cut: The column whose cells lose their middle where the terminal is too narrow.
        """
        if self.is_terminal:
            rows = self._fitted(head, [list(map(one_line, row)) for row in rows], cut)
        for line in table(head, rows, left=left):
            self.line(line)

    def _fitted(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], cut: int
    ) -> list[list[str]]:
        """Cuts the cells of one column so that the rows fit, as far as that can do it."""
        widths = _widths(head, rows)
        over = sum(widths) + len(GAP) * (len(widths) - 1) - (self.width - 1)
        available = max(len(head[cut]), MIN_CELL, widths[cut] - max(0, over))
        dots = "…" if self.unicode else "..."
        return [
            [middle_cut(cell, available, dots) if i == cut else cell for i, cell in enumerate(row)]
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
    """Cuts a text to a width; dots replace its middle."""
    if len(text) <= width:
        return text
    kept = max(0, width - len(dots))
    last = kept // 2
    return text[: kept - last] + dots + (text[-last:] if last else "")


def printable(text: str) -> str:
    """Replaces control characters, line breaks and tabs excepted."""
    return "".join("\ufffd" if _is_control(character) else character for character in text)


def one_line(text: str, width: int | None = None) -> str:
    """Shows a text on one line.

    Args:
        text: Any text; line breaks and control characters are shown as escapes.
        width: Cut it to this many characters; None shows it all.

    Returns:
        The text, ending in "..." where it was cut.
    """
    line = "".join(
        character.encode("unicode_escape").decode()
        if _is_control(character) or character in "\n\t\r"
        else character
        for character in text
    )
    if width is not None and len(line) > width:
        line = line[: max(0, width - 3)] + "..."[:width]
    return line


def _is_control(character: str) -> bool:
    """Returns whether a character may control a terminal (C0, DEL and C1, bare CR included).

    The characters that reorder a text do so as well: with them, one name looks like another.
    """
    code = ord(character)
    if code >= 160:
        return 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return (code < 32 and character not in "\n\t") or code >= 127
