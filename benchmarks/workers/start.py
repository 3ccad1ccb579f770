"""`load` is what a child process runs: `python -m treadle.benchmarks.workers.start pytorch`.

The module of that name is imported here, inside `serve`, so that a package that is not installed
is an answer and not a traceback.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from treadle.benchmarks.workers.serve import Maker, serve


def stay_on_cores() -> None:
    """Keeps to the processors that TREADLE_BENCH_CORES names, as in `0,1`, if it does."""
    cores = os.environ.get("TREADLE_BENCH_CORES", "")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def load() -> tuple[str, Maker]:
    """Imports the module named on the command line; returns what it measures."""
    loaded: tuple[str, Maker] = import_module(f"treadle.benchmarks.workers.{sys.argv[1]}").load()
    return loaded


if __name__ == "__main__":
    stay_on_cores()
    serve(load)
