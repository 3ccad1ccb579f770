"""Many who watch one job: one query an event, a few messages a round, and each event once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.server.errors import StatusError
from treadle.server.jobs.job import Job
from treadle.server.jobs.job_events import EventTail
from treadle.server.jobs.registry import JobRegistry
from treadle.server.resources.loop_throttle import LoopThrottle
from treadle.server.storage.database import Database
from treadle.server.storage.job_state import JobState
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S
from .samples import job_row

WATCHERS = 200
EVENTS = 150


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "treadle.db")
    yield database
    database.close()


def bounded(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S / 2):
            await main()

    asyncio.run(run())


def new_book(database: Database) -> JobRegistry:
    closing: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
    return JobRegistry(database, closing, list)


async def read_all(book: JobRegistry, seen: list[int], pause_s: float = 0.0) -> None:
    async for event in book.watch("j"):
        assert event.job == "j"
        seen.append(event.sequence)
        if pause_s:
            await asyncio.sleep(pause_s)


def progress(step: int) -> pb.JobEvent:
    return pb.JobEvent(progress=pb.TrainingProgress(step=step))


def test_an_event_is_read_once_for_all_who_watch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    events = database.events

    def counted(*arguments: Any) -> Any:
        found = events(*arguments)
        reads.append(arguments)
        return found

    monkeypatch.setattr(database, "events", counted)

    async def main() -> None:
        book = new_book(database)
        book.live["j"] = job = Job(database, database.add_job(job_row("j"), b""))
        seen: list[list[int]] = [[] for _ in range(WATCHERS)]
        watching = [asyncio.create_task(read_all(book, numbers)) for numbers in seen]
        while len(reads) < WATCHERS:  # each when it begins, when nothing is there yet
            await asyncio.sleep(0.001)
        for step in range(EVENTS - 1):
            await job.publish(progress(step))
            while min(map(len, seen)) <= step:
                await asyncio.sleep(0)
        await job.enter(JobState.SUCCEEDED)
        del book.live["j"]
        job.wake_followers()
        await asyncio.gather(*watching)
        assert all(numbers == [*range(1, EVENTS + 1)] for numbers in seen)
        assert len(reads) <= WATCHERS

    bounded(main)


def test_who_reads_slowly_misses_nothing(database: Database) -> None:
    """What is no longer in memory comes from the database."""

    async def main() -> None:
        book = new_book(database)
        book.live["j"] = job = Job(database, database.add_job(job_row("j"), b""))
        slow: list[int] = []
        watching = asyncio.create_task(read_all(book, slow, pause_s=0.002))
        for step in range(EVENTS - 1):
            await job.publish(progress(step))
        assert job.tail.after(0) is None
        await job.enter(JobState.SUCCEEDED)
        del book.live["j"]
        job.wake_followers()
        await watching
        assert slow == [*range(1, EVENTS + 1)]

    bounded(main)


def test_the_newest_events_are_bounded_in_number_and_in_bytes() -> None:
    tail = EventTail()
    assert tail.after(0) is None
    for number in range(1, 101):
        tail.add(pb.JobEvent(sequence=number))
    assert [event.sequence for event in tail.after(98) or []] == [99, 100]
    assert tail.after(100) == []
    assert tail.after(101) == []
    assert tail.after(20) is None
    for number in range(101, 121):
        large = pb.TrainingProgress(sample="x" * 100_000)
        tail.add(pb.JobEvent(sequence=number, progress=large))
    assert tail.after(117) is None
    assert [event.sequence for event in tail.after(118) or []] == [119, 120]


def test_a_query_for_events_ends_by_their_bytes(database: Database) -> None:
    database.add_job(job_row("j"), b"")
    for _ in range(5):
        database.append_event("j", b"x" * 100, 1.0)
    assert [number for number, _, _ in database.events("j", 0, max_bytes=250)] == [1, 2, 3]
    assert [number for number, _, _ in database.events("j", 3, max_bytes=1)] == [4]


def test_a_few_pass_in_each_round() -> None:
    async def main() -> None:
        loop_throttle = LoopThrottle(4)
        rounds = [0]
        passed = list[int]()

        async def count() -> None:
            while len(passed) < 41:
                rounds[0] += 1
                await asyncio.sleep(0)

        async def go_through() -> None:
            await loop_throttle.wait_turn()
            passed.append(rounds[0])

        tasks = [asyncio.create_task(go_through()) for _ in range(42)]
        await asyncio.sleep(0)
        tasks[-1].cancel()  # a cancelled task takes no turn
        await asyncio.gather(count(), *tasks, return_exceptions=True)
        assert len(passed) == 41
        assert passed == sorted(passed)
        assert max(passed.count(number) for number in passed) <= 8
        assert len(set(passed)) >= 8
        await asyncio.sleep(0.01)
        await loop_throttle.wait_turn()  # also after it stood still

    bounded(main)
