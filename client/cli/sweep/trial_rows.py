"""`live_rows` and `result_rows` describe the trials of a sweep in the rows of a table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from treadle.client.cli.display.numbers import number_text
from treadle.client.sweep.trial import OPEN_STATES

if TYPE_CHECKING:
    from treadle.client.sweep.search_space import Value
    from treadle.client.sweep.sweep import Sweep
    from treadle.client.sweep.trial import Trial

_SHORT = {"best_valid_loss": "loss", "valid_loss": "loss", "bits_per_character": "bits"}
"""What a table calls the value that trials are compared by."""

_FIXED = 5
"""The columns before those of the settings."""


def live_head(sweep: Sweep) -> tuple[str, ...]:
    """Returns the names of the columns while the sweep runs."""
    return ("rank", "trial", _SHORT[sweep.spec.metric], "step", "left", *sweep.spec.search, "state")


def result_head(sweep: Sweep) -> tuple[str, ...]:
    """Returns the names of the columns of the results."""
    value = _SHORT[sweep.spec.metric]
    return ("rank", "trial", value, "step", "version", *sweep.spec.search, "state")


def result_columns_to_drop(sweep: Sweep) -> tuple[int, ...]:
    """Returns the columns that a narrow terminal leaves out, the first one first."""
    settings = range(_FIXED, _FIXED + len(sweep.spec.search))
    return (3, 4, *reversed(settings))


def live_rows(sweep: Sweep, most: int) -> list[tuple[str, ...]]:
    """Returns rows of the trials that are open, then of the best others.

    Args:
        sweep: The sweep.
        most: The most rows.
    """
    order = list(enumerate(sweep.ranked(), start=1))
    running = [(rank, trial) for rank, trial in order if _is_open(trial)]
    running.sort(key=lambda each: each[1].number)
    ended = [(rank, trial) for rank, trial in order if not _is_open(trial)]
    return [_live_row(sweep, rank, trial) for rank, trial in (running + ended)[:most]]


def result_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """Returns a row of each trial, the best one first."""
    return [
        (
            str(rank),
            str(trial.number),
            _value(sweep, trial),
            _best_step(sweep, trial),
            str(trial.version or "-"),
            *_settings(sweep, trial),
            trial.state,
        )
        for rank, trial in enumerate(sweep.ranked(), start=1)
    ]


def summary_line(sweep: Sweep) -> str:
    """Describes how far a sweep is: "sweep s: 7 of 20 trials have ended (2 pruned), ..."."""
    trials = sweep.trials.values()
    counts: Counter[str] = Counter(trial.state for trial in trials)
    ended = sum(not _is_open(trial) for trial in trials)
    notes = [
        f"{counts[state]:,} {state}"
        for state in ("pruned", "cancelled", "failed", "refused")
        if counts[state]
    ]
    parts = [f"{ended:,} of {sweep.total:,} trials have ended" + _bracket(notes)]
    parts += [f"{counts[state]:,} {state}" for state in OPEN_STATES if counts[state]]
    best = sweep.best()
    if best is not None:
        parts.append(f"best: trial {best.number} with {_value(sweep, best)}")
    return f"sweep {sweep.spec.name}: " + ", ".join(parts)


def parameter_text(trial: Trial) -> str:
    """Writes the settings of a trial: "hidden_size=64 learning_rate=0.003"."""
    return " ".join(f"{name}={value_text(value)}" for name, value in trial.parameters.items())


def value_text(value: Value) -> str:
    """Writes a setting as TOML does, a text without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_open(trial: Trial) -> bool:
    return trial.state in OPEN_STATES


def _bracket(notes: list[str]) -> str:
    return f" ({', '.join(notes)})" if notes else ""


def _live_row(sweep: Sweep, rank: int, trial: Trial) -> tuple[str, ...]:
    from treadle.client.cli.display.progress import duration_text

    has_value = trial.value(sweep.spec.metric) is not None
    step = f"{trial.step:,}" + (f"/{trial.total_steps:,}" if trial.total_steps else "")
    is_timed = trial.state == "running" and trial.time_left_s is not None
    return (
        str(rank) if has_value else "-",
        str(trial.number),
        _value(sweep, trial),
        step if trial.step else "-",
        duration_text(trial.time_left_s or 0.0) if is_timed else "-",
        *_settings(sweep, trial),
        trial.state,
    )


def _value(sweep: Sweep, trial: Trial) -> str:
    value = trial.value(sweep.spec.metric)
    return "-" if value is None else number_text(value, 4)


def _best_step(sweep: Sweep, trial: Trial) -> str:
    best = trial.best(sweep.spec.metric)
    return "-" if best is None else f"{best.step:,}"


def _settings(sweep: Sweep, trial: Trial) -> list[str]:
    found = (trial.parameters.get(name) for name in sweep.spec.search)
    return ["-" if value is None else value_text(value) for value in found]
