"""A server with `--training-slots 0` runs no job: others do, or it says that nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from treadle.server.jobs import manager as jobs_module
from treadle.server.jobs.job_queue import JobLimits
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.storage.data_dir import DataDir
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, first_progress, long_spec, tiny_spec, wait_for
from .replicas import ERRORS
from .samples import job_row
from .test_jobs import FakeWorkerPool, StubbornWorker

Start = Callable[..., Server]

NONE = ("--training-slots", "0", "--standby-workers", "1")


def state(server: Server, job: str) -> str:
    return pb.JobState.Name(server.caller.job(job).state).removeprefix("JOB_STATE_")


def resume(server: Server, job: str) -> None:
    server.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job), timeout=PATIENCE_S)


def pause(server: Server, job: str) -> None:
    server.caller.stub.PauseJob(pb.PauseJobRequest(job=job), timeout=PATIENCE_S)
    wait_for(lambda: state(server, job) == "PAUSED")


def test_another_replica_runs_the_jobs_of_one_that_only_serves(
    tmp_path: Path, postgresql_url: str
) -> None:
    shared = ("--database-url", postgresql_url, "--blobs-url", (tmp_path / "blobs").as_uri())
    serves = Server(tmp_path / "serves", *shared, *NONE)
    servers = [serves]
    try:
        running = serves.caller.train(long_spec("elsewhere"), TEXT)
        job = next(running).job
        wait_for(lambda: serves.caller.info().kernels_total == 0)
        assert serves.workers() == []
        assert (state(serves, job), serves.caller.job(job).reason) == ("QUEUED", "")
        assert serves.caller.info().training_slots == 0
        pause(serves, job)
        resume(serves, job)
        trains = Server(tmp_path / "trains", *shared, "--standby-workers", "0")
        servers.append(trains)
        following = serves.caller.watch(job)
        first_progress(following)
        assert (trains.caller.info().training_running, trains.workers() == []) == (1, False)
        assert (serves.caller.info().training_running, serves.workers()) == (0, [])
        pause(serves, job)
        resume(serves, job)
        wait_for(lambda: state(serves, job) == "RUNNING")
        serves.caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
        wait_for(lambda: serves.caller.text("elsewhere", max_new_tokens=4))
        assert serves.workers() == []
    finally:
        for server in servers:
            server.close()
    for server in servers:
        for sign in ERRORS:
            assert sign not in server.log, server.log


def test_a_server_of_its_own_refuses_to_train_and_keeps_its_jobs(start: Start) -> None:
    before = start()
    paused = first_progress(before.caller.train(long_spec("paused"), TEXT)).job
    pause(before, paused)
    done = before.caller.trained(tiny_spec("done"))
    first_progress(before.caller.train(long_spec("runs"), TEXT))
    spec = long_spec("waits")
    spec.request_id = "waits"
    waits = next(before.caller.train(spec, TEXT)).job
    before.end()

    serves = start(*NONE)
    for call in (
        lambda: list(serves.caller.train(tiny_spec("new"), TEXT)),
        lambda: resume(serves, paused),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "--training-slots 1 or more" in (caught.value.details() or "")
    assert next(serves.caller.train(spec, TEXT)).job == waits  # it was accepted before
    wait_for(lambda: serves.caller.info().kernels_total == 0)
    assert serves.workers() == []
    assert serves.caller.info().training_queued == 2
    assert "2 jobs wait, and --training-slots 0 runs none of them" in serves.log
    assert serves.caller.text(done.name, max_new_tokens=4)
    serves.caller.stub.CancelJob(pb.CancelJobRequest(job=waits), timeout=PATIENCE_S)
    wait_for(lambda: state(serves, waits) == "CANCELLED")
    serves.end()

    after = start("--training-slots", "2")
    resume(after, paused)
    wait_for(lambda: after.caller.info().training_running == 2)


def test_no_job_continues_for_the_disk_of_a_server_that_runs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_SPACE_S", 0.01)
    data_dir = DataDir(tmp_path, min_free_bytes=0)
    row = job_row("j", state="paused", reason="the disk is full", waits_for_bytes=1)
    data_dir.database.add_job(row, b"")

    async def run() -> None:
        limits = RunLimits(1, checkpoint_interval_s=1.0, min_free_bytes=0)
        workers = FakeWorkerPool(StubbornWorker)
        manager = JobManager(data_dir, workers, JobLimits(0, 9, 9, 2), limits)
        await manager.recover()
        manager.open()
        await asyncio.sleep(0.2)
        assert (await manager.registry.row("j")).state == "paused"
        await manager.close("the test ended")

    asyncio.run(run())
    data_dir.close()
