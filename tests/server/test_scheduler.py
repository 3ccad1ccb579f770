from __future__ import annotations

import asyncio
import threading
import time

import pytest

from treadle.server.inference.call_task import CallTask
from treadle.server.inference.scheduler import LONG_TURN_S, Scheduler
from treadle.server.inference.sharing.share import TURN_S, Task

from .turns import PATIENCE_S, Clock, Worker, scheduler_of, still_clock, wake_together


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return still_clock(monkeypatch)


def test_turns_go_round(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        workers = [Worker(clock, name, log, 20) for name in "abc"]
        wake_together(scheduler, *workers)
        for worker in workers:
            assert worker.done.wait(PATIENCE_S)
    for start in range(0, 60, 3):
        assert set(log[start : start + 3]) == set("abc")


def test_who_takes_longer_gets_fewer_turns(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        slow = Worker(clock, "s", log, 10, 0.02)
        quick = Worker(clock, "q", log, 200, 0.002)
        wake_together(scheduler, slow, quick)
        assert slow.done.wait(PATIENCE_S)
    assert log[: log.index("s", 50)].count("q") > 3 * log[: log.index("s", 50)].count("s")


def test_one_who_stands_for_many_gets_more_time(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        heavy = Worker(clock, "h", log, 90)
        light = Worker(clock, "l", log, 90)
        heavy.weight = 8
        wake_together(scheduler, heavy, light)
        assert heavy.done.wait(PATIENCE_S)
    assert log[:90].count("h") > 3 * log[:90].count("l")


def test_time_not_asked_for_is_lost(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        early = Worker(clock, "e", log, 30)
        wake_together(scheduler, early)
        assert early.done.wait(PATIENCE_S)
        busy = Worker(clock, "b", log, 100)
        late = Worker(clock, "l", log, 100)
        busy.used_s = early.used_s
        wake_together(scheduler, busy, late)
        assert busy.done.wait(PATIENCE_S)
        assert late.done.wait(PATIENCE_S)
    after = log[30:]
    assert 0.4 < after[:40].count("b") / 40 < 0.6


def test_work_is_done_and_its_error_raised() -> None:
    async def run() -> None:
        with scheduler_of(2) as scheduler:
            caller = CallTask(scheduler, "")
            assert await caller.run(lambda turn_s: turn_s) in (TURN_S, LONG_TURN_S)
            with pytest.raises(ZeroDivisionError):
                await caller.run(lambda _: 1 // 0)
            assert await caller.run(lambda _: threading.current_thread().name) != "MainThread"

    asyncio.run(run())


def test_work_of_a_cancelled_call_is_not_begun() -> None:
    begun: list[str] = []

    async def run() -> None:
        with scheduler_of(1) as scheduler:
            held = threading.Event()
            free = threading.Event()

            def wait(_: float) -> None:
                held.set()
                free.wait(PATIENCE_S)
                begun.append("first")

            first = asyncio.create_task(CallTask(scheduler, "").run(wait))
            assert await asyncio.to_thread(held.wait, PATIENCE_S)
            second = asyncio.create_task(
                CallTask(scheduler, "").run(lambda _: begun.append("second"))
            )
            await asyncio.sleep(0)  # the second one has asked for its turn
            second.cancel()
            await asyncio.sleep(0)
            free.set()
            await first
            await CallTask(scheduler, "").run(lambda _: begun.append("third"))

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


class Panic(BaseException):
    """What a package in Rust raises where it panics: no Exception."""


class Panicking(Task):
    """Panics in its turn."""

    def __init__(self) -> None:
        self.turns = 0

    def take_turn(self, turn_s: float) -> bool:
        self.turns += 1
        raise Panic("index out of bounds")


def test_a_thread_outlives_a_turn_that_panics(caplog: pytest.LogCaptureFixture) -> None:
    async def main(scheduler: Scheduler) -> None:
        def panic(_: float) -> None:
            raise Panic("index out of bounds")

        panicking = Panicking()
        scheduler.wake(panicking)
        with pytest.raises(Panic):
            await CallTask(scheduler, "").run(panic)
        assert (
            await CallTask(scheduler, "").run(lambda _: threading.current_thread().name) == "turn-0"
        )
        assert panicking.turns == 1

    with scheduler_of(1) as scheduler:
        asyncio.run(asyncio.wait_for(main(scheduler), PATIENCE_S / 2))
    assert "a turn failed" in caplog.text
