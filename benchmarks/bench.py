"""`run` makes a whole run: the checks, then every selected section, into one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from treadle.benchmarks import sections
from treadle.benchmarks.checks import run_checks
from treadle.benchmarks.disturbed import disturbed
from treadle.benchmarks.int8 import int8
from treadle.benchmarks.machine import describe
from treadle.benchmarks.progress import Say
from treadle.benchmarks.rivals import Workers
from treadle.benchmarks.settings import SECTIONS, Settings
from treadle.benchmarks.start import start
from treadle.benchmarks.summary import losses, summarize

Show = Callable[[str, Any], None]
"""Takes a section's name and results, as soon as it is done."""

Measure = Callable[[Workers, Settings, Say], Any]

MEASURES: dict[str, Measure] = {
    "check": lambda workers, settings, say: run_checks(say),
    "train": sections.train,
    "bf16": sections.bf16,
    "peak": sections.peak,
    "numpy": sections.against_numpy,
    "decode": sections.decode,
    "sessions": sections.sessions,
    "score": sections.score,
    "int8": int8,
    "busy": disturbed,
    "start": lambda workers, settings, say: start(settings, say),
}


def run(settings: Settings, say: Say, show: Show) -> dict[str, Any]:
    """Runs the sections in their order.

    Returns:
        `machine`, `settings`, `versions` of what was measured, every section by name (None where
        it was not asked for) `losses` and `summary`.

    Raises:
        CheckError: a check failed; nothing after it is measured.
    """
    machine = describe()  # before any load of our own
    show("machine", machine)
    workers = Workers(settings)
    results = dict.fromkeys(SECTIONS)
    try:
        for name in SECTIONS:
            if name in settings.sections:
                results[name] = MEASURES[name](workers, settings, say)
                show(name, results[name])
        versions = workers.versions()
    finally:
        workers.close()
    return {
        "machine": machine,
        "settings": asdict(settings),
        "versions": versions,
        **results,
        "losses": losses(results),
        "summary": summarize(results),
    }
