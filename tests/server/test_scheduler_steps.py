"""`CallTask.run_steps` and `CallTask.iterate`: long work in turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from treadle.server.inference.call_task import CallTask
from treadle.server.inference.scheduler import Scheduler

from .harness import PATIENCE_S


class Steps:
    """Steps that are counted; the one at `gate` waits until it is let go."""

    def __init__(self, count: int, gate: int = -1) -> None:
        self.taken = 0
        self.threads: set[str] = set()
        self.waits = threading.Event()
        self.go = threading.Event()
        self._count = count
        self._gate = gate

    def __iter__(self) -> Iterator[None]:
        for number in range(self._count):
            self.taken += 1
            self.threads.add(threading.current_thread().name)
            if number == self._gate:
                self.waits.set()
                assert self.go.wait(PATIENCE_S)
            yield


def test_all_steps_are_taken_away_from_the_event_loop() -> None:
    scheduler = Scheduler(1)
    steps = Steps(1000)
    asyncio.run(CallTask(scheduler, "").run_steps(iter(steps)))
    scheduler.close()
    assert steps.taken == 1000
    assert threading.current_thread().name not in steps.threads


def test_an_error_of_a_step_ends_the_work() -> None:
    def fail() -> Iterator[None]:
        yield
        raise ValueError("no")

    scheduler = Scheduler(1)
    with pytest.raises(ValueError, match="no"):
        asyncio.run(CallTask(scheduler, "").run_steps(fail()))
    scheduler.close()


def test_work_that_nobody_waits_for_ends_with_its_step() -> None:
    scheduler = Scheduler(1)
    steps = Steps(1000, gate=3)

    async def leave() -> None:
        task = asyncio.create_task(CallTask(scheduler, "").run_steps(iter(steps)))
        await asyncio.to_thread(steps.waits.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.go.set()

    asyncio.run(leave())
    scheduler.close()
    done = [thread for thread in threading.enumerate() if thread.name.startswith("turn")]
    for thread in done:
        thread.join(60)
    assert steps.taken == 4


def test_no_step_is_taken_before_the_reader_has_what_the_one_before_made() -> None:
    scheduler = Scheduler(1)
    taken = [0]

    def numbers() -> Iterator[int | None]:
        for number in range(30):
            taken[0] += 1
            yield number if number % 3 == 2 else None

    async def read() -> None:
        found = []
        async for number in CallTask(scheduler, "").iterate(numbers()):
            found.append(number)
            await CallTask(scheduler, "").run(lambda _: None)  # time for a step too many
            assert taken[0] == number + 1
        assert found == list(range(2, 30, 3))

    asyncio.run(read())
    scheduler.close()
