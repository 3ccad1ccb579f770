"""`results_csv` writes the ranked trials of a sweep as CSV.

It holds what a sweep decides and nothing of chance, such as the ids of jobs. So a sweep that was
interrupted gives the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from treadle.client.sweep.search_space import Value
from treadle.client.sweep.spec import SweepSpec
from treadle.client.sweep.trial import Trial

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that a spreadsheet takes for a formula."""


def results_csv(trials: Sequence[Trial], spec: SweepSpec) -> str:
    """Returns the results as CSV.

    Args:
        trials: The trials, the best one first.
        spec: The sweep.

    Returns:
        A line with the names of the columns, and a line for each trial: its rank, its number, its
        state, what it is compared by, the step of its best validation, that of its last one, and
        the settings that were chosen. Numbers have all of their digits. A text that a spreadsheet
        would take for a formula has an apostrophe before it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    settings = list(spec.search)
    writer.writerow(["rank", "trial", "state", spec.metric, "best_step", "last_step", *settings])
    for rank, trial in enumerate(trials, start=1):
        value = trial.value(spec.metric)
        best = trial.best(spec.metric)
        counted = trial.counted
        writer.writerow(
            [
                rank,
                trial.number,
                trial.state,
                "" if value is None else repr(value),
                "" if best is None else best.step,
                counted[-1].step if counted else "",
                *(_cell(trial.parameters.get(name, "")) for name in settings),
            ]
        )
    return out.getvalue()


def _cell(value: Value) -> str:
    """Writes a setting."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return repr(value)
