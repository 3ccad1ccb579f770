from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from treadle.server.scheduler import LONG_TURN_S, TURN_S, Scheduler, Taker

PATIENCE_S = 60.0


@contextmanager
def scheduler_of(threads: int) -> Iterator[Scheduler]:
    scheduler = Scheduler(threads)
    try:
        yield scheduler
    finally:
        scheduler.close()


class Worker(Taker):
    """Takes turns of a length of its own until a number of them is over."""

    def __init__(self, name: str, log: list[str], turns: int, turn_s: float = 0.002) -> None:
        self.name, self.log, self.turns, self.turn_s = name, log, turns, turn_s
        self.done = threading.Event()

    def take_turn(self, turn_s: float) -> bool:
        self.log.append(self.name)
        time.sleep(self.turn_s)
        self.turns -= 1
        if not self.turns:
            self.done.set()
        return self.turns > 0


def test_turns_go_round() -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        workers = [Worker(name, log, 20) for name in "abc"]
        for worker in workers:
            scheduler.wake(worker)
        for worker in workers:
            assert worker.done.wait(PATIENCE_S)
    for start in range(3, 54, 9):  # sleeping is not exact
        assert set(log[start : start + 6]) == set("abc")


def test_who_takes_longer_gets_fewer_turns() -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        slow, quick = Worker("s", log, 10, 0.02), Worker("q", log, 200, 0.002)
        scheduler.wake(slow)
        scheduler.wake(quick)
        assert slow.done.wait(PATIENCE_S)
    assert log.count("q") > 3 * log.count("s")


def test_one_who_stands_for_many_gets_more_time() -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        heavy, light = Worker("h", log, 90), Worker("l", log, 90)
        heavy.weight = 8
        scheduler.wake(heavy)
        scheduler.wake(light)
        assert heavy.done.wait(PATIENCE_S)
    assert log[:90].count("h") > 3 * log[:90].count("l")


def test_time_not_asked_for_is_lost() -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        busy, late = Worker("b", log, 100), Worker("l", log, 100)
        scheduler.wake(busy)
        while len(log) < 30:
            time.sleep(0.001)
        scheduler.wake(late)
        assert late.done.wait(PATIENCE_S)
    after = log[log.index("l") :]
    assert 0.3 < after[:40].count("b") / 40 < 0.7


def test_work_is_done_and_its_error_raised() -> None:
    async def run() -> None:
        with scheduler_of(2) as scheduler:
            caller = scheduler.caller()
            assert await caller.run(lambda turn_s: turn_s) in (TURN_S, LONG_TURN_S)
            with pytest.raises(ZeroDivisionError):
                await caller.run(lambda _: 1 // 0)
            assert await caller.run(lambda _: threading.current_thread().name) != "MainThread"

    asyncio.run(run())


def test_work_of_a_cancelled_call_is_not_begun() -> None:
    begun: list[str] = []

    async def run() -> None:
        with scheduler_of(1) as scheduler:
            free = threading.Event()

            def wait(_: float) -> None:
                free.wait(PATIENCE_S)
                begun.append("first")

            first = asyncio.create_task(scheduler.caller().run(wait))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(scheduler.caller().run(lambda _: begun.append("second")))
            await asyncio.sleep(0.05)
            second.cancel()
            await asyncio.sleep(0)
            free.set()
            await first
            await scheduler.caller().run(lambda _: begun.append("third"))

    asyncio.run(run())
    assert begun == ["first", "third"]


def test_a_closed_scheduler_lets_its_threads_go() -> None:
    before = set(threading.enumerate())
    with scheduler_of(3):
        own = {t for t in set(threading.enumerate()) - before if t.name.startswith("turn-")}
        assert len(own) == 3
    end = time.monotonic() + PATIENCE_S
    while any(thread.is_alive() for thread in own):
        assert time.monotonic() < end
        time.sleep(0.01)
