"""A child process that answers like a worker, or fails in the way its argument says."""

import os
import sys
import time

from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step, serve

WAY = sys.argv[1]


def make(case: Case, options: Options) -> Step:
    if options.get("fail"):
        raise ValueError("no such setting")

    def step() -> float:
        if WAY == "hangs":
            time.sleep(600)
        if WAY == "dies":
            print("the last words", file=sys.stderr)
            os._exit(7)
        print("a library that prints is no answer")
        return float(options.get("work", 1))

    return CheckedStep(step, lambda: {"tokens": [[1]]}) if options.get("answers") else step


def load() -> tuple[str, Maker]:
    if WAY == "missing":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return "1.0", make


serve(load)
