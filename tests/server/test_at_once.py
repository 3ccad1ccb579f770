"""Two callers at once: what one deletes, another is using."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, first_progress, long_spec, tiny_spec, wait_for

Start = Callable[..., Server]

UNFINISHED = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)


@pytest.fixture
def busy(start: Start) -> Server:
    """A server with one slot and a model `base`."""
    server = start("--training-slots", "1", "--checkpoint-interval-s", "0.2")
    server.caller.trained(tiny_spec("base", max_steps=1))
    return server


def code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_the_base_of_a_queued_job_may_be_deleted(busy: Server) -> None:
    caller = busy.caller
    running = caller.train(long_spec("long"), TEXT)
    job = first_progress(running).job
    tuned = pb.TrainSpec(model="tuned", init_from="base")
    tuned.limits.max_steps = 1
    events = caller.train(tuned, TEXT)
    assert next(events).HasField("state")
    deletion = pb.DeleteModelRequest(model="base", all_versions=True)
    caller.stub.DeleteModel(deletion, timeout=PATIENCE_S)
    caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    assert list(events)[-1].completed.version == 1


def test_a_model_may_be_deleted_while_its_next_version_is_trained(busy: Server) -> None:
    caller = busy.caller
    events = caller.train(long_spec("base"), TEXT)
    job = first_progress(events).job
    deletion = pb.DeleteModelRequest(model="base", version=1)
    caller.stub.DeleteModel(deletion, timeout=PATIENCE_S)
    caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    stored = list(events)[-1].completed
    assert caller.generate("base", max_new_tokens=1)[-1].result.version == stored.version


def test_the_weights_of_a_job_are_used_to_the_end_though_it_is_deleted(busy: Server) -> None:
    caller = busy.caller
    job = list(caller.train(tiny_spec("m"), TEXT))[-1].job
    request = pb.GenerateRequest(job=job, max_new_tokens=20_000)
    call = caller.stub.Generate(request, timeout=PATIENCE_S)
    replies = [next(call)]
    caller.stub.DeleteJob(pb.DeleteJobRequest(job=job), timeout=PATIENCE_S)
    replies += list(call)
    assert replies[-1].result.new_tokens == 20_000
    again = pb.GenerateRequest(job=job, max_new_tokens=1)
    missing = code(lambda: list(caller.stub.Generate(again, timeout=PATIENCE_S)))
    assert missing is grpc.StatusCode.NOT_FOUND


def test_a_job_that_many_end_at_once_ends_once(busy: Server) -> None:
    caller = busy.caller
    events = caller.train(long_spec("m"), TEXT)
    job = first_progress(events).job
    cancel = pb.CancelJobRequest(job=job)
    delete = pb.DeleteJobRequest(job=job)

    def end(number: int) -> grpc.StatusCode:
        if number % 2:
            return code(lambda: caller.stub.CancelJob(cancel, timeout=PATIENCE_S))
        return code(lambda: caller.stub.DeleteJob(delete, timeout=PATIENCE_S))

    with ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(end, range(8)))
    expected = (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
    assert codes <= set(expected)
    # Its slot is free a moment before its end is recorded.
    wait_for(lambda: all(found.state not in UNFINISHED for found in caller.jobs(model="m")))
    with ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(lambda _: end(0), range(8)))
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    assert list(caller.jobs(model="m")) == []
    assert not (Path(busy.data_dir) / "jobs" / job).exists()
    versions = caller.stub.GetModel(pb.GetModelRequest(model="m"), timeout=PATIENCE_S).versions
    assert list(versions) == [1]


def test_a_version_that_many_delete_at_once_is_deleted_once(busy: Server) -> None:
    caller = busy.caller
    deletion = pb.DeleteModelRequest(model="base", version=1)

    def delete(_: int) -> grpc.StatusCode:
        return code(lambda: caller.stub.DeleteModel(deletion, timeout=PATIENCE_S))

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(delete, range(8)))
    assert sorted(each.name for each in codes) == ["NOT_FOUND"] * 7 + ["OK"]
