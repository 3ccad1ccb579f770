"""`disturbed` measures what training loses when another program takes one of its processors.

A child that does nothing but count is pinned to the first processor, and trainers are held to
as many processors as they have threads, that one among them. Fair shares would leave two threads on
two processors three quarters of their speed, or a little less where they wait for each other.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from treadle.benchmarks import settings as cases
from treadle.benchmarks.figures import Samples, ratio
from treadle.benchmarks.processes import python
from treadle.benchmarks.progress import Say
from treadle.benchmarks.race import Rates, as_json, prepare, sample
from treadle.benchmarks.rivals import Entrant, Workers, cores_in_use
from treadle.benchmarks.settings import Settings, usable_cores

ROUNDS = 3
"""No more: a rival whose threads wait by spinning can take many seconds a step."""

AWAKE_S = 0.2
"""By then the busy child is busy."""

# It ends by itself where its parent was killed.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
while os.getppid() == int(sys.argv[2]):
    sum(range(100_000))
"""


@contextmanager
def spinning(core: str) -> Iterator[None]:
    """Keeps one processor busy."""
    process = subprocess.Popen(python("-c", _SPIN, core, str(os.getpid())))
    try:
        time.sleep(AWAKE_S)
        yield
    finally:
        process.kill()
        process.wait()


def disturbed(workers: Workers, settings: Settings, say: Say) -> dict[str, Any]:
    """Trains in turn undisturbed and disturbed, ours and PyTorch's.

    Returns:
        By name: rates `quiet` and `busy`, and `slowdown`, the first over the second.
    """
    case = cases.busy_case(settings)
    say(f"busy {case.label}")
    if not hasattr(os, "sched_setaffinity") or usable_cores() < 2:
        return {"notes": ["needs two processors and a system that can pin to them"]}
    tuned = {"threads": case.threads, "fused": True}
    entrants = {
        "ours": Entrant(workers.ours_held, case),
        "pytorch": Entrant(workers.pytorch_held, case, options=tuned),
    }
    quiet, notes = prepare(entrants)
    busy: Rates = {name: [] for name in quiet}
    for _ in range(min(ROUNDS, settings.rounds)):
        notes += sample(entrants, quiet, settings.seconds)
        with spinning(cores_in_use(1)):
            notes += sample(entrants, busy, settings.seconds)
    return {"label": case.label, "case": case.as_json(), **_report(entrants, quiet, busy, notes)}


def _report(names: Iterable[str], quiet: Rates, busy: Rates, notes: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = {"notes": notes}
    for name in names:
        before, during = (
            Samples(tuple(rates[name])) if rates.get(name) else None for rates in (quiet, busy)
        )
        report[name] = {
            "quiet": as_json(before),
            "busy": as_json(during),
            "slowdown": ratio(before, during),
        }
    return report
