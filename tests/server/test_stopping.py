"""Jobs whose process does not do as it is asked: long steps, and processes that stand still."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from treadle.model import Model, train
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from treadle.server.errors import StatusError
from treadle.server.jobs.executors.worker_pool import WorkerPool
from treadle.server.jobs.job_queue import JobLimits
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.submissions.submission import new_id, new_row
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import LAST_FILE
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, until

TIMEOUT_S = 3.0
"""Well above the second that is between two signs of life."""
STEPS = 50_000
"""More than a second of training, also with several steps in one call."""
ENDLESS = 10**9


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


def config(steps: int = STEPS, **optimizer: int) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(hidden_size=8, embedding_size=4),
        data=DataConfig(batch_size=2, window=8),
        optimizer=OptimizerConfig(**optimizer),  # type: ignore[arg-type]
        limits=LimitsConfig(max_steps=steps),
        report=ReportConfig(progress_interval_s=0.05),
        seed=3,
    )


class Managed:
    """A job manager with real processes."""

    def __init__(
        self,
        data_dir: DataDir,
        interval_s: float = 0.0,
        max_run_s: float = 0.0,
        max_run_bytes: int | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._workers = WorkerPool(standby=0)
        limits = RunLimits(
            1,
            checkpoint_interval_s=interval_s,
            min_free_bytes=0,
            max_run_s=max_run_s,
            stop_timeout_s=TIMEOUT_S,
            max_run_bytes=max_run_bytes,
        )
        self.jobs = JobManager(data_dir, self._workers, JobLimits(1, 9, 1, 3), limits)

    async def open(self) -> None:
        await self.jobs.recover()
        self.jobs.open()

    async def submit(self, name: str, settings: TrainConfig) -> str:
        """Queues a job on TEXT."""
        writer = self._data_dir.corpora.writer()
        writer.write(TEXT)
        sha256, size = writer.claim()
        job = new_id()
        self._data_dir.jobs.directory(job)
        file = UploadedFile(sha256, "corpus", "train", 1.0, size)
        await self.jobs.submit(new_row(job, pb.TrainSpec(model=name), settings, [file]))
        return job

    def pid(self, job: str) -> int:
        """Returns the id of the process that trains a job; 0 where nothing runs."""
        live = self.jobs.registry.live.get(job)
        return 0 if live is None or live.worker is None else live.worker.pid

    async def started(self, job: str) -> None:
        """Waits for the first checkpoint of a job, its weights included, and some progress."""
        path = self._data_dir.jobs.directory(job) / LAST_FILE
        live = self.jobs.registry.live[job]
        await until(lambda: path.exists() and live.last_progress.step)

    async def ended(self, job: str) -> pb.Model:
        """Returns the model of a job, once it has ended with one."""
        async with asyncio.timeout(PATIENCE_S):
            return [event async for event in self.jobs.registry.watch(job)][-1].completed

    async def close(self) -> None:
        await self.jobs.kill()
        self._workers.kill()
        await self._workers.close()

    def weights(self, name: str) -> bytes:
        return Model.load(self._data_dir.models.find(name).path).parameters.flat.tobytes()


def run_managed(manager: Callable[[], Managed], work: Callable[[Managed], Awaitable[None]]) -> None:
    """Runs a test with a job manager and closes it."""

    async def run() -> None:
        opened = manager()
        try:
            await opened.open()
            await work(opened)
        finally:
            await opened.close()

    asyncio.run(run())


def test_a_process_that_stands_still_is_killed_and_nothing_is_lost(data_dir: DataDir) -> None:
    async def work(manager: Managed) -> None:
        job = await manager.submit("still", config())
        await manager.started(job)
        os.kill(manager.pid(job), signal.SIGSTOP)
        live = manager.jobs.registry.live[job]
        await until(lambda: "gave no sign of life for 3 seconds" in live.row.reason)
        reached = live.last_progress.step
        await until(lambda: manager.pid(job) and live.last_progress.step > reached)
        os.kill(manager.pid(job), signal.SIGSTOP)
        row = await asyncio.wait_for(manager.jobs.decisions.pause(job), TIMEOUT_S - 1)
        assert (row.state, row.reason) == ("running", "pausing on request")
        with pytest.raises(StatusError, match="did not stop within 3 seconds"):
            await manager.ended(job)
        assert manager.jobs.queue.running_count == 0
        row = await manager.jobs.registry.row(job)
        assert row.state == "paused"
        assert row.reason.startswith("paused on request: ")
        await manager.jobs.decisions.resume(job)
        await manager.ended(job)
        assert manager.weights("still") == train(TEXT, config()).parameters.flat.tobytes()

    run_managed(lambda: Managed(data_dir), work)


def test_a_cancelled_process_that_stands_still_leaves_its_last_checkpoint(
    data_dir: DataDir,
) -> None:
    async def work(manager: Managed) -> None:
        job = await manager.submit("m", config(ENDLESS))
        await manager.started(job)
        os.kill(manager.pid(job), signal.SIGSTOP)
        row = await asyncio.wait_for(manager.jobs.decisions.cancel(job), TIMEOUT_S - 1)
        assert (row.state, row.reason) == ("running", "cancelling on request")
        model = await manager.ended(job)
        assert model.training.ended_by == f"cancelled on request after {model.training.steps} steps"
        assert (await manager.jobs.registry.row(job)).state == "cancelled"

    run_managed(lambda: Managed(data_dir), work)


def test_a_run_is_ended_in_time_though_its_process_stands_still(data_dir: DataDir) -> None:
    jobs: list[str] = []

    async def begin(manager: Managed) -> None:
        jobs.append(await manager.submit("m", config(ENDLESS)))
        await manager.started(jobs[0])

    async def work(manager: Managed) -> None:
        [job] = jobs
        await until(lambda: manager.pid(job))
        os.kill(manager.pid(job), signal.SIGSTOP)
        model = await manager.ended(job)
        assert model.training.ended_by.startswith("the server ends a run after 0.01 seconds")
        assert (await manager.jobs.registry.row(job)).state == "succeeded"

    run_managed(lambda: Managed(data_dir), begin)
    run_managed(lambda: Managed(data_dir, max_run_s=0.01), work)


def test_a_step_that_takes_minutes_can_be_left(data_dir: DataDir) -> None:
    """The step is dropped, not waited for: its process needs no kill."""

    async def work(manager: Managed) -> None:
        long = config(accumulation_steps=4096)
        job = await manager.submit("long", long)
        await until(lambda: manager.jobs.registry.live[job].has_started)
        await manager.jobs.decisions.pause(job)
        with pytest.raises(StatusError, match="is paused: paused on request; resume it"):
            await manager.ended(job)
        await manager.jobs.decisions.resume(job)
        await until(lambda: manager.pid(job))
        await manager.jobs.decisions.cancel(job)
        with pytest.raises(StatusError, match="was cancelled before it had trained"):
            await manager.ended(job)
        assert (await manager.jobs.registry.row(job)).reason == "cancelled on request"

    run_managed(lambda: Managed(data_dir), work)


def test_a_process_that_takes_too_much_memory_is_killed_once(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.server.resources.process_memory.most_bytes", lambda _: 1 << 20)

    async def work(manager: Managed) -> None:
        job = await manager.submit("m", config(ENDLESS))
        with pytest.raises(StatusError, match="more memory than --max-training-bytes") as caught:
            await manager.ended(job)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await manager.jobs.registry.row(job)).restarts == 0

    run_managed(lambda: Managed(data_dir, max_run_bytes=1 << 30), work)
