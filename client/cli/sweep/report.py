"""`SweepReport` and its kinds show a sweep: as a live table, as lines, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from treadle.client.cli.display.console import Console, one_line, printable
from treadle.client.cli.display.json_lines import to_line
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.tables import print_table
from treadle.client.cli.sweep.trial_rows import (
    parameter_text,
    result_columns_to_drop,
    result_head,
    result_rows,
    summary_line,
)

if TYPE_CHECKING:
    from treadle.client.sweep.sweep import Sweep, SweepEvent
    from treadle.client.sweep.trial import Trial

_REASON_CHARACTERS = 300
"""The most characters of a reason on a line."""


class SweepReport:
    """Shows a sweep, in a `with` block that restores the terminal.

    Args:
        sweep: The sweep.
        console: The output.
    """

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep = sweep
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

    def close(self) -> None:
        """Restores the terminal."""

    def show(self, event: SweepEvent) -> None:
        """Shows an event."""
        line = event_line(self.sweep, event)
        if line:
            self.console.line(line)

    def show_results(self) -> None:
        """Prints the ranked trials."""
        self.console.line(summary_line(self.sweep))
        rows = result_rows(self.sweep)
        if rows:
            print_table(
                self.console,
                result_head(self.sweep),
                rows,
                left=0,
                cut=len(rows[0]) - 1,
                drop=result_columns_to_drop(self.sweep),
            )

    def show_none(self) -> None:
        """Says that there is no model."""
        print(
            f"treadle: no trial of sweep {self.sweep.spec.name!r} has made a model", file=sys.stderr
        )

    def show_cancelled(self, trials: Sequence[Trial], again: str) -> None:
        """Says which trials were cancelled."""
        name = self.sweep.spec.name
        if not trials:
            self.console.line(f"sweep {name!r} has no job that could be cancelled")
            return
        numbers = ", ".join(str(trial.number) for trial in trials)
        jobs = "job" if len(trials) == 1 else "jobs"
        self.console.line(
            f"cancelled {len(trials):,} {jobs} of sweep {name!r} (trial {numbers}); "
            f"`{again}` continues with the trials that have no job yet"
        )


class JsonReport(SweepReport):
    """One JSON object per line, for programs.

    Args:
        sweep: The sweep.
        console: The output.
        is_quiet: Whether only results are printed.
    """

    def __init__(self, sweep: Sweep, console: Console, *, is_quiet: bool) -> None:
        super().__init__(sweep, console)
        self._is_quiet = is_quiet

    def show(self, event: SweepEvent) -> None:
        """Prints an event."""
        if self._is_quiet and event.kind != "alias":
            return
        about: dict[str, Any] = {"event": event.kind, "sweep": self.sweep.spec.name}
        if event.text:
            about["text"] = event.text
        if event.kind == "alias":
            about |= {"model": self.sweep.spec.model, "alias": self.sweep.spec.alias}
        if event.trial is not None:
            about |= self._described(event.trial)
        self.console.line(to_line(about))

    def show_results(self) -> None:
        """Prints an object for each trial, the best one first."""
        for rank, trial in enumerate(self.sweep.ranked(), start=1):
            about = {"event": "result", "sweep": self.sweep.spec.name, "rank": rank}
            self.console.line(to_line(about | self._described(trial)))

    def show_cancelled(self, trials: Sequence[Trial], again: str) -> None:
        """Prints an object for each trial that was cancelled."""
        for trial in trials:
            about = {"event": "cancelled", "sweep": self.sweep.spec.name}
            self.console.line(to_line(about | {"trial": trial.number, "job": trial.job}))

    def _described(self, trial: Trial) -> dict[str, Any]:
        """Returns what there is to say about a trial."""
        metric = self.sweep.spec.metric
        best = trial.best(metric)
        return {
            "trial": trial.number,
            "job": trial.job,
            "state": trial.state,
            "reason": trial.reason,
            "parameters": dict(trial.parameters),
            metric: trial.value(metric),
            "validations": len(trial.counted),
            "best_step": None if best is None else best.step,
            "step": trial.step,
            "total_steps": trial.total_steps,
            "version": trial.version,
        }


class QuietReport(SweepReport):
    """Only the results."""

    def show(self, event: SweepEvent) -> None:
        """Prints what the best model is called."""
        if event.kind == "alias":
            super().show(event)


def event_line(sweep: Sweep, event: SweepEvent) -> str:
    """Describes an event on a line; empty for one that is not worth a line."""
    metric = sweep.spec.metric
    trial = event.trial
    if trial is None:
        return f"sweep {sweep.spec.name}: {printable(event.text)}" if event.text else ""
    value = trial.value(metric)
    result = f"{metric} {number_text(value, 4)}" if value is not None else f"no {metric}"
    reason = one_line(trial.reason, _REASON_CHARACTERS)
    match event.kind:
        case "queued":
            return f"trial {trial.number} queued: {parameter_text(trial)}"
        case "pruned":
            return f"trial {trial.number} stopped after validation {trial.pruned_after}: {result}"
        case "refused":
            return f"trial {trial.number} refused: {reason} ({parameter_text(trial)})"
        case "ended":
            why = f" ({reason})" if reason else ""
            return f"trial {trial.number} {trial.state}: {result}{why}"
        case "waiting":
            return f"trial {trial.number} waits: {one_line(event.text, _REASON_CHARACTERS)}"
        case "alias":
            spec = sweep.spec
            return (
                f"{spec.model}@{spec.alias} is version {trial.version}, of trial {trial.number}: "
                f"{result}"
            )
    return ""
