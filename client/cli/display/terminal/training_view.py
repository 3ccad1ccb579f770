"""`TrainingView` draws the state of a training run: a bar, its figures and its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from treadle.client.cli.display.console import one_line
from treadle.client.cli.display.curves.curve import Curve, Point, append_point, thin
from treadle.client.cli.display.curves.curve_text import HEAD_AND_FOOT, draw
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.progress import (
    RunFacts,
    fraction_done,
    size_text,
    speed_text,
    state_line,
    time_text,
    validation_line,
)
from treadle.client.cli.display.terminal.cell_width import cut

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import JobEvent, TrainingProgress

CURVE_ROWS = 7
"""Rows of the curve, its axis not counted."""

CURVE_TERMINAL = (44, 20)
"""The columns and lines that a terminal needs for a curve; a smaller one has a sparkline."""

MOST_POINTS = 4000
"""Points kept; beyond, those are left out that no terminal can show."""

KEPT_COLUMNS = 500
"""Columns for which points are kept."""

SPARKS = "▁▂▃▄▅▆▇█"

GAP = "   "


class TrainingView:
    """The state of a run, which rich draws as a few lines.

    Args:
        curve_rows: Rows of the curve; 0 leaves the lines around it and fills the terminal.
    """

    def __init__(self, curve_rows: int = CURVE_ROWS) -> None:
        self.status = "waiting for the server to begin ..."
        """What the run does, on one line."""
        self._curve_rows = curve_rows
        self._model = ""
        self._job = ""
        self._facts = RunFacts()
        self._progress: TrainingProgress | None = None
        self._valid = ""
        self._baseline: float | None = None
        self._train: list[Point] = []
        self._validations: list[Point] = []

    def update(self, event: JobEvent) -> None:
        """Takes what an event reports."""
        match event.WhichOneof("event"):
            case "state":
                self.status = state_line(event.state)
            case "started":
                started = event.started
                self.status = "running"
                self._model = started.spec.model
                self._job = event.job
                self._facts = RunFacts.of(started)
                if started.HasField("baseline_loss"):
                    self._baseline = started.baseline_loss
            case "progress":
                self.status = "running"
                self._take(event.progress)
            case "validation":
                self.status = validation_line(event.validation)

    def _take(self, progress: TrainingProgress) -> None:
        """Takes the figures of a step."""
        self._progress = progress
        self._train = _kept(self._train, Point(progress.step, progress.train_loss))
        if progress.HasField("valid_loss"):
            self._validations = _kept(self._validations, Point(progress.step, progress.valid_loss))
            self._valid = f"valid {number_text(progress.valid_loss)}"
            best = progress.best_valid_loss
            if progress.HasField("best_valid_loss") and best < progress.valid_loss:
                self._valid += f" (best {number_text(best)})"

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """Yields the lines."""
        width = max(1, options.max_width - 1)
        if self._progress is None:
            yield self._head(width)
            return
        columns, lines = CURVE_TERMINAL
        if len(self._train) > 1 and options.max_width >= columns and console.height >= lines:
            yield from self._curve_lines(width, console.height)
        yield self._head(width)
        yield self._bar(self._progress, width)
        yield _fitting(self._figures(self._progress), width)
        yield _fitting(self._losses(self._progress), width)
        if len(self._train) > 1 and (options.max_width < columns or console.height < lines):
            losses = [point.loss for point in self._train]
            yield Text(sparkline(losses, min(width, 60)), "cyan")

    def _head(self, width: int) -> Text:
        """Returns the line of what runs."""
        status = one_line(self.status)
        if not self._model:
            return Text(cut(status, width))
        model = Text(cut(one_line(self._model), width), "bold")
        job = Text(f"job {one_line(self._job)}", "dim")
        return _fitting([model, Text(status), job], width)

    def _bar(self, progress: TrainingProgress, width: int) -> RenderableType:
        """Returns the bar, the share that is done and the time left."""
        done = fraction_done(progress, self._facts.total_steps)
        time = Text(time_text(progress))
        if done is None:
            return time
        grid = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(
            total=1.0,
            completed=done,
            width=max(4, min(50, width - 22)),
            complete_style="cyan",
            finished_style="cyan",
        )
        grid.add_row(bar, Text(f"{done:4.0%}"), time)
        return grid

    def _figures(self, progress: TrainingProgress) -> list[Text]:
        """Returns what is counted."""
        total = f"/{self._facts.total_steps:,}" if self._facts.total_steps else ""
        texts = [
            f"step {progress.step:,}{total}",
            f"epoch {progress.epoch:.2f}",
            speed_text(progress.tokens_per_second),
            size_text(progress.memory_bytes) if progress.memory_bytes else "",
        ]
        return [Text(text) for text in texts if text]

    def _losses(self, progress: TrainingProgress) -> list[Text]:
        """Returns the losses in the colors of their curves."""
        losses = [Text(f"train {number_text(progress.train_loss)}", "cyan")]
        if self._valid:
            losses.append(Text(self._valid, "yellow"))
        if self._facts.baseline:
            losses.append(Text(self._facts.baseline, "dim"))
        return losses

    def _curve_lines(self, width: int, height: int) -> list[Text]:
        """Returns the curve without its title and its legend."""
        curve = Curve("", tuple(self._train), tuple(self._validations), baseline=self._baseline)
        rows = self._curve_rows or max(CURVE_ROWS, height - 10)
        lines = draw(curve, width, rows + HEAD_AND_FOOT, unicode=True, color=True)
        return [Text.from_ansi(line) for line in lines[1:-1]]


def _fitting(texts: Sequence[Text], width: int) -> Text:
    """Joins texts on one line, as many as fit; the second one is cut if it is the last to fit."""
    line = Text(no_wrap=True)
    for number, text in enumerate(texts):
        gap = GAP if line else ""
        left = width - line.cell_len - len(gap)
        if text.cell_len > left:
            shown = cut(text.plain, left) if number < 2 else ""
            return Text.assemble(line, gap, (shown, text.style), no_wrap=True) if shown else line
        line = Text.assemble(line, gap, text, no_wrap=True)
    return line


def _kept(points: list[Point], point: Point) -> list[Point]:
    """Returns points with one more, without those that no terminal can show."""
    append_point(points, point)
    if len(points) > MOST_POINTS:
        return thin(points, max(1.0, float(points[-1].step)), KEPT_COLUMNS)
    return points


def sparkline(values: Sequence[float], columns: int) -> str:
    """Draws numbers as bars in one line: the means of as many groups as there are columns.

    Returns:
        The bars, at most `columns` of them.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or columns < 1:
        return ""
    count = min(columns, len(finite))
    groups = [
        finite[i * len(finite) // count : (i + 1) * len(finite) // count] for i in range(count)
    ]
    means = [math.fsum(group) / len(group) for group in groups]
    low = min(means)
    spread = max(means) - low
    if spread <= 0:
        return SPARKS[0] * count
    return "".join(SPARKS[int((mean - low) / spread * (len(SPARKS) - 1) + 0.5)] for mean in means)
