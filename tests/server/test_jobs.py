"""`JobManager` by itself: an end at any moment, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import errno
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from treadle.model import train
from treadle.model.config import NetworkConfig, TrainConfig
from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.completion import Completion
from treadle.server.jobs.executors.executor import JobNeeds, OnWait, Worker
from treadle.server.jobs.executors.worker_pool import WorkerPool
from treadle.server.jobs.job import CANCELLING, PAUSING
from treadle.server.jobs.job_queue import JobLimits
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.submissions.submission import new_id, new_row
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import FINAL_FILE, LAST_FILE
from treadle.server.storage.schema import JobRow
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, until
from .samples import job_row


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m"
    network = NetworkConfig(hidden_size=2, embedding_size=2)
    train(b"abcabcabcabc", TrainConfig(network=network), max_steps=1).save(path)
    return path.read_bytes()


class FakeWorker:
    """Saves the same model in every job, at once."""

    pid = 0
    took_too_much = starved = lost = False

    def __init__(self, model: bytes = b"") -> None:
        self.sent: list[worker_protocol.Message] = []
        self._model = model
        self.asked_to_end = asyncio.Event()

    def send(self, message: worker_protocol.Message) -> None:
        self.sent.append(message)
        if "stop" in message or "pause" in message:
            self.asked_to_end.set()

    def ask_to_leave(self, message: worker_protocol.Message) -> None:
        self.send(message)

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        await asyncio.sleep(PATIENCE_S)

    def kill(self) -> None:
        pass

    async def receive(self) -> worker_protocol.Message:
        (Path(self.sent[0]["job"]["directory"]) / FINAL_FILE).write_bytes(self._model)
        return {"event": "saved"}


class StubbornWorker(FakeWorker):
    """Runs until it is asked to stop, without a step."""

    async def receive(self) -> worker_protocol.Message:
        await self.asked_to_end.wait()
        last = next(sent for sent in reversed(self.sent) if {"stop", "pause"} & set(sent))
        if "stop" in last:
            return {"event": "stopped", "reason": last["stop"]}
        return {"event": "paused", "reason": last["pause"], "needs_bytes": 0}


class DyingWorker(FakeWorker):
    """Dies, after a checkpoint if it is to have made one."""

    def __init__(self, checkpoint: bool = False) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    async def receive(self) -> worker_protocol.Message:
        if self._checkpoint:
            self._checkpoint = False
            return {"event": "checkpoint", "took_s": 0.01}
        raise aborted("it died")


class TellingWorker(FakeWorker):
    """Says what it was made to say, and then saves."""

    def __init__(self, model: bytes, *messages: worker_protocol.Message) -> None:
        super().__init__(model)
        self._messages = list(messages)

    async def receive(self) -> worker_protocol.Message:
        return dict(self._messages.pop(0)) if self._messages else await super().receive()


class FakeWorkerPool(WorkerPool):
    """Gives out workers as a test makes them."""

    def __init__(self, make: Callable[[], FakeWorker]) -> None:
        super().__init__(standby=0)
        self._make = make
        self.given = 0

    async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
        self.given += 1
        return cast("Worker", self._make())

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))


def make_manager(
    data_dir: DataDir, workers: WorkerPool, max_run_s: float = 0.0, restarts: int = 2
) -> JobManager:
    limits = RunLimits(1, checkpoint_interval_s=1.0, min_free_bytes=0, max_run_s=max_run_s)
    return JobManager(data_dir, workers, JobLimits(1, 2, 2, restarts), limits)


async def submit(manager: JobManager, data_dir: DataDir, name: str = "m") -> str:
    """Queues a job on TEXT."""
    writer = data_dir.corpora.writer()
    writer.write(TEXT)
    sha256, size = writer.claim()
    job = new_id()
    data_dir.jobs.directory(job)
    file = UploadedFile(sha256, "corpus", "train", 1.0, size)
    row = new_row(job, pb.TrainSpec(model=name), TrainConfig(), [file])
    assert (await manager.submit(row)).id == job
    return job


async def follow(manager: JobManager, job: str, after: int = 0) -> list[pb.JobEvent]:
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in manager.registry.watch(job, after)]


def progress(step: int, **values: float) -> worker_protocol.Message:
    return {"event": "progress", "step": step, "tokens_seen": step, **values}


def test_the_queue_goes_by_the_time_of_queueing(data_dir: DataDir) -> None:
    for name, queued_s in (("late", 3.0), ("b", 2.0), ("a", 2.0), ("early", 1.0)):
        data_dir.database.add_job(job_row(name, queued_s=queued_s))
    data_dir.database.add_job(job_row("runs", state="running", queued_s=0.0))

    async def order() -> list[str]:
        manager = make_manager(data_dir, FakeWorkerPool(FakeWorker))
        await manager.recover()
        return list(manager.queue.positions())

    assert asyncio.run(order()) == ["runs", "early", "a", "b", "late"]


def test_every_follower_gets_every_event_once_whenever_it_comes(
    data_dir: DataDir, model: bytes
) -> None:
    async def run() -> None:
        messages = [progress(1), progress(2), progress(3)]
        manager = make_manager(data_dir, FakeWorkerPool(lambda: TellingWorker(model, *messages)))
        job = await submit(manager, data_dir)
        early = asyncio.create_task(follow(manager, job))
        manager.open()
        everything = await early
        assert [event.sequence for event in everything] == list(range(1, len(everything) + 1))
        assert [e.progress.step for e in everything if e.HasField("progress")] == [1, 2, 3]
        for after in range(len(everything) + 1):
            assert await follow(manager, job, after) == everything[after:]

    asyncio.run(run())


def test_what_is_made_again_after_a_crash_is_told_once(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        first = [progress(2), progress(4), progress(4, valid_loss=1.0)]
        again = [progress(3), progress(4), progress(4, valid_loss=1.0), progress(5)]

        class Dying(TellingWorker):
            async def receive(self) -> worker_protocol.Message:
                if not self._messages:
                    raise aborted("it died")
                return await super().receive()

        made = [TellingWorker(model, *again), Dying(model, *first)]
        manager = make_manager(data_dir, FakeWorkerPool(made.pop))
        job = await submit(manager, data_dir)
        manager.open()
        events = await follow(manager, job)
        seen = [
            (event.progress.step, event.progress.HasField("valid_loss"))
            for event in events
            if event.HasField("progress")
        ]
        assert seen == [(2, False), (4, False), (4, True), (5, False)]
        assert (await manager.registry.row(job)).restarts == 1

    asyncio.run(run())


def test_what_a_job_is_at_before_its_first_step_is_told_and_taken_back(
    data_dir: DataDir, model: bytes
) -> None:
    reasons: list[str] = []

    async def run() -> None:
        reading = {"event": "reading", "reason": "reading a corpus"}
        started = {"event": "started", "config": TrainConfig().to_json(), "total_steps": 9}
        manager = make_manager(
            data_dir, FakeWorkerPool(lambda: TellingWorker(model, reading, started))
        )
        job = await submit(manager, data_dir)
        manager.open()
        events = manager.registry.watch(job, 0)
        reasons.extend([e.state.reason async for e in events if e.HasField("state")])
        assert (await manager.registry.row(job)).reason == ""

    asyncio.run(run())
    assert "reading a corpus" in reasons


def test_how_far_a_validation_has_come_is_told_until_its_loss_is(
    data_dir: DataDir, model: bytes
) -> None:
    def validation(step: int, done: int, final: bool = False) -> worker_protocol.Message:
        values = {"tokens_done": done, "tokens_total": 9, "role": "valid", "is_final": final}
        return {"event": "validation", "step": step, **values}

    async def run() -> None:
        messages = [
            validation(2, 3), validation(2, 6), progress(2, valid_loss=1.0),
            validation(2, 3), validation(1, 3), validation(3, 3), progress(3, valid_loss=0.5),
            validation(3, 6, final=True),
        ]  # fmt: skip
        manager = make_manager(data_dir, FakeWorkerPool(lambda: TellingWorker(model, *messages)))
        job = await submit(manager, data_dir)
        manager.open()
        events = await follow(manager, job)
        seen = [e.validation for e in events if e.HasField("validation")]
        assert [(v.step, v.tokens_done, v.is_final) for v in seen] == [
            (2, 3, False), (2, 6, False), (3, 3, False), (3, 6, True),
        ]  # fmt: skip
        assert seen[0] == pb.ValidationProgress(
            step=2, tokens_done=3, tokens_total=9, role=pb.CORPUS_ROLE_VALID
        )

    asyncio.run(run())


def test_jobs_of_a_server_that_closes_wait_for_the_next(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        jobs = [await submit(manager, data_dir, name) for name in ("a", "b", "c")]
        manager.open()
        await asyncio.sleep(0)
        following = [asyncio.create_task(follow(manager, job)) for job in jobs]
        await until(lambda: (manager.queue.running_count, manager.queue.waiting_count) == (1, 2))
        await manager.close("the test ended")
        for task in following:
            with pytest.raises(StatusError, match=r"the test ended; job .* continues") as caught:
                await task
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(StatusError), manager.queue.admit():
            pass
        assert {(await manager.registry.row(job)).state for job in jobs} == {"queued"}
        following_manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        await following_manager.recover()
        following_manager.open()
        for job in jobs:
            assert (await follow(following_manager, job))[-1].completed.version == 1

    asyncio.run(run())
    assert [len(data_dir.models.versions(name)) for name in ("a", "b", "c")] == [1, 1, 1]


class Gate:
    """Holds up a method of an object, in its thread, until the test lets it go."""

    def __init__(self, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()
        method = getattr(owner, name)

        def held(*arguments: Any, **named: Any) -> Any:
            self._entered.set()
            assert self._open.wait(PATIENCE_S)
            return method(*arguments, **named)

        monkeypatch.setattr(owner, name, held)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("held", ["next_version", "claim_file", "describe"])
def test_a_finished_model_is_kept_whenever_the_job_is_killed(
    data_dir: DataDir, model: bytes, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        gate = Gate(data_dir.models, held, monkeypatch)
        job = await submit(manager, data_dir)
        manager.open()
        await gate.entered()
        killing = asyncio.create_task(manager.kill())
        for _ in range(3):
            await asyncio.sleep(0)
        gate.open()
        await killing
        assert (await follow(manager, job))[-1].completed.version == 1
        assert manager.queue.running_count == 0

    asyncio.run(run())
    assert data_dir.models.versions("m") == [1]


def test_a_job_is_deleted_once_its_end_is_cleared_up(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = threading.Event()
    remove = Completion._remove_run_files

    def remove_late(completion: Completion, job: JobRow) -> None:
        clear.wait(PATIENCE_S)
        remove(completion, job)

    monkeypatch.setattr(Completion, "_remove_run_files", remove_late)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        job = await submit(manager, data_dir)
        manager.open()
        assert (await follow(manager, job))[-1].completed.version == 1
        deleting = asyncio.create_task(manager.decisions.delete(job))
        await asyncio.sleep(0.05)
        assert not deleting.done()
        clear.set()
        await deleting
        with pytest.raises(StatusError, match="no job"):
            await manager.registry.row(job)

    asyncio.run(run())


@pytest.mark.parametrize("claimed", ["nothing", "number", "version"])
def test_a_server_that_died_while_it_stored_a_model_stores_it_once(
    data_dir: DataDir, model: bytes, claimed: str
) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        job = await submit(manager, data_dir)
        data_dir.database.update_job(job, state="running")
        path = data_dir.jobs.directory(job) / FINAL_FILE
        path.write_bytes(model)
        if claimed != "nothing":
            data_dir.database.update_job(job, claim=data_dir.models.next_version("m"))
        if claimed == "version":
            data_dir.models.claim_file("m", path, 1)
        following = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        await following.recover()
        following.open()
        assert (await follow(following, job))[-1].completed.version == 1

    asyncio.run(run())
    assert data_dir.models.versions("m") == [1]


def test_processes_that_die_without_a_checkpoint_end_a_job(data_dir: DataDir) -> None:
    async def run() -> None:
        workers = FakeWorkerPool(DyingWorker)
        manager = make_manager(data_dir, workers, restarts=2)
        job = await submit(manager, data_dir)
        manager.open()
        with pytest.raises(StatusError, match=r"it died .3 times in a row") as caught:
            await follow(manager, job)
        assert caught.value.code is grpc.StatusCode.ABORTED
        assert workers.given == 3
        assert (await manager.registry.row(job)).state == "failed"

    asyncio.run(run())


def test_a_checkpoint_forgives_what_died_before(data_dir: DataDir, model: bytes) -> None:
    async def run() -> None:
        made = [DyingWorker(), DyingWorker(checkpoint=True), DyingWorker(), FakeWorker(model)]
        manager = make_manager(data_dir, FakeWorkerPool(lambda: made.pop(0)), restarts=2)
        job = await submit(manager, data_dir)
        manager.open()
        assert (await follow(manager, job))[-1].completed.version == 1
        assert (await manager.registry.row(job)).restarts == 3

    asyncio.run(run())


class LostWorker(DyingWorker):
    """Dies with its machine."""

    lost = True


def test_machines_that_die_are_no_fault_of_a_job(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.runner._BACKOFF_S", 0.0001)

    async def run() -> None:
        made = [LostWorker(), LostWorker(), DyingWorker(), LostWorker(), FakeWorker(model)]
        manager = make_manager(data_dir, FakeWorkerPool(lambda: made.pop(0)), restarts=1)
        job = await submit(manager, data_dir)
        manager.open()
        events = await follow(manager, job)
        assert events[-1].completed.version == 1
        reasons = [
            event.state.reason for event in events if "it died; the job" in event.state.reason
        ]
        assert len(reasons) == 4

    asyncio.run(run())


def test_a_job_that_brings_down_machine_after_machine_ends(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.runner._BACKOFF_S", 0.0)
    monkeypatch.setattr("treadle.server.jobs.runner._MOST_LOSSES", 3)

    async def run() -> None:
        workers = FakeWorkerPool(LostWorker)
        manager = make_manager(data_dir, workers)
        job = await submit(manager, data_dir)
        manager.open()
        with pytest.raises(StatusError, match=r"it died .4 times in a row"):
            await follow(manager, job)
        assert workers.given == 4

    asyncio.run(run())


def test_a_job_tells_why_it_has_no_process_yet(data_dir: DataDir, model: bytes) -> None:
    class Full(FakeWorkerPool):
        async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
            assert needs.threads == 1
            for reason in ("it is full", "it is full", "still full"):
                await on_wait(reason)
            return await super().take(needs, on_wait)

    async def run() -> None:
        manager = make_manager(data_dir, Full(lambda: FakeWorker(model)))
        job = await submit(manager, data_dir)
        manager.open()
        events = await follow(manager, job)
        reasons = [event.state.reason for event in events if event.HasField("state")]
        assert reasons[1:5] == ["", "it is full", "still full", ""]

    asyncio.run(run())


def test_a_full_disk_delays_the_note_of_an_end(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.jobs.completion._FULL_RETRY_S", 0.01)
    append = data_dir.database.append_event
    failures = 3

    def full(job: str, payload: bytes, time_s: float, /, **changes: Any) -> int:
        nonlocal failures
        if changes.get("state") == "succeeded" and failures:
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(job, payload, time_s, **changes)

    monkeypatch.setattr(data_dir.database, "append_event", full)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        job = await submit(manager, data_dir)
        manager.open()
        assert (await follow(manager, job))[-1].completed.version == 1

    asyncio.run(run())
    assert failures == 0
    assert data_dir.models.versions("m") == [1]


@pytest.mark.parametrize(
    "message",
    [
        progress(1),
        {"event": "reading", "reason": "reading a corpus"},
        {"event": "restarted", "reason": "the job begins again"},
    ],
    ids=lambda message: message["event"],
)
def test_what_finds_the_disk_full_pauses_the_job(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, message: worker_protocol.Message
) -> None:
    append = data_dir.database.append_event

    def full(job: str, payload: bytes, time_s: float, /, **changes: Any) -> int:
        if "progress" in changes or changes.get("reason") == message.get("reason", "none"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(job, payload, time_s, **changes)

    monkeypatch.setattr(data_dir.database, "append_event", full)

    class Reporting(StubbornWorker):
        async def receive(self) -> worker_protocol.Message:
            if len(self.sent) == 1:
                return dict(message)
            return await super().receive()

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(Reporting))
        job = await submit(manager, data_dir)
        manager.open()
        with pytest.raises(StatusError, match="is paused: the disk is full: No space left"):
            await follow(manager, job)
        assert (await manager.registry.row(job)).state == "paused"

    asyncio.run(run())


def test_a_job_need_not_wait_for_a_process_to_be_paused_or_cancelled(data_dir: DataDir) -> None:
    class Slow(FakeWorkerPool):
        """Gives no process before a test says so."""

        def __init__(self) -> None:
            super().__init__(StubbornWorker)
            self.ready = asyncio.Event()
            self.kept: list[asyncio.Task[Worker]] = []

        async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
            self.given += 1
            await self.ready.wait()
            return await super().take(needs, on_wait)

        def keep(self, taking: asyncio.Task[Worker]) -> None:
            self.kept.append(taking)

    async def run() -> None:
        workers = Slow()
        manager = make_manager(data_dir, workers)
        job = await submit(manager, data_dir)
        manager.open()
        await until(lambda: workers.given == 1)
        pausing = asyncio.create_task(manager.decisions.pause(job))
        await asyncio.wait([pausing], timeout=PATIENCE_S)
        assert pausing.done()
        assert (await pausing).state == "paused"
        await manager.decisions.resume(job)
        await until(lambda: workers.given == 2)
        await manager.decisions.cancel(job)
        with pytest.raises(StatusError, match="cancelled before it had trained"):
            await follow(manager, job)
        last = await submit(manager, data_dir)
        await until(lambda: workers.given == 3)
        await asyncio.wait_for(manager.close("the test ended"), PATIENCE_S)
        assert (await manager.registry.row(last)).state == "queued"
        workers.ready.set()  # no process is lost that nobody needed any more
        assert len(await asyncio.gather(*workers.kept)) == 3

    asyncio.run(run())


def test_a_run_that_takes_too_long_is_told_to_stop(data_dir: DataDir) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker), max_run_s=0.01)
        job = await submit(manager, data_dir)
        manager.open()
        with pytest.raises(StatusError, match=r"after 0\.01 seconds.*nothing was") as caught:
            await follow(manager, job)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())


def test_running_jobs_share_the_threads(data_dir: DataDir) -> None:
    async def run() -> None:
        made: list[FakeWorker] = []

        def make() -> FakeWorker:
            made.append(StubbornWorker())
            return made[-1]

        limits = RunLimits(4, checkpoint_interval_s=1.0, min_free_bytes=0)
        manager = JobManager(data_dir, FakeWorkerPool(make), JobLimits(2, 2, 2, 1), limits)
        first = await submit(manager, data_dir)
        manager.open()
        await until(lambda: made and made[0].sent)
        assert made[0].sent[0]["job"]["threads"] == 4
        await submit(manager, data_dir)
        await until(lambda: len(made) == 2 and made[1].sent)
        assert made[0].sent[-1] == {"threads": 2}
        assert made[1].sent[0]["job"]["threads"] == 2
        await manager.decisions.pause(first)
        await until(lambda: made[1].sent[-1] == {"threads": 4})
        await manager.close("the test ended")

    asyncio.run(run())


def test_what_cannot_be_removed_is_logged(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr("shutil.rmtree", refuse)
    data_dir.models.discard(data_dir.models.new_draft())
    assert "the disk is on fire" in caplog.text


@pytest.mark.parametrize("reason", [CANCELLING, "cancelled on request; its model is being stored"])
@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_a_cancel_that_a_crash_cut_short_is_done_by_the_next_server(
    data_dir: DataDir, model: bytes, state: str, reason: str
) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        job = await submit(manager, data_dir)
        (data_dir.jobs.directory(job) / LAST_FILE).write_bytes(model)
        data_dir.database.update_job(job, state=state, reason=reason)  # and here the server died
        following = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        await following.recover()
        events = await follow(following, job)
        assert events[-1].completed.version == 1
        assert (await following.registry.row(job)).state == "cancelled"

    asyncio.run(run())
    assert data_dir.models.versions("m") == [1]


def test_jobs_that_wait_keep_no_large_fields_in_memory(data_dir: DataDir) -> None:
    """Each spec may have megabytes; it is there when its job is described or starts."""
    large = 500_000
    count = 40

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(FakeWorker))
        spec = pb.TrainSpec(model="m")
        spec.data.column = "x" * large
        for number in range(count):
            row = new_row(f"job-{number:02}", spec, TrainConfig(), [])
            await manager.submit(row)
        again = make_manager(data_dir, FakeWorkerPool(FakeWorker))
        tracemalloc.start()
        await again.recover()
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(again.registry.live) == count
        assert kept < large
        assert peak < count * large // 2
        for place in (manager, again):
            for job, live in place.registry.live.items():
                assert live.row.spec == b""
                assert len((await place.registry.row(job)).spec) > large

    asyncio.run(run())


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_pause_that_a_crash_cut_short_is_done_by_the_next_server(
    data_dir: DataDir, state: str
) -> None:
    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        job = await submit(manager, data_dir)
        data_dir.database.update_job(job, state=state, reason=PAUSING)  # and here the server died
        following = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        await following.recover()
        following.open()
        with pytest.raises(StatusError, match="is paused: paused on request; resume it"):
            await follow(following, job)

    asyncio.run(run())


class SlowWorker(StubbornWorker):
    """Follows a request when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()

    async def receive(self) -> worker_protocol.Message:
        await self.free.wait()
        return await super().receive()


def slow_manager(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> tuple[JobManager, SlowWorker]:
    """Returns a manager whose one worker does not stop before the test lets it."""
    monkeypatch.setattr("treadle.server.jobs.job_decisions._ANSWER_S", 0.01)
    worker = SlowWorker()
    return make_manager(data_dir, FakeWorkerPool(lambda: worker)), worker


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_request_is_noted_and_answered_before_a_worker_follows_it(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    async def run() -> None:
        manager, worker = slow_manager(data_dir, monkeypatch)
        job = await submit(manager, data_dir)
        manager.open()
        await until(lambda: worker.sent)
        row = await asyncio.wait_for(getattr(manager.decisions, wish)(job), PATIENCE_S)
        noted = {"pause": "pausing on request", "cancel": "cancelling on request"}[wish]
        assert (row.state, row.reason) == ("running", noted)
        stored = data_dir.database.job(job)
        assert stored is not None
        assert stored.reason == noted
        if wish == "cancel":
            for other in (manager.decisions.pause, manager.decisions.resume):
                with pytest.raises(StatusError, match="is being cancelled"):
                    await other(job)
        worker.free.set()
        end = {"pause": "is paused: paused on request", "cancel": "cancelled before it had"}[wish]
        with pytest.raises(StatusError, match=end):
            await follow(manager, job)

    asyncio.run(run())


def test_a_pause_can_be_taken_back_before_a_worker_follows_it(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        manager, worker = slow_manager(data_dir, monkeypatch)
        job = await submit(manager, data_dir)
        manager.open()
        await until(lambda: worker.sent)
        await manager.decisions.pause(job)
        assert (await manager.decisions.resume(job)).reason == "resumed"
        orders = len([message for message in worker.sent if "job" in message])
        worker.free.set()
        await until(lambda: len([m for m in worker.sent if "job" in m]) > orders)
        assert (await manager.registry.row(job)).state in ("queued", "running")
        await manager.close("the test ended")

    asyncio.run(run())


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_full_disk_keeps_no_job_from_being_stopped(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setattr("treadle.server.jobs.completion._FULL_RETRY_S", 0.01)
    is_full = False

    def unless_full(method: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any, **changes: Any) -> Any:
            if is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return method(*arguments, **changes)

        return maybe

    for name in ("append_event", "update_job"):
        monkeypatch.setattr(data_dir.database, name, unless_full(getattr(data_dir.database, name)))

    async def run() -> None:
        nonlocal is_full
        manager, worker = slow_manager(data_dir, monkeypatch)
        job = await submit(manager, data_dir)
        manager.open()
        await until(lambda: worker.sent)
        is_full = True
        with pytest.raises(StatusError, match="the disk is too full to record that") as caught:
            await getattr(manager.decisions, wish)(job)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        worker.free.set()
        await until(
            lambda: not manager.queue.running_count
        )  # its slot is free, and its end is noted later
        assert (await manager.registry.row(job)).state == "running"
        is_full = False
        end = {"pause": "is paused: paused on request", "cancel": "cancelled before it had"}[wish]
        with pytest.raises(StatusError, match=end):
            await follow(manager, job)

    asyncio.run(run())


def test_a_full_disk_keeps_no_server_from_warming_up(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(StubbornWorker))
        job = await submit(manager, data_dir)
        with monkeypatch.context() as patched:
            patched.setattr(data_dir.database, "append_event", full)
            await manager.explain_wait("the kernels are not ready")
        await manager.explain_wait("they still are not")
        assert (await manager.registry.row(job)).reason == "they still are not"

    asyncio.run(run())


def test_a_queued_job_that_cannot_be_paused_runs_once_there_is_a_slot(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = data_dir.database.append_event
    free = threading.Event()
    is_pausing = False

    def full_append(*arguments: Any, **changes: Any) -> int:
        nonlocal is_pausing
        if changes.get("state") == "paused":
            is_pausing = True
            assert free.wait(PATIENCE_S)
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(*arguments, **changes)

    monkeypatch.setattr(data_dir.database, "append_event", full_append)

    class Waiting(FakeWorker):
        def __init__(self) -> None:
            super().__init__(model)
            self.free = asyncio.Event()

        async def receive(self) -> worker_protocol.Message:
            await self.free.wait()
            return await super().receive()

    async def run() -> None:
        workers = list[FakeWorker]([FakeWorker(model), first := Waiting()])
        manager = make_manager(data_dir, FakeWorkerPool(workers.pop))
        jobs = [await submit(manager, data_dir), await submit(manager, data_dir)]
        manager.open()
        await until(lambda: first.sent)
        pausing = asyncio.create_task(manager.decisions.pause(jobs[1]))
        await until(lambda: is_pausing)
        first.free.set()
        await until(
            lambda: not manager.queue.tasks()
        )  # the slot is free, and nobody may take it yet
        free.set()
        with pytest.raises(OSError, match="No space left"):
            await pausing
        assert (await follow(manager, jobs[1]))[-1].completed.version == 2

    asyncio.run(run())


def test_a_job_that_ends_while_its_cancellation_is_noted_ends_once(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = data_dir.database.append_event
    update = data_dir.database.update_job
    cancelled = threading.Event()
    over = threading.Event()
    is_ending = False

    def slow_append(*arguments: Any, **changes: Any) -> int:
        nonlocal is_ending
        if changes.get("state") == "succeeded":
            is_ending = True
            assert cancelled.wait(PATIENCE_S)
        return append(*arguments, **changes)

    def slow_update(*arguments: Any, **changes: Any) -> None:
        if changes.get("reason") == CANCELLING:
            assert over.wait(PATIENCE_S)
        update(*arguments, **changes)

    monkeypatch.setattr(data_dir.database, "append_event", slow_append)
    monkeypatch.setattr(data_dir.database, "update_job", slow_update)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        job = await submit(manager, data_dir)
        (data_dir.jobs.directory(job) / LAST_FILE).write_bytes(model)  # it has published before
        manager.open()
        await until(lambda: is_ending)
        cancelling = asyncio.create_task(manager.decisions.cancel(job))
        await until(lambda: manager.registry.live[job].cancelling)
        cancelled.set()
        await until(lambda: not manager.queue.tasks())
        over.set()
        row = await cancelling
        await until(lambda: not manager.queue.tasks())
        assert (row.state, row.reason, row.version) == ("succeeded", "", 1)
        assert data_dir.database.job(job) is not None
        assert data_dir.models.versions("m") == [1]
        ends = [event for event in await follow(manager, job) if event.HasField("completed")]
        assert len(ends) == 1
        stored = await manager.registry.row(job)
        assert (stored.state, stored.reason) == ("succeeded", "")

    asyncio.run(run())


@pytest.mark.parametrize("method", ["describe", "_stat"])
@pytest.mark.parametrize("end", ["trained", "cancelled"])
def test_a_model_that_is_deleted_while_it_is_stored_is_stored_again(
    data_dir: DataDir, model: bytes, method: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion came first, then: what was trained is never lost to it."""
    original = getattr(data_dir.models, method)
    deletions = 3

    def deleted_first(*arguments: Any) -> Any:
        nonlocal deletions
        if deletions and data_dir.models.versions("m"):
            deletions -= 1
            data_dir.models.delete("m", None)
        return original(*arguments)

    async def run() -> None:
        worker = FakeWorker(model) if end == "trained" else StubbornWorker()
        manager = make_manager(data_dir, FakeWorkerPool(lambda: worker))
        job = await submit(manager, data_dir)
        monkeypatch.setattr(data_dir.models, method, deleted_first)
        if end == "trained":
            manager.open()
        else:
            (data_dir.jobs.directory(job) / LAST_FILE).write_bytes(model)
            await manager.decisions.cancel(job)
        stored = (await follow(manager, job))[-1].completed
        assert data_dir.models.versions("m") == [stored.version]
        state = (await manager.registry.row(job)).state
        assert state == ("succeeded" if end == "trained" else "cancelled")
        said = "has succeeded" if end == "trained" else "was cancelled"
        await until(lambda: job not in manager.registry.live)
        with pytest.raises(StatusError, match=f"{said} and cannot be resumed"):
            await manager.decisions.resume(job)

    asyncio.run(run())
    assert deletions == 0


def test_a_model_that_is_deleted_whenever_it_is_stored_is_said(
    data_dir: DataDir, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = data_dir.models.describe

    def deleted_first(*arguments: Any) -> Any:
        data_dir.models.delete("m", None)
        return original(*arguments)

    async def run() -> None:
        manager = make_manager(data_dir, FakeWorkerPool(lambda: FakeWorker(model)))
        job = await submit(manager, data_dir)
        monkeypatch.setattr(data_dir.models, "describe", deleted_first)
        manager.open()
        with pytest.raises(StatusError, match="'m' was deleted 20 times") as caught:
            await follow(manager, job)
        assert caught.value.code is grpc.StatusCode.ABORTED

    asyncio.run(run())


@pytest.mark.parametrize("kept", [False, True])
def test_a_job_that_the_kernel_ends_for_want_of_memory_fails_at_once(
    data_dir: DataDir, model: bytes, kept: bool
) -> None:
    """Unless it came further than before: it may have been taken for what somebody else took."""

    class Starved(DyingWorker):
        starved = True

    async def run() -> None:
        made = [Starved(checkpoint=kept), FakeWorker(model)]
        workers = FakeWorkerPool(lambda: made.pop(0))
        manager = make_manager(data_dir, workers)
        job = await submit(manager, data_dir)
        manager.open()
        if kept:
            assert (await follow(manager, job))[-1].completed.version == 1
            return
        with pytest.raises(StatusError, match="needs more memory than the machine has") as caught:
            await follow(manager, job)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert workers.given == 1

    asyncio.run(run())
