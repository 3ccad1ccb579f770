"""`TransferProgress` shows on standard error how much of an upload or a download is done."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol, Self

from treadle.client.cli.display.console import Console, one_line

BEGIN_S = 0.5
"""Seconds before a bar appears; most transfers are over sooner."""

LINE_INTERVAL_S = 5.0
"""Seconds between two lines where nothing can be redrawn, and before the first one."""


class TransferDisplay(Protocol):
    """A kind of display of a transfer."""

    def open(self) -> None:
        """Begins to draw."""

    def show(self, done_bytes: int, total_bytes: int | None) -> None:
        """Shows the progress."""

    def close(self) -> None:
        """Removes what is drawn."""


class TransferProgress:
    """The progress of a transfer, in a `with` block; `advance` may be called by any thread.

    A terminal with rich gets a bar, another terminal a line every few seconds, and anything else
    nothing. Standard output is never written to.

    Args:
        console: The output of the command.
        verb: The beginning of the line, such as "uploading" or "pulling bard".
        total_bytes: The bytes to transfer; None where they are unknown.
        quiet: Whether to show nothing.
    """

    def __init__(
        self, console: Console, verb: str, total_bytes: int | None = None, *, quiet: bool = False
    ) -> None:
        self.total_bytes = total_bytes
        """The bytes to transfer; it may be set later."""
        self.done_bytes = 0
        """The bytes transferred so far."""
        self._console = console.errors
        self._verb = one_line(verb)
        self._quiet = quiet or not self._console.is_terminal
        self._began_s: float | None = None
        self._display: TransferDisplay | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, count: int) -> None:
        """Counts bytes that were transferred, and shows it."""
        with self._lock:
            self.done_bytes += count
            if self._quiet or self._is_closed:
                return
            if self._began_s is None:  # not before: connecting may take its time
                self._began_s = time.monotonic()
            if self._display is None:
                if time.monotonic() - self._began_s < BEGIN_S:
                    return
                self._display = self._open_display(self._began_s)
            self._display.show(self.done_bytes, self.total_bytes)

    def close(self) -> None:
        """Removes what is drawn; nothing is drawn afterwards."""
        with self._lock:
            if self._display is not None and not self._is_closed:
                self._display.close()
            self._is_closed = True

    def _open_display(self, began_s: float) -> TransferDisplay:
        """Returns the display for the terminal."""
        display: TransferDisplay
        if self._console.has_rich:
            from treadle.client.cli.display.terminal.transfer_bar import TransferBar

            display = TransferBar(self._console, self._verb, self.total_bytes)
        else:
            display = TransferLines(self._console, self._verb, began_s)
        display.open()
        return display


class TransferLines:
    """A line every LINE_INTERVAL_S: "treadle: uploading: 21.3 MB of 300 MB, 4.1 MB/s, 1:08 left".

    Args:
        console: The terminal.
        verb: The beginning of the line.
        began_s: The time at the beginning, by `time.monotonic`.
    """

    def __init__(self, console: Console, verb: str, began_s: float) -> None:
        self._console = console
        self._verb = verb
        self._began_s = began_s
        self._due_s = began_s + LINE_INTERVAL_S

    def open(self) -> None:
        """Draws nothing yet."""

    def show(self, done_bytes: int, total_bytes: int | None) -> None:
        """Prints a line, if one is due."""
        now = time.monotonic()
        if now < self._due_s:
            return
        self._due_s = now + LINE_INTERVAL_S
        text = transfer_text(done_bytes, total_bytes, now - self._began_s)
        self._console.line(f"treadle: {self._verb}: {text}")

    def close(self) -> None:
        """Leaves the lines."""


def transfer_text(done_bytes: int, total_bytes: int | None, elapsed_s: float) -> str:
    """Describes a transfer: "21.3 MB of 300 MB, 4.1 MB/s, 1:08 left".

    Args:
        done_bytes: The bytes so far.
        total_bytes: All of them; None where they are unknown.
        elapsed_s: The time so far, in seconds.

    Returns:
        The text.
    """
    from treadle.client.cli.display.progress import duration_text, size_text

    rate = done_bytes / elapsed_s if elapsed_s > 0 else 0.0
    text = size_text(done_bytes)
    if total_bytes is not None:
        text += f" of {size_text(total_bytes)}"
    if rate <= 0:
        return text
    text += f", {size_text(rate)}/s"
    if total_bytes is None:
        return text
    return f"{text}, {duration_text(max(0, total_bytes - done_bytes) / rate)} left"
