"""Managers that share a database: each job is run by one of them, and known to all."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from treadle.model import Model, train
from treadle.model.config import NetworkConfig, TrainConfig
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.quotas import Quotas
from treadle.server.errors import StatusError, aborted
from treadle.server.failures import BlobsUnavailableError, DatabaseUnavailableError, LostLeaseError
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.executor import JobNeeds, OnWait, Worker
from treadle.server.jobs.executors.worker_pool import WorkerPool
from treadle.server.jobs.job import Job
from treadle.server.jobs.job_blobs import JobBlobs
from treadle.server.jobs.job_decisions import JobDecisions
from treadle.server.jobs.job_queue import JobLimits, JobQueue
from treadle.server.jobs.leases.lease_keeper import Replica
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.submissions.submission import new_id, new_row
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.database.change import Change
from treadle.server.storage.job_files import FINAL_FILE
from treadle.server.storage.lease import Lease
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, until
from .samples import job_row

LEASE_S = 0.6
"""Long enough for a busy machine to renew it, four times."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m"
    network = NetworkConfig(hidden_size=2, embedding_size=2)
    train(b"abcabcabcabc", TrainConfig(network=network), max_steps=1).save(path)
    return path.read_bytes()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    """The one data directory of all managers of a test."""
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


class ScriptedWorker:
    """Reports what it was made to report, then runs until it is asked to leave or killed."""

    pid = 0
    took_too_much = starved = lost = False
    alive = True

    def __init__(self, model: bytes, *messages: worker_protocol.Message, saves: bool) -> None:
        self._model = model
        self._messages = list(messages)
        self._saves = saves
        self._asked = asyncio.Event()
        self.sent: list[worker_protocol.Message] = []
        self.killed = ""

    def send(self, message: worker_protocol.Message) -> None:
        self.sent.append(message)

    def ask_to_leave(self, message: worker_protocol.Message) -> None:
        self.send(message)
        self._asked.set()

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        await asyncio.sleep(PATIENCE_S)

    def kill(self, why: str = "was killed") -> None:
        self.killed = why
        self._asked.set()

    async def receive(self) -> worker_protocol.Message:
        if self._messages:
            return dict(self._messages.pop(0))
        if self._saves:
            place = Path(self.sent[0]["job"]["directory"]) / FINAL_FILE
            place.write_bytes(self._model)
            return {"event": "saved"}
        await self._asked.wait()
        if self.killed:
            raise aborted(self.killed)
        last = next(sent for sent in reversed(self.sent) if {"stop", "pause"} & set(sent))
        if "stop" in last:
            return {"event": "stopped", "reason": last["stop"]}
        return {"event": "paused", "reason": last["pause"], "needs_bytes": 0}


class ScriptedPool(WorkerPool):
    """Gives out workers as a test makes them."""

    def __init__(self, make: Callable[[], ScriptedWorker]) -> None:
        super().__init__(standby=0)
        self._make = make
        self.given: list[ScriptedWorker] = []

    async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
        self.given.append(self._make())
        return cast("Worker", self.given[-1])

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))


@dataclass
class Server:
    """A manager and its workers."""

    jobs: JobManager
    workers: ScriptedPool

    async def submit(self, data_dir: DataDir, name: str = "m", **fields: Any) -> str:
        """Queues a job on TEXT; returns its id, or that of an earlier one."""
        writer = data_dir.corpora.writer()
        writer.write(TEXT)
        sha256, size = writer.claim()
        file = UploadedFile(sha256, "corpus", "train", 1.0, size)
        spec = pb.TrainSpec(model=name, request_id=fields.pop("request_id", ""))
        row = new_row(new_id(), spec, TrainConfig(), [file], **fields)
        return (await self.jobs.submit(row)).id

    async def follow(self, job: str, after: int = 0) -> list[pb.JobEvent]:
        async with asyncio.timeout(PATIENCE_S):
            return [event async for event in self.jobs.registry.watch(job, after)]

    async def state(self, job: str) -> str:
        return (await self.jobs.registry.row(job)).state


def progress(step: int) -> worker_protocol.Message:
    return {"event": "progress", "step": step, "tokens_seen": step}


_NAMES = (f"r{number}" for number in itertools.count())


@asynccontextmanager
async def servers(
    data_dir: DataDir,
    *makes: Callable[[], ScriptedWorker],
    quotas: QuotaBook | None = None,
    lease_s: float = LEASE_S,
    slots: int = 1,
) -> AsyncIterator[list[Server]]:
    """Runs a manager for each way to make workers; each runs jobs as soon as `open` is called."""
    made = []
    for make in makes:
        pool = ScriptedPool(make)
        manager = JobManager(
            data_dir,
            pool,
            JobLimits(slots, 9, 9, 2),
            RunLimits(1, checkpoint_interval_s=1.0, min_free_bytes=0),
            quotas=quotas,
            replica=Replica(next(_NAMES), "", lease_s),
        )
        await manager.recover()
        made.append(Server(manager, pool))
    loop = asyncio.get_running_loop()
    engine = data_dir.database.engine
    before = engine.notify

    def announce(change: Change) -> None:
        """Announces a change soon, when its transaction is over, as PostgreSQL does."""
        loop.call_soon_threadsafe(loop.call_later, 0.02, note, change)

    def note(change: Change) -> None:
        for server in made:
            assert server.jobs.replica is not None
            server.jobs.replica.wake(change.name)
            server.jobs.replica.keeper.look()

    engine.notify = announce  # type: ignore[method-assign]
    try:
        yield made
    finally:
        engine.notify = before  # type: ignore[method-assign]
        for server in made:
            await server.jobs.close("the test ended")


def test_each_job_is_run_by_one_server_and_followed_from_all(
    data_dir: DataDir, model: bytes
) -> None:
    def make() -> ScriptedWorker:
        return ScriptedWorker(model, progress(1), progress(2), progress(3), saves=True)

    async def run() -> None:
        async with servers(data_dir, make, make) as (first, second):
            jobs = [await first.submit(data_dir, f"m{number}") for number in range(6)]
            early = [
                asyncio.create_task(server.follow(job))
                for job in jobs
                for server in (first, second)
            ]
            first.jobs.open()
            second.jobs.open()
            followed = await asyncio.gather(*early)
            for here, there in zip(followed[::2], followed[1::2], strict=True):
                assert here == there
                assert [event.sequence for event in here] == list(range(1, len(here) + 1))
                steps = [e.progress.step for e in here if e.HasField("progress")]
                assert (steps, here[-1].completed.version) == ([1, 2, 3], 1)
            assert len(first.workers.given) + len(second.workers.given) == 6

    asyncio.run(run())


def test_a_job_of_a_server_that_is_gone_goes_on_elsewhere(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), progress(2), saves=True)

        async with servers(data_dir, stays, saves) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            here = first.jobs.registry.live
            await until(lambda: job in here and here[job].last_progress.step == 1)
            lost = here[job]
            assert first.jobs.replica is not None
            await first.jobs.replica.keeper.stop()  # as if its process stood still
            second.jobs.open()
            events = await second.follow(job)
            steps = [e.progress.step for e in events if e.HasField("progress")]
            assert (steps, events[-1].completed.version) == ([1, 2], 1)
            with pytest.raises(LostLeaseError):
                await lost.publish(pb.JobEvent(progress=pb.TrainingProgress(step=9)))
            with pytest.raises(LostLeaseError):
                await lost.change(reason="still here")
            await first.jobs.replica.keeper.renew()  # it moves again
            await until(lambda: job not in here)
            assert "elsewhere" in first.workers.given[0].killed
            assert await first.follow(job) == events

    asyncio.run(run())


def test_requests_for_a_job_may_be_made_of_any_server(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            assert (await second.jobs.decisions.pause(job)).state == "paused"
            assert job not in first.jobs.registry.live
            assert (await second.jobs.decisions.resume(job)).state in ("queued", "running")
            await until(lambda: len(first.workers.given) == 2)
            with pytest.raises(StatusError, match="cancel or pause it before"):
                await second.jobs.decisions.delete(job)
            cancelled = await second.jobs.decisions.cancel(job)
            assert cancelled.state in ("cancelled", "running")
            with pytest.raises(StatusError) as caught:
                await second.follow(job)
            assert caught.value.code is grpc.StatusCode.CANCELLED
            with pytest.raises(StatusError, match="cannot be paused"):
                await second.jobs.decisions.pause(job)
            await second.jobs.decisions.delete(job)
            with pytest.raises(StatusError) as caught:
                await first.follow(job)
            assert caught.value.code is grpc.StatusCode.NOT_FOUND

    asyncio.run(run())


def test_a_job_that_nobody_runs_obeys_any_server(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, saves=True)

        async with servers(data_dir, saves, saves) as (first, second):
            waits = await first.submit(data_dir)
            ends = await first.submit(data_dir)
            goes = await first.submit(data_dir)
            assert (await second.jobs.decisions.pause(waits)).state == "paused"
            assert (await first.jobs.decisions.cancel(ends)).state == "cancelled"
            assert (await second.jobs.decisions.pause(goes)).state == "paused"
            await first.jobs.decisions.delete(goes)
            assert not first.jobs.registry.live
            assert not second.jobs.registry.live
            second.jobs.open()
            assert (await first.jobs.decisions.resume(waits)).state in ("queued", "running")
            assert (await first.follow(waits))[-1].completed.version == 1

    asyncio.run(run())


def test_a_request_that_its_server_does_not_live_to_heed_is_heeded_by_the_next(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            assert first.jobs.replica is not None
            await first.jobs.replica.keeper.stop()
            second.jobs.open()
            row = await second.jobs.registry.row(job)
            data_dir.database.update_job(job, fence=row.fence, request="cancel")
            with pytest.raises(StatusError) as caught:
                await second.follow(job)
            assert caught.value.code is grpc.StatusCode.CANCELLED
            assert not second.workers.given

    asyncio.run(run())


def test_a_request_to_a_server_that_is_gone_is_heeded_where_no_slot_is_free(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays) as (first, second):
            first.jobs.open()
            cancelled = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            assert first.jobs.replica is not None
            await first.jobs.replica.keeper.stop()
            data_dir.database.update_job(cancelled, request="cancel")
            with pytest.raises(StatusError) as caught:
                await second.follow(cancelled)
            assert caught.value.code is grpc.StatusCode.CANCELLED
            assert not second.workers.given
            await until(lambda: not data_dir.database.job(cancelled).holder)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_server_that_closes_gives_its_jobs_to_the_others(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=True)

        async with servers(data_dir, stays, saves, lease_s=PATIENCE_S) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            following = asyncio.create_task(first.follow(job))
            await asyncio.sleep(0)
            await first.jobs.close("it is replaced")
            with pytest.raises(StatusError, match="continues on another replica"):
                await following
            second.jobs.open()
            assert (await second.follow(job))[-1].completed.version == 1

    asyncio.run(run())


def test_a_request_id_at_two_servers_at_once_makes_one_job(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, stays) as (first, second):
            submitting = [
                server.submit(data_dir, owner="ann", request_id="once")
                for server in (first, second, first, second)
            ]
            assert len(set(await asyncio.gather(*submitting))) == 1
            assert len(data_dir.database.jobs()) == 1

    asyncio.run(run())


def test_quotas_and_positions_hold_for_the_jobs_of_all_servers(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        quotas = QuotaBook(lambda _: Quotas(jobs_running=1))
        async with servers(data_dir, stays, stays, quotas=quotas) as (first, second):
            jobs = [await first.submit(data_dir, owner="ann") for _ in range(3)]
            first.jobs.open()
            second.jobs.open()
            await until(lambda: first.workers.given or second.workers.given)
            for server in (first, second):
                assert server.jobs.replica is not None
                server.jobs.replica.keeper.look()
            await asyncio.sleep(0.2)
            assert len(first.workers.given) + len(second.workers.given) == 1
            for server in (first, second):
                backlog = await server.jobs.backlog()
                assert (backlog.running_of("ann"), backlog.waiting_of("ann")) == (1, 2)
                assert (backlog.position(jobs[1]), backlog.position(jobs[2])) == (0, 1)
                assert backlog.models() == ["m"] * 3

    asyncio.run(run())


def test_events_wait_for_the_database_and_are_stored_once_and_in_order(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = data_dir.database.append_event
    outages = iter([False, True, True, False, True, False, True])

    def flaky(*arguments: Any, **named: Any) -> int:
        """Loses its answer where an outage is odd, and does nothing where it is even."""
        is_out = next(outages, False)
        flaky.count += is_out  # type: ignore[attr-defined]
        if is_out and flaky.count % 2:  # type: ignore[attr-defined]
            append(*arguments, **named)
        if is_out:
            raise DatabaseUnavailableError("it cannot be reached")
        return append(*arguments, **named)

    flaky.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(data_dir.database, "append_event", flaky)

    async def run() -> None:
        def make() -> ScriptedWorker:
            return ScriptedWorker(model, *(progress(step) for step in range(1, 6)), saves=True)

        async with servers(data_dir, make, lease_s=PATIENCE_S) as (only,):
            only.jobs.open()
            events = await only.follow(await only.submit(data_dir))
            steps = [e.progress.step for e in events if e.HasField("progress")]
            assert steps == [1, 2, 3, 4, 5]
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert flaky.count == 4  # type: ignore[attr-defined]

    asyncio.run(run())


def test_leases_that_ran_out_in_an_outage_are_left_to_their_holders(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays, lease_s=1.0) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            row = data_dir.database.job(job)
            assert row is not None
            is_out = True
            for name in ("renew", "acquire_next", "requests", "append_event", "update_job"):
                method = getattr(data_dir.database, name)

                def out(*arguments: Any, method: Any = method, **named: Any) -> Any:
                    if is_out:
                        raise DatabaseUnavailableError("it cannot be reached")
                    return method(*arguments, **named)

                monkeypatch.setattr(data_dir.database, name, out)
            second.jobs.open()
            await until(lambda: data_dir.database.now_s() > row.lease_until_s + 0.2)
            is_out = False
            await asyncio.sleep(1.2)
            assert not second.workers.given
            assert job in first.jobs.registry.live

    asyncio.run(run())


def test_a_job_that_is_lost_does_not_wait_to_record_its_end(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.completion._FULL_RETRY_S", 0.01)

    def out(*_: object, **named: object) -> None:
        raise BlobsUnavailableError("they cannot be reached")

    monkeypatch.setattr(data_dir.models, "claim_file", out)

    async def run() -> None:
        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, saves=True)

        async with servers(data_dir, saves, lease_s=PATIENCE_S) as (only,):
            only.jobs.open()
            name = await only.submit(data_dir)
            await until(lambda: only.workers.given and only.jobs.registry.live)
            job = only.jobs.registry.live[name]
            await until(lambda: only.jobs.queue.is_ending(job))
            assert only.jobs.replica is not None
            only.jobs.replica.lose(job)
            await until(lambda: not only.jobs.queue.tasks())

    asyncio.run(run())


def test_a_job_waits_for_the_database_before_its_process_starts(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.job._RETRY_S", 0.01)
    read = data_dir.database.job
    calls = itertools.count()

    def flaky(job: str) -> Any:
        if next(calls) % 2:
            raise DatabaseUnavailableError("it cannot be reached")
        return read(job)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            await only.submit(data_dir)
            with monkeypatch.context() as patch:
                patch.setattr(data_dir.database, "job", flaky)
                only.jobs.open()
                only.jobs.replica.keeper.look()  # type: ignore[union-attr]
                await until(lambda: only.workers.given and only.workers.given[0].sent)

    asyncio.run(run())


def test_a_cancel_that_comes_while_a_pause_is_heeded_is_heeded_next(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = JobDecisions.answer

    async def interrupted(jobs: JobDecisions, job: Job, request: str) -> None:
        await answer(jobs, job, request)
        if request == "pause":
            row = data_dir.database.job(job.id)
            assert row is not None
            data_dir.database.add_request(job.id, row.fence, "cancel")

    monkeypatch.setattr(JobDecisions, "answer", interrupted)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays, lease_s=PATIENCE_S) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            with suppress(StatusError):  # it may say already that the job is being cancelled
                await second.jobs.decisions.pause(job)
            with pytest.raises(StatusError) as caught:
                await second.follow(job)
            assert caught.value.code is grpc.StatusCode.CANCELLED

    asyncio.run(run())


def test_nothing_replaces_a_request_to_cancel(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays, lease_s=PATIENCE_S) as (first, second):
            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            row = data_dir.database.job(job)
            assert row is not None
            assert data_dir.database.add_request(job, row.fence, "pause")
            assert data_dir.database.add_request(job, row.fence, "cancel")
            assert not data_dir.database.add_request(job, row.fence, "resume")
            assert not data_dir.database.remove_request(job, row.fence, "pause")
            with pytest.raises(StatusError, match="is being cancelled and cannot be paused"):
                await second.jobs.replica.ask(row, "pause")  # type: ignore[union-attr]
            assert data_dir.database.remove_request(job, row.fence, "cancel")

    asyncio.run(run())


def test_a_request_is_taken_over_with_a_job_that_is_taken_for_another(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            replica = only.jobs.replica
            assert replica is not None
            for request, state in (("pause", "paused"), ("resume", "queued")):
                data_dir.database.update_job(job, request=request)
                taken = await replica.take(job)
                assert taken is not None
                assert taken.row.state == state
                row = data_dir.database.job(job)
                assert row is not None
                assert (row.state, row.request) == (state, "")
                replica.settle(taken)
                await until(lambda: not data_dir.database.job(job).holder)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_job_that_another_server_has_is_not_deleted(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.job_decisions._TAKE_S", 0.0)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            await only.jobs.decisions.pause(job)
            await until(lambda: not only.jobs.registry.live)
            database = data_dir.database
            await until(lambda: database.acquire_job("other", job, PATIENCE_S))
            with pytest.raises(StatusError, match="changes hands"):
                await only.jobs.decisions.delete(job)
            row = database.job(job)
            assert row is not None
            database.release(job, row.fence)
            await only.jobs.decisions.delete(job)
            assert database.job(job) is None

    asyncio.run(run())


def test_a_job_that_cannot_be_taken_is_not_kept(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("the disk failed")

    monkeypatch.setattr(JobManager, "_recover", broken)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            with pytest.raises(OSError, match="the disk failed"):
                await only.jobs.replica.take(job)  # type: ignore[union-attr]
            assert not only.jobs.registry.live

    asyncio.run(run())


def test_a_job_whose_files_cannot_be_removed_is_given_back(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: str) -> None:
        raise OSError("the disk failed")

    monkeypatch.setattr(data_dir.jobs, "leave", broken)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            only.jobs.open()
            job = await only.submit(data_dir)
            await until(lambda: only.workers.given and only.workers.given[0].sent)
            assert (await only.jobs.decisions.pause(job)).state == "paused"
            await until(lambda: not data_dir.database.job(job).holder)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_run_that_fails_frees_its_slot() -> None:
    async def run() -> None:
        async def fails(job: Job) -> None:
            raise ValueError("it fails")

        row = job_row("j", state="queued")
        job = Job(cast("Any", None), row)
        left: list[Job] = []

        def leave(job: Job) -> None:
            left.append(job)
            del jobs[job.id]

        jobs = {job.id: job}
        closing: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        queue = JobQueue(
            jobs,
            JobLimits(1, 9, 9, 2),
            closing,
            run=fails,
            running_changed=lambda _: None,
            left=leave,
            quotas=QuotaBook(),
        )
        queue.open()
        [task] = queue.tasks()
        with pytest.raises(ValueError, match="it fails"):
            await task
        assert (queue.free_slots, left) == (1, [job])

    asyncio.run(run())


def test_a_checkpoint_that_comes_after_the_end_leaves_what_the_row_names() -> None:
    forgotten: list[tuple[str, str]] = []

    class Files:
        def publish(self, job: str, fence: int, before: str) -> str:
            return "late"

        def forget(self, before: str, after: str) -> None:
            forgotten.append((before, after))

    class EndedJob:
        id = "j"
        lease = Lease(1)
        row = job_row("j", state="failed", checkpoint="named")

        async def change(self, **changes: object) -> None:
            """Changes nothing, as for each job that is over."""

    async def run() -> None:
        blobs = JobBlobs(cast("Any", Files()))
        blobs.note(cast("Job", EndedJob()))
        await until(lambda: forgotten)
        assert forgotten == [("late", "named")]

    asyncio.run(run())


def test_a_look_for_disk_space_wakes_nobody_who_follows_a_job(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        workers = ScriptedPool(lambda: ScriptedWorker(model, saves=False))
        limits = RunLimits(1, checkpoint_interval_s=1.0, min_free_bytes=0)
        manager = JobManager(data_dir, workers, JobLimits(1, 9, 9, 2), limits)
        job = await Server(manager, workers).submit(data_dir)
        news = manager.registry.live[job].news()
        await manager.resume_for_space()
        assert not news.is_set()
        await manager.close("the test ended")

    asyncio.run(run())


@pytest.mark.parametrize("is_own", [True, False])
def test_a_job_makes_one_version_where_its_server_ends_before_it_is_recorded(
    data_dir: DataDir, model: bytes, tmp_path: Path, is_own: bool
) -> None:
    path = tmp_path / "before"
    path.write_bytes(model)
    before = Model.load(path)
    assert before.training is not None
    before.training = replace(before.training, elapsed_s=before.training.elapsed_s + 1.0)
    before.save(path)
    config = before.training.config if is_own else TrainConfig()

    async def run() -> None:
        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, saves=True)

        async with servers(data_dir, saves) as (only,):
            database = data_dir.database
            job = await only.submit(data_dir)
            row = database.acquire_job("gone", job, -1.0)
            assert row is not None
            version = database.reserve_version(job, "m", fence=row.fence)
            data_dir.models.claim_file("m", path, version, job=job, fence=row.fence)
            text = json.dumps(config.to_json())
            database.update_job(job, state="running", config=text, started_s=1.0)
            only.jobs.open()
            events = await only.follow(job)
            assert events[-1].completed.version == (1 if is_own else 2)
            assert len(only.workers.given) == (0 if is_own else 1)

    asyncio.run(run())


def test_a_request_is_decided_although_another_one_has_the_job_given_back_before(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = JobDecisions._find
    nested = iter([True])

    async def interrupted(jobs: JobDecisions, job: str, request: str) -> Any:
        found = await find(jobs, job, request)
        if next(nested, False):
            assert (await jobs.pause(job)).state == "paused"  # which it is, so it ends at once
        return found

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            await only.jobs.decisions.pause(job)
            monkeypatch.setattr(JobDecisions, "_find", interrupted)
            assert (await only.jobs.decisions.resume(job)).state == "queued"
            await until(lambda: not data_dir.database.job(job).holder)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_job_is_deleted_that_is_given_back_meanwhile(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = data_dir.database.delete_job
    giving_back = iter([True])

    def interrupted(job: str, **named: Any) -> None:
        if next(giving_back, False):
            data_dir.database.engine.run("UPDATE jobs SET fence = fence + 1 WHERE id = ?", job)
        delete(job, **named)

    monkeypatch.setattr(data_dir.database, "delete_job", interrupted)

    async def run() -> None:
        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, saves=True)

        async with servers(data_dir, saves, lease_s=PATIENCE_S) as (only,):
            only.jobs.open()
            job = await only.submit(data_dir)
            await only.follow(job)
            await only.jobs.decisions.delete(job)
            assert data_dir.database.job(job) is None

    asyncio.run(run())


def test_a_job_that_is_deleted_twice_at_once_is_not_found(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = data_dir.database

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, progress(1), saves=False)

        async with servers(data_dir, stays, stays, lease_s=PATIENCE_S) as (first, second):
            job = await first.submit(data_dir)
            await first.jobs.decisions.cancel(job)
            await until(lambda: not database.job(job).holder)  # type: ignore[union-attr]
            delete = database.delete_job

            def twice(name: str, **named: Any) -> None:
                delete(name, **named)
                delete(name, **named)

            with monkeypatch.context() as patch:
                patch.setattr(database, "delete_job", twice)
                with pytest.raises(StatusError) as caught:
                    await second.jobs.decisions.delete(job)
            assert caught.value.code is grpc.StatusCode.NOT_FOUND

            first.jobs.open()
            job = await first.submit(data_dir)
            await until(lambda: first.workers.given)
            add = database.add_request

            def late(name: str, fence: int, request: str) -> bool:
                database.delete_job(name)
                return add(name, fence, request)

            monkeypatch.setattr(database, "add_request", late)
            with pytest.raises(StatusError) as caught:
                await second.jobs.decisions.pause(job)
            assert caught.value.code is grpc.StatusCode.NOT_FOUND

    asyncio.run(run())


def test_a_full_database_leaves_the_files_of_a_job_that_is_to_be_deleted(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are elsewhere, so that it gains no space, and may be another server's by now."""
    removed: list[str] = []

    def full(job: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(data_dir.database, "delete_job", full)
    monkeypatch.setattr(data_dir.jobs, "remove", removed.append)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            await only.jobs.decisions.pause(job)
            with pytest.raises(OSError, match="the disk is full"):
                await only.jobs.decisions.delete(job)
            assert removed == []

    asyncio.run(run())


def test_a_call_that_is_cancelled_while_it_takes_a_job_keeps_no_lease(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            job = await only.submit(data_dir)
            await only.jobs.decisions.pause(job)
            recover = only.jobs._recover

            async def interrupted(taken: Job) -> None:
                deleting.cancel()
                await asyncio.sleep(0)
                await recover(taken)

            assert only.jobs.replica is not None
            monkeypatch.setattr(only.jobs.replica, "_recover", interrupted)
            deleting = asyncio.create_task(only.jobs.decisions.delete(job))
            await asyncio.wait([deleting])
            await until(lambda: not only.jobs.registry.live)
            row = data_dir.database.job(job)
            assert row is None or not row.holder

    asyncio.run(run())


def test_a_job_is_given_back_once_and_after_its_files_are_removed(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its files would be removed while this server has the job again."""
    removing = threading.Event()
    free = threading.Event()

    def slow(job: str) -> None:
        removing.set()
        assert free.wait(PATIENCE_S)

    monkeypatch.setattr(data_dir.jobs, "leave", slow)

    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            only.jobs.open()
            name = await only.submit(data_dir)
            await until(lambda: only.workers.given and only.workers.given[0].sent)
            job = only.jobs.registry.live[name]
            await only.jobs.decisions.pause(name)
            await until(removing.is_set)
            assert only.jobs.replica is not None
            only.jobs.replica.settle(job)
            await asyncio.sleep(0.2)
            row = data_dir.database.job(name)
            free.set()
            assert row is not None
            assert row.holder
            await until(lambda: not data_dir.database.job(name).holder)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_job_that_is_lost_while_it_fails_leaves_no_files(
    data_dir: DataDir,
    model: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left: list[str] = []
    monkeypatch.setattr(data_dir.jobs, "leave", left.append)

    async def run() -> None:
        def saves() -> ScriptedWorker:
            return ScriptedWorker(model, saves=True)

        async with servers(data_dir, saves, lease_s=PATIENCE_S) as (only,):

            def broken(*_: object, **named: object) -> None:
                data_dir.database.engine.run("UPDATE jobs SET fence = fence + 1")
                raise OSError("the disk failed")

            monkeypatch.setattr(data_dir.models, "claim_file", broken)
            only.jobs.open()
            job = await only.submit(data_dir)
            await until(lambda: left)
            assert left == [job]
            assert not only.jobs.registry.live

    asyncio.run(run())
    assert "cannot be recorded" not in caplog.text


def test_what_came_of_files_that_do_not_fit_is_removed() -> None:
    left: list[str] = []

    class Files:
        def fetch(self, row: object) -> None:
            raise OSError(errno.ENOSPC, "the disk is full")

        def leave(self, job: str) -> None:
            left.append(job)

    class WaitingJob:
        id = "j"

        async def whole(self) -> object:
            return None

    async def run() -> None:
        blobs = JobBlobs(cast("Any", Files()))
        job = cast("Job", WaitingJob())
        with pytest.raises(OSError, match="the disk is full"):
            await blobs.bring(job)
        await blobs.leave(job)
        assert left == ["j"]
        await blobs.leave(job)
        assert left == ["j"]

    asyncio.run(run())


def test_a_job_that_is_lost_before_its_process_starts_leaves_nothing_behind(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            lost: list[Job] = []

            async def lose(job: Job) -> int:
                assert only.jobs.replica is not None
                only.jobs.replica.lose(job)
                lost.append(job)
                return len(lost)

            monkeypatch.setattr("treadle.server.jobs.runner._nodes", lose)
            only.jobs.open()
            await only.submit(data_dir)
            await until(lambda: lost and not only.jobs.queue.tasks())
            assert only.workers.given == []
            assert only.jobs._runner._no_process_needed == {}

    asyncio.run(run())


def test_a_job_that_is_lost_while_its_row_is_read_is_not_begun(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        def stays() -> ScriptedWorker:
            return ScriptedWorker(model, saves=False)

        async with servers(data_dir, stays, lease_s=PATIENCE_S) as (only,):
            whole = Job.whole

            async def late(job: Job) -> Any:
                row = await whole(job)
                if only.workers.given:
                    assert only.jobs.replica is not None
                    only.jobs.replica.lose(job)
                return row

            monkeypatch.setattr(Job, "whole", late)
            only.jobs.open()
            await only.submit(data_dir)
            await until(lambda: only.workers.given and not only.jobs.queue.tasks())
            assert only.workers.given[0].sent == []

    asyncio.run(run())
