"""Jobs outlive their clients, their processes and their server, and come out the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from treadle.benchmarks.kills import survive
from treadle.model import Model
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE, STATE_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Caller,
    Server,
    first_progress,
    long_spec,
    tiny_spec,
    wait_for,
)

Start = Callable[..., Server]
FAST = ("--checkpoint-interval-s", "0.05")


def weights(server: Server, model: str, version: int = 1) -> bytes:
    """Returns the numbers of a stored model."""
    path = server.data_dir / "models" / model / str(version) / "model.safetensors"
    return Model.load(path).parameters.flat.tobytes()


def state_of(caller: Caller, job: str) -> int:
    return caller.job(job).state


def states(events: list[pb.JobEvent]) -> list[str]:
    """Returns the states that a job came into, in order."""
    changes = [event.state for event in events if event.HasField("state")]
    return [pb.JobState.Name(change.state).removeprefix("JOB_STATE_") for change in changes]


def test_killed_at_random_moments_a_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    survival = survive(kills=5, seed=1, steps=6000, folder=tmp_path)
    assert survival.faults == []
    assert set(survival.kills) == {"worker", "server"}


def test_sigterm_keeps_a_job_and_the_next_server_ends_it(start: Start) -> None:
    server = start(*FAST)
    spec = tiny_spec("kept", max_steps=20_000)
    calm = tiny_spec("calm", max_steps=20_000)
    server.caller.trained(calm)
    running = server.caller.train(spec, TEXT)
    job = first_progress(running).job
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        list(running)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"job {job} continues when it has started again" in (caught.value.details() or "")
    assert server.wait() == 0
    again = start(*FAST)
    events = list(again.caller.watch(job))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].completed.name == "kept"
    assert states(events)[:4] == ["QUEUED", "RUNNING", "QUEUED", "RUNNING"]
    assert weights(again, "kept") == weights(again, "calm")


def test_a_killed_process_is_replaced_a_limited_number_of_times(start: Start) -> None:
    # Without a checkpoint in between, every start is from the beginning.
    server = start("--checkpoint-interval-s", "10000", "--max-restarts", "1")
    running = server.caller.train(long_spec("killed"), TEXT)
    job = first_progress(running).job
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: server.caller.job(job).restarts == 1)
    wait_for(server.workers)
    os.kill(server.workers()[0], signal.SIGSEGV)
    with pytest.raises(grpc.RpcError) as caught:
        list(running)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    message = caught.value.details() or ""
    assert "the training process was killed by signal 11 (SIGSEGV)" in message
    assert "2 times in a row without a new checkpoint between" in message
    job_after = server.caller.job(job)
    assert (job_after.state, job_after.error_code) == (pb.JOB_STATE_FAILED, 10)
    assert server.caller.trained(tiny_spec("next")).version == 1


def test_a_process_told_to_end_keeps_its_state(start: Start) -> None:
    server = start("--checkpoint-interval-s", "10000")
    calm = server.caller.trained(tiny_spec("calm", max_steps=20_000))
    running = server.caller.train(tiny_spec("asked", max_steps=20_000), TEXT)
    first_progress(running)
    os.kill(server.workers()[0], signal.SIGTERM)
    events = list(running)
    assert "RUNNING" in states(events)
    assert events[-1].completed.training.steps == calm.training.steps
    assert weights(server, "asked") == weights(server, "calm")


def test_pause_and_resume_change_nothing(start: Start) -> None:
    server = start()
    caller = server.caller
    caller.trained(tiny_spec("calm", max_steps=20_000))
    running = caller.train(tiny_spec("paused", max_steps=20_000), TEXT)
    job = first_progress(running).job
    caller.stub.PauseJob(pb.PauseJobRequest(job=job), timeout=PATIENCE_S)
    # The reply does not wait for a process that takes long.
    wait_for(lambda: state_of(caller, job) == pb.JOB_STATE_PAUSED)
    paused = caller.job(job)
    assert (paused.state, paused.reason) == (pb.JOB_STATE_PAUSED, "paused on request")
    assert (server.data_dir / "jobs" / job / STATE_FILE).exists()
    with pytest.raises(grpc.RpcError) as caught:
        list(running)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "is paused" in (caught.value.details() or "")
    assert caller.info().training_running == 0
    resumed = caller.stub.ResumeJob(pb.ResumeJobRequest(job=job), timeout=PATIENCE_S).job
    assert resumed.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
    events = list(caller.watch(job))
    assert events[-1].HasField("completed")
    assert weights(server, "paused") == weights(server, "calm")
    state = server.data_dir / "jobs" / job / STATE_FILE
    wait_for(lambda: not state.exists())  # after the last event


def test_a_paused_job_stays_paused_over_a_restart(start: Start) -> None:
    first = start()
    running = first.caller.train(long_spec("paused"), TEXT)
    job = first_progress(running).job
    first.caller.stub.PauseJob(pb.PauseJobRequest(job=job), timeout=PATIENCE_S)
    step = first.caller.job(job).progress.step
    assert first.end() == 0
    second = start()
    assert state_of(second.caller, job) == pb.JOB_STATE_PAUSED
    second.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job), timeout=PATIENCE_S)
    wait_for(lambda: second.caller.job(job).progress.step > step)


def test_a_queue_outlives_its_server_and_keeps_its_order(start: Start) -> None:
    first = start()
    running = first.caller.train(long_spec("long"), TEXT)
    long = first_progress(running).job
    jobs = [next(first.caller.train(tiny_spec(f"q{n}"), TEXT)).job for n in range(3)]
    assert [first.caller.job(job).queue_position for job in jobs] == [0, 1, 2]
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait()
    second = start()
    second.caller.stub.CancelJob(pb.CancelJobRequest(job=long), timeout=PATIENCE_S)
    models = [list(second.caller.watch(job))[-1].completed for job in jobs]
    assert [model.name for model in models] == ["q0", "q1", "q2"]
    created = [model.create_time.ToNanoseconds() for model in models]
    assert created == sorted(created)


def test_cancelling_a_running_job_stores_what_it_has_learnt(start: Start) -> None:
    server = start(*FAST)
    spec = long_spec("cancelled")
    spec.report.validation_interval_steps = 50
    running = server.caller.train(spec, TEXT)
    job = first_progress(running).job
    wait_for(lambda: (server.data_dir / "jobs" / job / BEST_FILE).exists())
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    model = list(running)[-1].completed
    assert model.training.ended_by.startswith("cancelled after ")
    assert model.training.weights_step <= model.training.steps
    job_after = server.caller.job(job)
    assert (job_after.state, job_after.version) == (pb.JOB_STATE_CANCELLED, 1)
    for which in (pb.JOB_WEIGHTS_LAST, pb.JOB_WEIGHTS_BEST):
        assert server.caller.text("", job=job, job_weights=which, max_new_tokens=5)


def test_cancelling_a_waiting_or_paused_job(start: Start) -> None:
    server = start(*FAST)
    caller = server.caller
    running = caller.train(long_spec("running"), TEXT)
    first = first_progress(running).job
    waiting = caller.train(tiny_spec("waiting"), TEXT)
    job = next(waiting).job
    cancelled = caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S).job
    assert (cancelled.state, cancelled.version) == (pb.JOB_STATE_CANCELLED, 0)
    with pytest.raises(grpc.RpcError) as caught:
        list(waiting)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    caller.stub.PauseJob(pb.PauseJobRequest(job=first), timeout=PATIENCE_S)
    caller.stub.CancelJob(pb.CancelJobRequest(job=first), timeout=PATIENCE_S)
    wait_for(lambda: caller.job(first).HasField("end_time"))
    kept = caller.job(first)
    assert (kept.state, kept.version) == (pb.JOB_STATE_CANCELLED, 1)
    record = caller.stub.GetModel(pb.GetModelRequest(model="running")).model.training
    assert record.ended_by == f"cancelled on request after {record.steps} steps"
    assert caller.text("running", max_new_tokens=3)


def test_a_running_job_can_be_used_and_is_not_disturbed(start: Start) -> None:
    server = start(*FAST)
    caller = server.caller
    caller.trained(tiny_spec("calm", max_steps=20_000))
    running = caller.train(tiny_spec("used", max_steps=20_000), TEXT)
    job = first_progress(running).job
    wait_for(lambda: (server.data_dir / "jobs" / job / LAST_FILE).exists())
    steps: list[int] = []
    # Until several steps have been seen: how soon they come is the machine's matter.
    while state_of(caller, job) == pb.JOB_STATE_RUNNING and len(set(steps)) < 5:
        replies = caller.generate("", job=job, max_new_tokens=5)
        steps.append(replies[-1].result.job_step)
        assert replies[-1].result.version == 0
        assert caller.score("", ["the fox"], job=job).job_step >= steps[-1]
    assert steps == sorted(steps)
    assert len(set(steps)) > 1
    list(running)
    assert weights(server, "used") == weights(server, "calm")


@pytest.mark.parametrize("kind", ["picked by AUTO", "gone on from a model"])
def test_what_was_settled_at_the_start_holds_after_a_kill(start: Start, kind: str) -> None:
    server = start(*FAST)
    spec = long_spec("killed")
    if kind == "picked by AUTO":
        spec = pb.TrainSpec(model="killed", preset=pb.PRESET_AUTO, report=spec.report)
        spec.limits.max_time_s = 3600
    else:
        server.caller.trained(tiny_spec("base"))
        spec.init_from = "base"
        spec.ClearField("network")
    running = server.caller.train(spec, TEXT * 20)
    job = first_progress(running).job
    wait_for(lambda: (server.data_dir / "jobs" / job / STATE_FILE).exists())
    started = server.caller.job(job).started
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: server.caller.job(job).restarts == 1)
    step = server.caller.job(job).progress.step
    wait_for(lambda: server.caller.job(job).progress.step > step)
    assert server.caller.job(job).started == started
    assert "starts over" not in server.log  # its checkpoint was of use
    assert [event.HasField("started") for event in server.caller.watch_now(job)].count(True) == 1
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)


def test_a_full_disk_pauses_a_job_for_as_long_as_it_is_full(start: Start) -> None:
    enough = str(1 << 60)  # no disk has as much free
    first = start(*FAST)
    running = first.caller.train(long_spec("full"), TEXT)
    job = first_progress(running).job
    assert first.end() == 0
    second = start(*FAST, "--min-free-bytes", enough)
    wait_for(lambda: state_of(second.caller, job) == pb.JOB_STATE_PAUSED)
    assert "the disk is full" in second.caller.job(job).reason
    with pytest.raises(grpc.RpcError) as caught:
        list(second.caller.train(tiny_spec("refused"), TEXT))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert second.end() == 0
    third = start(*FAST)
    step = third.caller.job(job).progress.step
    # There is space: it continues by itself.
    wait_for(lambda: third.caller.job(job).progress.step > step)


def test_hundreds_of_jobs_wait_in_line(start: Start) -> None:
    server = start("--training-queue-limit", "200")
    caller = server.caller
    running = caller.train(long_spec("first"), TEXT)
    first_progress(running)
    jobs = [next(caller.train(tiny_spec("tiny", max_steps=1), TEXT)).job for _ in range(200)]
    assert caller.info().training_queued == 200
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(tiny_spec("one-too-many"), TEXT))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caller.job(jobs[-1]).queue_position == 199
    listed = list(caller.jobs(page_size=60))
    assert [job.id for job in listed[:200]] == jobs[::-1]
    for job in jobs[2:]:
        caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    caller.stub.CancelJob(pb.CancelJobRequest(job=listed[-1].id), timeout=PATIENCE_S)
    assert [list(caller.watch(job))[-1].completed.version for job in jobs[:2]] == [1, 2]
    assert caller.info().training_queued == 0
    assert caller.serving()
