"""Servers that stand still, and a database or a store of blobs that cannot be reached."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from services.postgresql import PostgresqlServer
from services.s3 import S3Server
from services.tcp_proxy import proxied

from treadle.server.storage.blobs.opening import open_blobs
from treadle.server.storage.database.postgresql.opening import open_database
from treadle.server.storage.shared.job_checkpoint import read_checkpoint
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, Caller, Server, detail_of, first_progress, tiny_spec, wait_for
from .replicas import Follower, Replicas, exported_weights

pytestmark = pytest.mark.shared

OUTAGE_S = 30.0
LEASE_S = 3.0
STEPS = 150_000
OTHER = b"another corpus " * 20
FAST = ("--lease-s", str(LEASE_S), "--checkpoint-interval-s", "0.5", "--threads", "1")


def spec_of(model: str, steps: int = STEPS) -> pb.TrainSpec:
    """Returns the spec of a job that outlasts a part of an outage."""
    spec = tiny_spec(model, max_steps=steps)
    spec.report.progress_interval_s = 0.2
    spec.report.validation_interval_steps = max(1, steps // 10)
    return spec


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The weights of the job on a server that nobody disturbs."""
    server = Server(tmp_path_factory.mktemp("calm") / "data", "--standby-workers", "0")
    try:
        server.caller.trained(spec_of("m"))
        yield exported_weights(server.caller, "m")
    finally:
        server.close()


def holder_of(replicas: Replicas, url: str, job: str) -> Server:
    """Returns the server that has a job."""
    database = open_database(url)
    row = database.job(job)
    database.close()
    assert row is not None
    found = {server.caller.info().replica: server for server in filter(None, replicas.servers)}
    return found[row.holder]


def last_step(caller: Caller, job: str) -> int:
    return caller.job(job).progress.step


def is_unavailable(call: Callable[[], object]) -> bool:
    """Returns whether a call fails with UNAVAILABLE, and says when to try again."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        retry = detail_of(error, "RetryInfo")
        return bool(retry.retry_delay.ToTimedelta())  # type: ignore[attr-defined]
    return False


def test_a_server_that_stands_still_beyond_its_lease_writes_nothing_afterwards(
    tmp_path: Path, postgresql_url: str, undisturbed: bytes
) -> None:
    blobs_url = (tmp_path / "blobs").as_uri()
    replicas = Replicas(tmp_path, postgresql_url, blobs_url, 2, *FAST)
    database = open_database(postgresql_url)
    blobs = open_blobs(blobs_url)
    try:
        first = replicas.servers[0]
        assert first is not None
        job = first_progress(first.caller.train(spec_of("m"), TEXT)).job
        stopped = holder_of(replicas, postgresql_url, job)
        other = next(s for s in replicas.servers if s is not None and s is not stopped)
        wait_for(lambda: read_checkpoint(database.job(job).checkpoint))  # type: ignore[union-attr]
        stopped.process.send_signal(signal.SIGSTOP)
        assert list(other.caller.watch(job))[-1].completed.version == 1
        assert exported_weights(other.caller, "m") == undisturbed

        def everything() -> tuple[object, ...]:
            """Returns all that the database says of the job and its model, and what it names."""
            row = database.job(job)
            assert row is not None
            named = [blob.key for blob in read_checkpoint(row.checkpoint).values()]
            assert all(blobs.head(key) is not None for key in named)
            return row, database.events(job, 0, 10_000, 1 << 30), database.versions()

        # The other server gives the job back a moment after its end.
        wait_for(lambda: not database.job(job).holder)  # type: ignore[union-attr]
        before = everything()
        stopped.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "continues elsewhere" in stopped.log)
        wait_for(lambda: not stopped.workers())
        time.sleep(2 * LEASE_S)
        assert everything() == before
        assert stopped.caller.job(job).state == pb.JOB_STATE_SUCCEEDED
    finally:
        for server in filter(None, replicas.servers):
            os.kill(server.process.pid, signal.SIGCONT)
        replicas.close()
        database.close()
        blobs.close()


def test_a_server_that_is_cut_off_from_the_database_loses_its_job_and_nothing_else(
    tmp_path: Path, postgresql_server: PostgresqlServer, undisturbed: bytes
) -> None:
    name = postgresql_server.new_database()
    url = postgresql_server.url(name)
    with proxied(postgresql_server.port) as proxy:
        shared = ("--blobs-url", (tmp_path / "blobs").as_uri(), "--standby-workers", "0", *FAST)
        through = url.replace(f":{postgresql_server.port}/", f":{proxy.port}/")
        cut_off = Server(tmp_path / "cut-off", "--database-url", through, *shared)
        other = Server(tmp_path / "other", "--database-url", url, "--training-slots", "1", *shared)
        try:
            generates = cut_off.caller.trained(spec_of("ready", 4)).name
            text = cut_off.caller.text(generates, max_new_tokens=10, seed=1)
            busy = other.caller.train(spec_of("busy"), TEXT)
            first_progress(busy)  # so that the next one runs on the server that is cut off
            job = first_progress(cut_off.caller.train(spec_of("m"), TEXT)).job
            proxy.cut()
            assert cut_off.caller.serving()
            assert cut_off.caller.text(generates, max_new_tokens=10, seed=1) == text
            events = list(other.caller.watch(job))
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert exported_weights(other.caller, "m") == undisturbed
            proxy.restore()
            wait_for(lambda: not is_unavailable(lambda: cut_off.caller.job(job)))
            assert list(cut_off.caller.watch(job)) == events
        finally:
            proxy.restore()
            cut_off.close()
            other.close()


def test_the_database_stops_for_a_while(
    tmp_path: Path, own_postgresql_server: PostgresqlServer, undisturbed: bytes
) -> None:
    postgresql = own_postgresql_server
    url = postgresql.url(postgresql.new_database())
    replicas = Replicas(tmp_path, url, (tmp_path / "blobs").as_uri(), 2, *FAST)
    try:
        servers = [server for server in replicas.servers if server is not None]
        one = servers[0].caller
        one.trained(spec_of("ready", 4))
        texts = [server.caller.text("ready", max_new_tokens=10, seed=1) for server in servers]
        job = first_progress(one.train(spec_of("m"), TEXT)).job
        followers = [Follower(replicas, job) for _ in range(4)]
        for follower in followers:
            follower.start()
        fence = open_fence(url, job)
        postgresql.stop()
        until = time.monotonic() + OUTAGE_S
        while time.monotonic() < until:
            for server, text in zip(servers, texts, strict=True):
                assert server.caller.serving()
                assert server.caller.text("ready", max_new_tokens=10, seed=1) == text
                caller = server.caller
                assert is_unavailable(lambda caller=caller: caller.job(job))  # type: ignore[misc]
                assert is_unavailable(
                    lambda caller=caller: list(  # type: ignore[misc]
                        caller.train(spec_of("refused", 4), TEXT)
                    )
                )
            time.sleep(1.0)
        postgresql.start()
        for follower in followers:
            follower.join(10 * OUTAGE_S)
        assert [fault for follower in followers for fault in follower.faults] == []
        assert all(follower.events == followers[0].events for follower in followers)
        # This server may be a moment later to find the database again.
        wait_for(lambda: not is_unavailable(lambda: one.job(job)))
        assert exported_weights(one, "m") == undisturbed
        wait_for(lambda: open_fence(url, job) != fence)
        assert open_fence(url, job) == fence + 1, "the job has changed hands"  # it was given back
    finally:
        replicas.close()


def open_fence(url: str, job: str) -> int:
    """Returns the fence of a job."""
    database = open_database(url)
    row = database.job(job)
    database.close()
    assert row is not None
    return row.fence


def test_the_store_stops_for_a_while(
    tmp_path: Path,
    postgresql_url: str,
    own_s3_server: S3Server,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in own_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    replicas = Replicas(tmp_path, postgresql_url, own_s3_server.url("outage"), 2, *FAST)
    try:
        servers = [server for server in replicas.servers if server is not None]
        one = servers[0].caller
        for model in ("ready", "unread"):
            one.trained(spec_of(model, 4))
        texts = [server.caller.text("ready", max_new_tokens=10, seed=1) for server in servers]
        job = first_progress(one.train(spec_of("m"), TEXT)).job
        followers = [Follower(replicas, job) for _ in range(2)]
        for follower in followers:
            follower.start()
        own_s3_server.stop()
        steps = [last_step(one, job)]
        refused = threading.Event()
        until = time.monotonic() + OUTAGE_S
        while time.monotonic() < until:
            for server, text in zip(servers, texts, strict=True):
                assert server.caller.serving()
                assert server.caller.text("ready", max_new_tokens=10, seed=1) == text
            if not refused.is_set():
                assert is_unavailable(lambda: list(one.train(spec_of("refused", 4), OTHER)))
                refused.set()
            steps.append(last_step(one, job))
            time.sleep(1.0)
        assert steps[-1] > steps[0], "the job did not continue"
        own_s3_server.start()
        for follower in followers:
            follower.join(10 * OUTAGE_S)
        assert [fault for follower in followers for fault in follower.faults] == []
        assert exported_weights(one, "m") == undisturbed
        assert one.text("unread", max_new_tokens=2) is not None
    finally:
        replicas.close()
