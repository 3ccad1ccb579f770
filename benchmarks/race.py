"""`race` times entrants fairly: the best setting of each rival by a short trial, then A B A B.

A machine's speed changes from second to second, so that what is compared must be measured in turn,
one short sample each, round after round; a pause between two samples lets threads of the one
before go to sleep. An entrant that is missing, dies or hangs leaves the race with a note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treadle.benchmarks.figures import Samples, ratio
from treadle.benchmarks.processes import NotInstalledError, WorkerError
from treadle.benchmarks.rivals import Entrant
from treadle.benchmarks.settings import Settings

PAUSE_S = 0.05
"""Longer than OpenMP's threads spin for after their work."""

OURS = "ours"

TRIALS = 2
"""Samples of a setting when the best is looked for; the better one counts."""

Row = dict[str, Any]
"""A case's results, as they stand in the JSON report."""

Rates = dict[str, list[float]]
"""Work a second, sample after sample, by name."""

Check = Callable[[str, Entrant], None]
"""Raises WorkerError for an entrant, given with its name, that computes something else."""


def no_check(name: str, entrant: Entrant) -> None:
    """Trusts an entrant."""


def fastest(entrants: Sequence[Entrant], seconds: float) -> tuple[Entrant | None, list[str]]:
    """Tries every setting for a moment; returns the fastest, and what went wrong."""
    best = None
    best_rate = 0.0
    notes = []
    for entrant in entrants:
        try:
            entrant.worker.make(entrant.case, entrant.options)
            time.sleep(PAUSE_S)
            rate = max(entrant.worker.run(seconds) for _ in range(TRIALS))
        except NotInstalledError as error:
            return None, [str(error)]
        except WorkerError as error:
            notes.append(str(error))
            continue
        if rate > best_rate:
            best = entrant
            best_rate = rate
    return best, notes


def prepare(entrants: Mapping[str, Entrant], check: Check = no_check) -> tuple[Rates, list[str]]:
    """Lets every worker make its case; returns empty lists of rates, and what went wrong."""
    rates: Rates = {}
    notes = []
    for name, entrant in entrants.items():
        try:
            entrant.worker.make(entrant.case, entrant.options)
            check(name, entrant)
            rates[name] = []
        except WorkerError as error:
            notes.append(str(error))
    return rates, notes


def sample(entrants: Mapping[str, Entrant], rates: Rates, seconds: float) -> list[str]:
    """Adds one sample to all rates; an entrant that fails leaves. Returns what went wrong."""
    notes = []
    for name in list(rates):
        time.sleep(PAUSE_S)
        try:
            rates[name].append(entrants[name].worker.run(seconds))
        except WorkerError as error:
            notes.append(str(error))
            del rates[name]
    return notes


def race(
    entrants: Mapping[str, Entrant], rounds: int, seconds: float, check: Check = no_check
) -> tuple[dict[str, Samples], list[str]]:
    """Times all entrants in turn.

    Args:
        entrants: by name; no two share a worker.
        rounds: samples of each.
        seconds: of one sample.
        check: asked about each of them before the first round.

    Returns:
        The rates of those that came through, and what went wrong with the others.
    """
    rates, notes = prepare(entrants, check)
    for _ in range(rounds):
        notes += sample(entrants, rates, seconds)
    return {name: Samples(tuple(values)) for name, values in rates.items()}, notes


def compare(
    ours: Entrant,
    rivals: Mapping[str, Sequence[Entrant]],
    settings: Settings,
    check: Check = no_check,
) -> Row:
    """Measures ours against the best setting of every rival.

    Args:
        ours: of the case.
        rivals: the settings of each, by its name.
        settings: how long.
        check: asked about ours and the best of every rival.

    Returns:
        The case's row: `ours`, `rivals` and `ratios` by name (None where not measured), `notes`.
    """
    entrants = {OURS: ours}
    notes = []
    for name, choices in rivals.items():
        best, wrong = fastest(choices, settings.seconds / 4)
        notes += wrong
        if best is not None:
            entrants[name] = best
    samples, wrong = race(entrants, settings.rounds, settings.seconds, check)
    return {
        "label": ours.case.label,
        "case": ours.case.as_json(),
        "ours": as_json(samples.get(OURS)),
        "rivals": {
            name: as_json(samples.get(name), entrants[name].way if name in entrants else "")
            for name in rivals
        },
        "ratios": {name: ratio(samples.get(OURS), samples.get(name)) for name in rivals},
        "notes": notes + wrong,
    }


def as_json(samples: Samples | None, way: str = "") -> Row | None:
    """Returns a figure for the report; None where it was not measured."""
    if samples is None:
        return None
    return {**samples.as_json(), "way": way} if way else samples.as_json()
