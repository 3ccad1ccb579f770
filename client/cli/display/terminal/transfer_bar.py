"""`TransferBar` draws the progress of a transfer: a bar, bytes, the rate and the time left."""

from __future__ import annotations

import time

from rich.progress import (
    BarColumn,
    DownloadColumn,
    FileSizeColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.terminal.rich_console import rich_console

REFRESH_S = 0.1
"""Seconds between two drawings."""

BAR_COLUMNS = 30
NARROW_BAR_COLUMNS = 10

NARROW = 70
"""A terminal of fewer columns shows no rate."""


class TransferBar:
    """A bar that is redrawn in place and removed at the end.

    It has no thread: it is drawn as bytes pass, so that nothing is written after a Ctrl-C.

    Args:
        console: The terminal.
        verb: The beginning of the line, such as "uploading".
        total_bytes: The bytes to transfer; None where they are unknown.
    """

    def __init__(self, console: Console, verb: str, total_bytes: int | None) -> None:
        wide = console.width >= NARROW
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
        if total_bytes is None:
            columns.append(FileSizeColumn())
        else:
            length = BAR_COLUMNS if wide else NARROW_BAR_COLUMNS
            columns.append(BarColumn(length, complete_style="cyan", finished_style="cyan"))
            columns.append(DownloadColumn())
        if wide:
            columns.append(TransferSpeedColumn())
        if total_bytes is not None:
            columns.append(TimeRemainingColumn(compact=True))
        self._console = console
        self._progress = Progress(
            *columns,
            console=rich_console(console),
            transient=True,
            auto_refresh=False,
            refresh_per_second=10,
        )
        self._task = self._progress.add_task(verb, total=total_bytes)
        self._drawn_at = 0.0

    def open(self) -> None:
        """Begins to draw."""
        self._console.begin_live(self._progress.stop)
        self._progress.start()
        self._progress.console.show_cursor(True)  # so that it is there after Ctrl-Z, too

    def show(self, done_bytes: int, total_bytes: int | None) -> None:
        """Draws the progress, at most every REFRESH_S."""
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)
        now = time.monotonic()
        if now - self._drawn_at >= REFRESH_S:
            self._drawn_at = now
            self._progress.refresh()

    def close(self) -> None:
        """Removes the bar."""
        self._progress.stop()
        self._console.end_live()
