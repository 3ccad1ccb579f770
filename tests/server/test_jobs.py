"""Jobs by themselves: events for everybody who follows, and an end in any order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from treadle.model import train
from treadle.model.config import NetworkConfig, TrainConfig
from treadle.server import wire
from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import KEPT_PROGRESS, Job, JobRoom
from treadle.server.store import Store
from treadle.server.workers import Worker, Workers
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT


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
        job.publish(progress(10))
        job.publish(progress(20))
        middle = asyncio.create_task(steps(job, after=1))
        await asyncio.sleep(0)
        job.publish(progress(30))
        job.finish()
        assert await early == [10, 20, 30]
        assert await middle == [20, 30]
        assert await steps(job, after=2) == [30]
        assert await steps(job, after=3) == []

    asyncio.run(run())


def test_events_are_numbered_and_dated() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        for step in range(3):
            job.publish(progress(step))
        job.finish()
        events = [event async for event in job.watch()]
        assert [event.sequence for event in events] == [1, 2, 3]
        times = [event.event_time.ToNanoseconds() for event in events]
        assert times == sorted(times)
        assert times[0] > 0

    asyncio.run(run())


def test_a_failure_comes_after_the_last_event() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        job.publish(progress(1))
        job.finish(aborted("it broke"))
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


def test_only_the_last_progress_is_kept_and_who_is_behind_skips_the_rest() -> None:
    async def run() -> None:
        job = Job("m", TrainConfig(), Path())
        job.publish(pb.TrainResponse(started=pb.TrainingStarted()))
        behind = job.watch()
        assert (await anext(behind)).sequence == 1
        for step in range(2, KEPT_PROGRESS + 12):
            job.publish(progress(step))
        job.publish(pb.TrainResponse(completed=pb.Model()))
        job.finish()
        last = KEPT_PROGRESS + 12
        assert [event.sequence async for event in behind] == list(range(12, last + 1))
        late = [event async for event in job.watch()]
        assert [event.sequence for event in late] == [1, *range(12, last + 1)]
        assert late[0].HasField("started")
        assert late[-1].HasField("completed")
        assert [event.sequence async for event in job.watch(after=last - 2)] == [last - 1, last]

    asyncio.run(run())


class FakeWorker:
    """Says what a test wants said, and saves the same model in every job."""

    def __init__(self, model: bytes) -> None:
        self.sent: list[wire.Message] = []
        self._model = model
        self._stop = asyncio.Event()

    def send(self, message: wire.Message) -> None:
        self.sent.append(message)
        if "stop" in message:
            self._stop.set()

    async def receive(self) -> wire.Message:
        Path(self.sent[0]["job"]["model"]).write_bytes(self._model)
        return {"event": "saved"}


class StubbornWorker(FakeWorker):
    """Goes on until it is told to stop, without having made a step."""

    async def receive(self) -> wire.Message:
        await self._stop.wait()
        return {"event": "stopped", "reason": self.sent[-1]["stop"]}


class FakeWorkers(Workers):
    """Gives out one worker."""

    def __init__(self, worker: FakeWorker) -> None:
        super().__init__(standby=0)
        self._worker = worker

    async def take(self) -> Worker:
        return cast("Worker", self._worker)

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m"
    network = NetworkConfig(hidden_size=2, embedding_size=2)
    train(b"abcabcabcabc", TrainConfig(network=network), max_steps=1).save(path)
    return path.read_bytes()


def begin(room: JobRoom, store: Store) -> Job:
    """Starts a job of the name `m`."""
    corpus = store.new_file()
    with room.admit() as place:
        job = Job("m", TrainConfig(), corpus)
        room.start(place, job)
    return job


class Gate:
    """Holds up a method of the store, in its thread, until the test lets it go."""

    def __init__(self, store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        method = getattr(store, name)

        def held(*arguments: Any) -> Any:
            self._entered.set()
            assert self._open.wait(PATIENCE_S)
            return method(*arguments)

        monkeypatch.setattr(store, name, held)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("held", ["claim", "describe", "discard"])
def test_a_finished_model_is_kept_whenever_the_job_is_killed(
    store: Store, tmp_path: Path, model: bytes, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        room = JobRoom(store, FakeWorkers(FakeWorker(model)), slots=1, queue_limit=1, threads=1)
        gate = Gate(store, held, monkeypatch)
        job = begin(room, store)
        await gate.entered()
        killing = asyncio.create_task(room.kill("the test ended"))
        for _ in range(3):
            await asyncio.sleep(0)
        gate.open()
        await killing
        events = [event async for event in job.watch()]
        assert events[-1].completed.version == 1
        assert (room.running, room.queued) == (0, 0)

    asyncio.run(run())
    assert store.versions("m") == [1]
    assert not list((tmp_path / "tmp").iterdir())


def test_followers_hear_of_the_end_even_if_the_corpus_cannot_be_removed(
    store: Store, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("the disk is on fire")

    async def run() -> None:
        room = JobRoom(store, FakeWorkers(FakeWorker(model)), slots=1, queue_limit=1, threads=1)
        monkeypatch.setattr(store, "discard", broken)
        job = begin(room, store)
        (task,) = room._tasks.values()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StatusError):
                await steps(job)
        with pytest.raises(RuntimeError):
            await task
        await room.close("no task is left to wait for")
        assert not room._tasks

    asyncio.run(run())


def test_what_cannot_be_removed_is_logged(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(Path, "unlink", refuse)
    store.discard(store.new_file())
    assert "the disk is on fire" in caplog.text


def test_a_run_that_takes_too_long_is_told_to_stop(store: Store, model: bytes) -> None:
    async def run() -> None:
        worker = StubbornWorker(model)
        workers = FakeWorkers(worker)
        room = JobRoom(store, workers, slots=1, queue_limit=1, threads=1, max_run_s=0.01)
        with pytest.raises(StatusError, match=r"after 0\.01 seconds.*nothing was") as caught:
            await steps(begin(room, store))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())
