"""Two servers over one PostgreSQL and one store of blobs: each knows what the other does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from services.postgresql import PostgresqlServer

from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, Server, first_progress, long_spec, tiny_spec, wait_for
from .replicas import ERRORS, exported_weights

Pair = tuple[Server, Server]


def start(folder: Path, url: str, *flags: str) -> Server:
    """Starts a server that shares a database, and the blobs of a folder."""
    blobs = (folder.parent / "blobs").as_uri()
    shared = ("--database-url", url, "--blobs-url", blobs, "--lease-s", "2")
    return Server(folder, *shared, "--standby-workers", "0", *flags)


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgresqlServer
) -> Iterator[Pair]:
    """Two servers for all tests that do not end them."""
    root = tmp_path_factory.mktemp("replicas")
    name = postgresql_server.new_database()
    servers = [start(root / folder, postgresql_server.url(name)) for folder in ("one", "two")]
    yield servers[0], servers[1]
    for server in servers:
        server.close()
        for sign in ERRORS:
            assert sign not in server.log, server.log
    postgresql_server.drop_database(name)


def state(server: Server, job: str) -> str:
    return pb.JobState.Name(server.caller.job(job).state).removeprefix("JOB_STATE_")


def code_of(call: object, *arguments: object, **named: object) -> grpc.StatusCode | None:
    """Returns the code of a failed call; None where it succeeds."""
    try:
        call(*arguments, **named)  # type: ignore[operator]
    except grpc.RpcError as error:
        return error.code()
    return None


def test_a_job_is_known_to_both_and_its_model_is_used_by_both(pair: Pair) -> None:
    one, two = pair
    events = list(one.caller.train(tiny_spec("known", max_steps=40), TEXT))
    job = events[0].job
    assert list(two.caller.watch(job)) == events
    assert two.caller.job(job) == one.caller.job(job)
    fields = {"version": events[-1].completed.version, "max_new_tokens": 20, "seed": 3}
    assert len({server.caller.text("known", **fields) for server in pair}) == 1
    assert one.caller.info().replica != two.caller.info().replica


def test_versions_aliases_and_deletions_of_the_other_server_are_noticed(pair: Pair) -> None:
    one, two = pair
    first = one.caller.trained(tiny_spec("named"))
    assert two.caller.text("named", max_new_tokens=2) is not None
    alias = pb.SetAliasRequest(model="named", alias="prod", version=first.version)
    one.caller.stub.SetAlias(alias)
    wait_for(lambda: code_of(two.caller.text, "named@prod", max_new_tokens=2) is None)
    second = one.caller.trained(tiny_spec("named", max_steps=6))
    newest = pb.GetModelRequest(model="named")
    wait_for(lambda: two.caller.stub.GetModel(newest).model.version == second.version)
    gone = pb.DeleteModelRequest(model="named", version=second.version)
    assert list(two.caller.stub.DeleteModel(gone).versions) == [second.version]
    wait_for(lambda: one.caller.stub.GetModel(newest).model.version == first.version)
    everything = pb.DeleteModelRequest(model="named", all_versions=True, force=True)
    one.caller.stub.DeleteModel(everything)
    missing = grpc.StatusCode.NOT_FOUND
    wait_for(lambda: code_of(two.caller.text, "named", max_new_tokens=2) is missing)


def test_a_request_sent_to_both_at_once_is_one_job(pair: Pair) -> None:
    spec = tiny_spec("once", max_steps=30)
    spec.request_id = "once"
    with ThreadPoolExecutor(2) as pool:
        training = [pool.submit(server.caller.train, spec, TEXT) for server in pair]
        events = [list(found.result()) for found in training]
    assert events[0] == events[1]
    assert len(list(pair[0].caller.jobs(model="once"))) == 1


def test_a_job_obeys_either_server_and_its_live_weights_are_served_by_both(pair: Pair) -> None:
    one, two = pair
    running = one.caller.train(long_spec("live"), TEXT)
    job = first_progress(running).job
    request = pb.GenerateRequest(job=job, max_new_tokens=2)

    def serves(server: Server) -> bool:
        return code_of(lambda: list(server.caller.stub.Generate(request))) is None

    for server in pair:
        wait_for(lambda server=server: serves(server))  # type: ignore[misc]
    for server in pair:
        server.caller.stub.PauseJob(pb.PauseJobRequest(job=job))
        wait_for(lambda: state(one, job) == "PAUSED")
        other = two if server is one else one
        other.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job))
        wait_for(lambda: state(two, job) == "RUNNING")
        assert serves(other)
    two.caller.stub.CancelJob(pb.CancelJobRequest(job=job))
    wait_for(lambda: state(one, job) == "CANCELLED")
    last = list(two.caller.watch(job))
    assert [event.sequence for event in last] == list(range(1, len(last) + 1))
    one.caller.stub.DeleteJob(pb.DeleteJobRequest(job=job))
    assert code_of(two.caller.job, job) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.shared), signal.SIGKILL]
)
def test_a_job_goes_on_where_its_server_ends(
    tmp_path: Path, postgresql_url: str, pair: Pair, number: signal.Signals
) -> None:
    calm = pair[0].caller.trained(tiny_spec("calm", max_steps=6000))
    fast = ("--checkpoint-interval-s", "0.05")
    ends = start(tmp_path / "ends", postgresql_url, *fast)
    other = None
    try:
        running = ends.caller.train(tiny_spec("goes-on", max_steps=6000), TEXT)
        job = first_progress(running).job
        other = start(tmp_path / "other", postgresql_url, *fast)
        if state(other, job) != "SUCCEEDED":
            ends.process.send_signal(number)
            with pytest.raises(grpc.RpcError) as caught:
                list(running)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        seen = [event.sequence for event in other.caller.watch(job)]
        assert seen == list(range(1, len(seen) + 1))
        assert state(other, job) == "SUCCEEDED"
        assert exported_weights(other.caller, "goes-on") == exported_weights(
            pair[0].caller, "calm", calm.version
        )
    finally:
        ends.close()
        if other is not None:
            other.close()
