"""`RichReport` shows a training run as a live display, with what stays above it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.text import Text

from treadle.client.cli.display.console import Console, printable
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.progress import GAP, RunFacts, state_line, validation_parts
from treadle.client.cli.display.reports import PlainReport, break_line, sample_lines
from treadle.client.cli.display.terminal.live_region import LiveRegion
from treadle.client.cli.display.terminal.training_view import CURVE_ROWS, TrainingView
from treadle.client.errors import ServerError
from treadle.v1.sequence_pb2 import JOB_STATE_QUEUED, JobEvent, JobStateChange, ValidationProgress
from treadle.v1.sequence_pb2 import TrainingProgress as Progress

REFRESH_S = 0.05
"""Seconds between two drawings, state changes aside."""


class RichReport(PlainReport):
    """A display that is redrawn in place; notices, validations and samples scroll above it.

    It is drawn as events arrive, without a thread, so that nothing is written after a Ctrl-C.

    Args:
        console: The terminal.
        in_flags: Replaces names of fields in a sentence by flags.
        only_curve: Whether the curve fills the terminal, and nothing stays above it.
    """

    def __init__(
        self,
        console: Console,
        in_flags: Callable[[str], str] = str,
        *,
        only_curve: bool = False,
    ) -> None:
        super().__init__(console, in_flags)
        self._view = TrainingView(0 if only_curve else CURVE_ROWS)
        self._only_curve = only_curve
        self._region = LiveRegion(console)
        self._above: list[Text] = []
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        self._region.open()
        self._region.draw(self._view)
        return self

    def show(self, event: JobEvent) -> None:
        """Prints what stays of an event, and draws the rest."""
        self._view.update(event)
        if event.HasField("state"):
            self._view.status = self._in_flags(state_line(event.state))
        super().show(event)
        now = time.monotonic()
        due = now - self._drawn_at >= REFRESH_S or not event.HasField("progress")
        if due or self._above:
            self._drawn_at = now
            above = Text("\n").join(self._above) if self._above else None
            self._above.clear()
            self._region.draw(self._view, above)

    def show_state(self, change: JobStateChange) -> None:
        """Prints a change of state, unless the display has it."""
        if change.state != JOB_STATE_QUEUED:
            super().show_state(change)

    def show_progress(self, progress: Progress) -> None:
        """Prints validations and samples; the display has the rest."""
        if parts := validation_parts(progress, RunFacts()):
            losses = [f"step {progress.step:,}", f"loss {number_text(progress.train_loss)}", *parts]
            self.print(GAP.join(part for part in losses if part))
        self.print_notices(progress.notices)
        for line in sample_lines(progress) if progress.sample else ():
            self.print("    " + line)

    def show_validation(self, validation: ValidationProgress) -> None:
        """Prints nothing; the display has it."""

    def show_break(self, failure: ServerError) -> None:
        """Draws the failure until the next event."""
        self._view.status = break_line(failure)
        self._region.draw(self._view)

    def print(self, line: str) -> None:
        """Prints a line above the display, with the others of the event."""
        if self._only_curve:
            return
        for part in printable(line).split("\n"):
            self._above.append(Text(part, "dim" if part.startswith("note:") else ""))

    def close(self) -> None:
        """Removes the display."""
        self._region.close()
