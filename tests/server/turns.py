"""Tasks for tests of the scheduler, and a clock that only their turns make go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.sharing.share import Share, Task

PATIENCE_S = 120.0


@contextmanager
def scheduler_of(threads: int) -> Iterator[Scheduler]:
    scheduler = Scheduler(threads)
    try:
        yield scheduler
    finally:
        scheduler.close()


class Clock:
    """The scheduler's clock; only the turns of tests make it go."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def still_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("treadle.server.inference.scheduler.time", clock)
    return clock


class Worker(Task):
    """Takes turns of a length of its own until a number of them is over."""

    def __init__(
        self,
        clock: Clock,
        name: str,
        log: list[str],
        turns: int,
        turn_s: float = 0.002,
        share: Share | None = None,
    ) -> None:
        self.clock = clock
        self.name = name
        self.log = log
        self.turns = turns
        self.turn_s = turn_s
        self.share = share
        self.done = threading.Event()

    def take_turn(self, turn_s: float) -> bool:
        self.log.append(self.name)
        self.clock.now_s += self.turn_s
        self.turns -= 1
        if not self.turns:
            self.done.set()
        return self.turns > 0


class Gate(Task):
    """Holds a thread until it is opened."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.opened = threading.Event()

    def take_turn(self, turn_s: float) -> bool:
        self.held.set()
        assert self.opened.wait(PATIENCE_S)
        return False


@contextmanager
def held(scheduler: Scheduler) -> Iterator[None]:
    """Holds the only thread, so that nobody has a turn before all are awake."""
    gate = Gate()
    gate.share = scheduler.share("gate")
    scheduler.wake(gate)
    assert gate.held.wait(PATIENCE_S)
    try:
        yield
    finally:
        gate.opened.set()


def wake_together(scheduler: Scheduler, *workers: Worker) -> None:
    """Wakes workers of whom none has a turn before all are awake."""
    with held(scheduler):
        for worker in workers:
            scheduler.wake(worker)
