"""`Report` and its kinds show a training run: as a live bar, as lines, or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from treadle.client.cli.display.console import CLEAR_LINE, Console, one_line, printable
from treadle.client.cli.display.json_lines import to_line
from treadle.client.cli.display.progress import (
    RunFacts,
    Style,
    completed_line,
    plain_line,
    progress_line,
    started_lines,
    state_line,
    validation_line,
)
from treadle.client.errors import ServerError
from treadle.v1.sequence_pb2 import (
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JobEvent,
    JobStateChange,
    TrainingProgress,
    TrainingStarted,
    ValidationProgress,
)

PLAIN_INTERVAL_S = 10.0
"""Seconds of training between two plain lines, validations aside."""


def break_line(failure: ServerError) -> str:
    """Returns a line about a broken connection: the job continues."""
    return f"{failure}; the job continues, reconnecting to it ..."


class Report:
    """Shows the events of one run, in a `with` block that restores the terminal.

    Args:
        console: The terminal or other output.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def show(self, event: JobEvent) -> None:
        """Shows one event."""
        raise NotImplementedError

    def show_break(self, failure: ServerError) -> None:
        """Shows that the connection broke and is tried again; by default shows nothing."""

    def close(self) -> None:
        """Restores the terminal."""


class JsonReport(Report):
    """One JSON object per line, for programs."""

    def __init__(self, console: Console, *, only_completed: bool = False) -> None:
        super().__init__(console)
        self._only_completed = only_completed

    def show(self, event: JobEvent) -> None:
        """Prints the event."""
        if event.HasField("completed") or not self._only_completed:
            self.console.line(to_line(event))


class QuietReport(Report):
    """Only the finished model."""

    def show(self, event: JobEvent) -> None:
        """Prints the last event."""
        if event.HasField("completed"):
            self.console.line(completed_line(event.completed))


class PlainReport(Report):
    """Permanent lines, for terminals that cannot overwrite a line.

    Args:
        console: The terminal.
        in_flags: Replaces names of fields in a sentence by flags.
    """

    def __init__(self, console: Console, in_flags: Callable[[str], str] = str) -> None:
        super().__init__(console)
        self._in_flags = in_flags
        self._facts = RunFacts()
        self._printed_s = 0.0
        self._printed_at = -PLAIN_INTERVAL_S

    def show(self, event: JobEvent) -> None:
        """Prints the event, if it is worth a line."""
        match event.WhichOneof("event"):
            case "state":
                self.show_state(event.state)
            case "started":
                self.show_started(event.started)
            case "progress":
                self.show_progress(event.progress)
            case "validation":
                self.show_validation(event.validation)
            case "completed":
                self.print(completed_line(event.completed))

    def show_state(self, change: JobStateChange) -> None:
        """Prints a change of state, unless it is a normal one, or the error of the command."""
        if change.state == JOB_STATE_FAILED:
            return  # the command ends with the reason
        if change.reason or change.state not in (JOB_STATE_QUEUED, JOB_STATE_RUNNING):
            self.print(printable(self._in_flags(state_line(change))))

    def show_break(self, failure: ServerError) -> None:
        """Prints why no events arrive for a while."""
        self.print(printable(break_line(failure)))

    def show_started(self, started: TrainingStarted) -> None:
        """Prints the facts about the run."""
        self._facts = RunFacts.of(started)
        for line in started_lines(started):
            self.print(self._in_flags(line))

    def show_progress(self, progress: TrainingProgress) -> None:
        """Prints validations, and a line every PLAIN_INTERVAL_S."""
        due = progress.elapsed_s - self._printed_s >= PLAIN_INTERVAL_S
        if due or progress.HasField("valid_loss") or progress.HasField("sample"):
            self._printed_s = progress.elapsed_s
            self.print(plain_line(progress, self._facts))
        self.print_notices(progress.notices)
        if progress.sample:
            for line in sample_lines(progress):
                self.print("    " + line)

    def show_validation(self, validation: ValidationProgress) -> None:
        """Prints a line every PLAIN_INTERVAL_S."""
        now = time.monotonic()
        if now - self._printed_at >= PLAIN_INTERVAL_S:
            self._printed_at = now
            self.print(validation_line(validation, self.style))

    def print_notices(self, notices: Iterable[str]) -> None:
        """Prints notices, a line each."""
        for notice in notices:
            self.print(f"note: {printable(notice)}")

    @property
    def style(self) -> Style:
        """The terminal, for the lines that are drawn."""
        console = self.console
        return Style(width=console.width, color=console.color, unicode=console.unicode)

    def print(self, line: str) -> None:
        """Prints a permanent line."""
        self.console.line(line)


def sample_lines(progress: TrainingProgress) -> list[str]:
    """Lays out a sample, with a note whether a whole item is new to the corpus."""
    lines = printable(progress.sample).strip("\n").split("\n")
    if progress.HasField("sample_is_new"):
        lines[-1] += "   (new)" if progress.sample_is_new else "   (an item of the corpus)"
    return lines


class LiveReport(PlainReport):
    """A bar that is redrawn in place; notices, validations and samples scroll above it."""

    def __init__(self, console: Console, in_flags: Callable[[str], str] = str) -> None:
        super().__init__(console, in_flags)
        self._valid_loss: float | None = None

    def __enter__(self) -> Self:
        self._draw("waiting for the server to begin ...")
        return self

    def show_state(self, change: JobStateChange) -> None:
        """Draws a queued state in place of the bar; prints other changes."""
        if change.state == JOB_STATE_QUEUED:
            self._draw_text(state_line(change))
        else:
            super().show_state(change)

    def show_break(self, failure: ServerError) -> None:
        """Draws the failure in place of the bar until the next event."""
        self._draw_text(break_line(failure))

    def show_progress(self, progress: TrainingProgress) -> None:
        """Prints the permanent lines, then draws the bar below them."""
        if progress.HasField("valid_loss"):
            self._valid_loss = progress.valid_loss
        if progress.HasField("valid_loss") or progress.HasField("sample"):
            super().show_progress(progress)
        else:
            self.print_notices(progress.notices)
        total = self._facts.total_steps
        self._draw(progress_line(progress, total, self._valid_loss, self.style))

    def show_validation(self, validation: ValidationProgress) -> None:
        """Draws the progress in place of the bar."""
        self._draw(validation_line(validation, self.style))

    def print(self, line: str) -> None:
        """Prints a line in place of the bar; the bar is redrawn below it."""
        self._clear()
        super().print(line)

    def close(self) -> None:
        """Removes the bar."""
        self._clear()

    def _draw_text(self, text: str) -> None:
        self._draw(one_line(text, self.console.width - 1))

    def _draw(self, line: str) -> None:
        self._write(CLEAR_LINE + line)
        self.console.has_live_line = True

    def _clear(self) -> None:
        if self.console.has_live_line:
            self._write(CLEAR_LINE)
            self.console.has_live_line = False

    def _write(self, text: str) -> None:
        self.console.out.write(text)
        self.console.out.flush()
