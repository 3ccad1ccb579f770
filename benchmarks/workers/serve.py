"""`serve` is the child's side of a worker: makes a case and times rounds of it, on command.

Commands and answers are JSON, one object per line:

    -> {"do": "make", "case": {...}, "options": {...}}      <- {"made": true}
    -> {"do": "run", "seconds": 0.5}                        <- {"work": 40960, "seconds": 0.51}
    -> {"do": "answer"}                                     <- {"tokens": [...], "h": [...]}

The first line, unasked, is {"version": "..."}, or {"missing": "torch"} where the package to
measure is not installed. Whatever goes wrong with a command is answered {"error": "..."}.
Between commands the child waits in a read: it takes no processor from others.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from treadle.benchmarks.settings import Case

Options = Mapping[str, Any]
Step = Callable[[], float]
"""Does a piece of work and returns how much it was: tokens, or FLOPs."""
Maker = Callable[[Case, Options], Step]


@dataclass(frozen=True)
class CheckedStep:
    """A step of a network whose answers can be compared with the reference's."""

    step: Step
    """What is timed."""
    answers: Callable[[], dict[str, Any]]
    """Computes the case from the beginning; see `treadle.benchmarks.answers`."""

    def __call__(self) -> float:
        """Does a piece of work."""
        return self.step()


WARM_UP_STEPS = 2
"""Steps before a case counts as made: compilers compile, allocators fill."""


def timed(step: Step, seconds: float) -> dict[str, float]:
    """Repeats a step, at least once, until the time is over."""
    begin = time.perf_counter()
    work = 0.0
    elapsed = 0.0
    while elapsed < seconds:
        work += step()
        elapsed = time.perf_counter() - begin
    return {"work": work, "seconds": elapsed}


class _Server:
    """Holds the present case and answers commands."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._step: Step | None = None

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        if command["do"] == "make":
            self._step = None
            gc.collect()
            self._step = self._maker(Case(**command["case"]), command["options"])
            for _ in range(WARM_UP_STEPS):
                self._step()
            return {"made": True}
        if self._step is None:
            return {"error": "no case was made"}
        if command["do"] == "answer":
            if not isinstance(self._step, CheckedStep):
                return {"error": "the case has no answers"}
            return self._step.answers()
        return dict(timed(self._step, command["seconds"]))


def _own_pipe() -> TextIO:
    """Takes standard output for answers; what libraries print goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def serve(load: Callable[[], tuple[str, Maker]]) -> None:
    """Answers commands until the parent closes the pipe.

    Args:
        load: imports what is measured; returns its version and what makes cases.
    """
    pipe = _own_pipe()

    def say(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    try:
        version, maker = load()
    except ModuleNotFoundError as error:
        say({"missing": error.name})
        return
    say({"version": version})
    server = _Server(maker)
    for line in sys.stdin:
        try:
            say(server.answer(json.loads(line)))
        except Exception as error:  # whatever a peer raises is its result
            say({"error": f"{type(error).__name__}: {error}"})
