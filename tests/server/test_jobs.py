"""Jobs by themselves: events for everybody who follows, and an end in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from treadle.model.config import TrainConfig
from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import Job, JobRoom
from treadle.server.store import Store
from treadle.server.workers import Workers
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def progress(step: int) -> pb.TrainResponse:
    return pb.TrainResponse(progress=pb.TrainingProgress(step=step))


async def steps(job: Job, after: int = 0) -> list[int]:
    """Follows a job to its end and returns the steps that its events tell."""
    return [event.progress.step async for event in job.watch(after)]


def test_every_follower_gets_every_event_once_whenever_it_comes() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        early = asyncio.create_task(steps(job))
        await job.publish(progress(10))
        await job.publish(progress(20))
        middle = asyncio.create_task(steps(job, after=1))
        await asyncio.sleep(0)
        await job.publish(progress(30))
        await job.finish()
        assert await early == [10, 20, 30]
        assert await middle == [20, 30]
        assert await steps(job, after=2) == [30]
        assert await steps(job, after=3) == []

    asyncio.run(run())


def test_events_are_numbered_and_dated() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        for step in range(3):
            await job.publish(progress(step))
        await job.finish()
        events = [event async for event in job.watch()]
        assert [event.sequence for event in events] == [1, 2, 3]
        times = [event.event_time.ToNanoseconds() for event in events]
        assert times == sorted(times)
        assert times[0] > 0

    asyncio.run(run())


def test_a_failure_comes_after_the_last_event() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        await job.publish(progress(1))
        await job.finish(aborted("it broke"))
        events = job.watch()
        assert (await anext(events)).progress.step == 1
        with pytest.raises(StatusError, match="it broke"):
            await anext(events)

    asyncio.run(run())


def test_jobs_that_are_closed_as_soon_as_they_begin_end_and_leave_nothing(
    store: Store, tmp_path: Path
) -> None:
    async def run() -> None:
        workers = Workers(standby=0)
        room = JobRoom(store, workers, slots=1, queue_limit=2, threads=1)
        jobs = []
        for name in ("a", "b", "c"):
            corpus = store.new_file()
            corpus.write_bytes(TEXT)
            with room.admit() as place:
                jobs.append(Job(name, TrainConfig(), corpus))
                room.start(place, jobs[-1])
        assert room.queued == 3
        await room.close("the test ended")
        for job in jobs:
            with pytest.raises(StatusError, match="the test ended") as caught:
                await steps(job)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert (room.running, room.queued) == (0, 0)
        with pytest.raises(StatusError), room.admit():
            pass
        await workers.close()

    asyncio.run(run())
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "models").iterdir())
