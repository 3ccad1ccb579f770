"""Twelve jobs on two and on four servers, of which one or a process is killed again and again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.postgresql import PostgresqlServer
from services.s3 import S3Server

from treadle.server.storage.blobs.opening import open_blobs
from treadle.server.storage.database import Database
from treadle.server.storage.database.postgresql.opening import open_database
from treadle.server.storage.shared.job_checkpoint import read_checkpoint
from treadle.server.storage.shared.orphan_sweep import sweep_orphans
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, tiny_spec
from .replicas import Follower, Replicas, exported_weights

pytestmark = pytest.mark.shared

JOBS = 12
KILLS = 30
STEPS = 100_000


def spec_of(number: int) -> pb.TrainSpec:
    """Returns the spec of one of the jobs; each makes other weights."""
    spec = tiny_spec(f"model-{number}", max_steps=STEPS)
    spec.seed = number + 1
    spec.network.dropout = 0.1
    spec.report.progress_interval_s = 0.1
    spec.report.validation_interval_steps = STEPS // 10
    return spec


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """The weights of all jobs on a server that nobody disturbs."""
    server = Server(tmp_path_factory.mktemp("calm") / "data", "--training-slots", "2")
    try:
        running = [server.caller.train(spec_of(number), TEXT) for number in range(JOBS)]
        jobs = {next(events).job for events in running}
        end = time.monotonic() + 10 * PATIENCE_S
        while jobs:
            time.sleep(0.5)
            assert time.monotonic() < end, "the jobs do not end"
            jobs -= {job for job in jobs if server.caller.job(job).HasField("end_time")}
        yield [exported_weights(server.caller, f"model-{number}") for number in range(JOBS)]
    finally:
        server.close()


@pytest.mark.parametrize("count", [2, 4])
def test_jobs_survive_kills(
    tmp_path: Path,
    postgresql_server: PostgresqlServer,
    own_s3_server: S3Server,
    undisturbed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    for name, value in own_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = postgresql_server.new_database()
    url = postgresql_server.url(name)
    blobs_url = own_s3_server.url(f"kills-{count}")
    replicas = Replicas(
        *(tmp_path, url, blobs_url, count, "--lease-s", "3", "--checkpoint-interval-s", "0.5"),
        *("--max-restarts", "1000", "--training-slots", "1", "--threads", "1"),
    )
    chance = random.Random(count)
    killed = {"server": 0, "worker": 0}
    met = 0
    try:
        running = [replicas.any().train(spec_of(number), TEXT) for number in range(JOBS)]
        jobs = [next(events).job for events in running]
        followers = [Follower(replicas, job) for job in jobs for _ in range(2)]
        for follower in followers:
            follower.start()
        while sum(killed.values()) < KILLS:
            time.sleep(chance.uniform(0.1, 2.5))
            what = chance.choice(["server", "worker"])
            place = chance.randrange(count)
            if what == "worker":
                killed[what] += replicas.kill_worker(place)
            elif replicas.kill(place):
                killed[what] += 1
                threading.Thread(target=replicas.start, args=(place,)).start()
            met += any(not follower.ended for follower in followers)
        end = time.monotonic() + 10 * PATIENCE_S
        for follower in followers:
            follower.join(max(0.0, end - time.monotonic()))
        while None in replicas.servers:
            time.sleep(0.1)
        faults = [fault for follower in followers for fault in follower.faults]
        assert faults == []
        first, second = followers[::2], followers[1::2]
        for one, other in zip(first, second, strict=True):
            assert one.events == other.events
        for number, weights in enumerate(undisturbed):
            model = f"model-{number}"
            found = replicas.any().stub.GetModel(pb.GetModelRequest(model=model))
            assert list(found.versions) == [found.model.version]
            assert exported_weights(replicas.any(), model) == weights
        reconnections = sum(follower.reconnections for follower in followers)
        print(f"{count} servers: {killed}, {met} rounds while jobs ran, {reconnections=}")
    finally:
        replicas.close()
    database = open_database(url)
    check_blobs(blobs_url, database)
    database.close()
    postgresql_server.drop_database(name)


def check_blobs(url: str, database: Database) -> None:
    """Sweeps the store, and checks that each blob that is left belongs to something."""
    blobs = open_blobs(url)
    swept = sweep_orphans(blobs, database, orphan_s=-3600.0, now_s=time.time())
    print(f"{swept} blobs swept")
    named = {
        blob.key
        for row in database.jobs(limit=10_000)
        for blob in read_checkpoint(row.checkpoint).values()
    }
    left = {blob.key for blob in blobs.list("")}
    versions = database.versions()
    corpora = {f"corpora/{sha256}" for sha256, _, _ in database.corpora()}
    of_models = {key for key in left if key.startswith("models/")}
    assert named <= left
    assert left - named - corpora - of_models == set()
    assert len(versions) == JOBS
    assert len(of_models) == 2 * JOBS  # the file of each version, and its claim
    blobs.close()
