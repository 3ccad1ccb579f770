"""`LiveReport` shows a sweep as a table that is drawn again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.text import Text

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.terminal.cell_width import cut
from treadle.client.cli.display.terminal.live_region import LiveRegion
from treadle.client.cli.display.terminal.rich_table import table_of
from treadle.client.cli.sweep.report import SweepReport, event_line
from treadle.client.cli.sweep.trial_rows import (
    live_head,
    live_rows,
    result_columns_to_drop,
    summary_line,
)

if TYPE_CHECKING:
    from treadle.client.sweep.sweep import Sweep, SweepEvent

_REFRESH_S = 0.1
"""Seconds between two drawings."""

_FRAME_LINES = 4
"""Lines of the head, the summary and the foot, and the line of the shell before them."""

_FOOT = "Ctrl-C leaves; the jobs continue"

_ABOVE = ("refused", "alias", "found")
"""Events that stay above the table."""


class LiveReport(SweepReport):
    """The open trials and the best ones, in place; what is out of the ordinary scrolls above.

    Args:
        sweep: The sweep.
        console: The terminal.
    """

    def __init__(self, sweep: Sweep, console: Console) -> None:
        super().__init__(sweep, console)
        self._region = LiveRegion(console)
        self._drawn_at = 0.0
        self._is_open = False
        self._foot = _FOOT

    def __enter__(self) -> Self:
        self._region.open()
        self._is_open = True
        self._draw()
        return self

    def close(self) -> None:
        """Removes the table."""
        if self._is_open:
            self._is_open = False
            self._region.close()

    def show(self, event: SweepEvent) -> None:
        """Draws the table, unless it was drawn just now."""
        line = event_line(self.sweep, event)
        if not self._is_open:  # what comes after the results
            super().show(event)
            return
        is_notable = event.kind in _ABOVE or (
            event.kind == "ended" and bool(event.trial.reason if event.trial else "")
        )
        self._foot = line if event.kind == "waiting" else _FOOT
        if (
            is_notable
            or time.monotonic() - self._drawn_at >= _REFRESH_S
            or event.kind != "progress"
        ):
            self._draw(Text(line) if is_notable else None)

    def _draw(self, above: Text | None = None) -> None:
        """Draws the table."""
        self._drawn_at = time.monotonic()
        width = max(1, self.console.width - 1)
        rows = live_rows(self.sweep, max(1, self.console.height - _FRAME_LINES))
        parts = [Text(cut(summary_line(self.sweep), width), "bold")]
        table, _ = table_of(
            live_head(self.sweep),
            rows,
            left=0,
            cut=len(live_head(self.sweep)) - 1,
            drop=result_columns_to_drop(self.sweep),
            width=width,
        )
        foot = Text(cut(self._foot, width), "dim")
        self._region.draw(Group(*parts, *([table] if rows else []), foot), above)
