"""A sweep of twelve jobs on two and on four servers, while servers and processes are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from services.postgresql import PostgresqlServer
from services.s3 import S3Server

from treadle.server.storage.blobs.opening import open_blobs
from treadle.server.storage.database import Database
from treadle.server.storage.database.postgresql.opening import open_database
from treadle.server.storage.shared.job_checkpoint import read_checkpoint
from treadle.server.storage.shared.orphan_sweep import sweep_orphans
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server
from .replicas import Follower, Replicas, exported_weights

pytestmark = pytest.mark.shared

JOBS = 12
KILLS = 30
STEPS = 60_000
SWEEP = f"""
[sweep]
name = "kills"
model = "killed"
method = "grid"
parallel = {JOBS}
prune = false
alias = "best"
[files]
train = "corpus.txt"
[train]
layers = 2  # dropout is between them
hidden_size = 8
embedding_size = 4
batch_size = 2
window = 8
max_steps = {STEPS}
sample_tokens = 4
progress_interval_s = 0.1
validation_interval_steps = {STEPS // 10}
[search]
dropout = [0.1, 0.2, 0.3]
learning_rate = [0.001, 0.002, 0.005, 0.01]
"""


class SweepCommand:
    """`treadle sweep` as a process, which may be killed and is then run again.

    Args:
        folder: Where its files are.
        address: Of the servers.
    """

    def __init__(self, folder: Path, address: str) -> None:
        (folder / "corpus.txt").write_bytes(TEXT)
        (folder / "sweep.toml").write_text(SWEEP)
        self._folder = folder
        self._address = address
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        words = ["sweep", str(self._folder / "sweep.toml"), "--json"]
        with (self._folder / "sweep.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "treadle.client", "--server", self._address, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> bool:
        """Kills the command with SIGKILL and runs it again; returns whether it still ran."""
        if self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process = self._started()
        return True

    def wait(self) -> None:
        """Waits for its end, which is that of the sweep."""
        end = time.monotonic() + 10 * PATIENCE_S
        while self.process.wait(max(0.0, end - time.monotonic())):
            # One that begins while all servers are away says so and ends.
            assert self.log.splitlines()[-1].startswith("treadle: nothing listens"), self.log
            time.sleep(0.5)
            self.process = self._started()

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self._folder / "sweep.log").read_text()

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait(PATIENCE_S)


def jobs_of(caller: Caller) -> dict[int, pb.Job]:
    """Returns the jobs of the sweep by the number of the trial; each trial has one."""
    request = pb.ListJobsRequest(tags={"sweep": "kills"}, page_size=1000)
    jobs = caller.stub.ListJobs(request, timeout=PATIENCE_S).jobs
    found = {int(job.spec.tags["trial"]): job for job in jobs}
    assert len(found) == len(jobs)
    return found


def weights_of(caller: Caller) -> dict[int, bytes]:
    """Returns the weights of all trials, from the version that each has stored."""
    return {
        trial: exported_weights(caller, job.model, job.version)
        for trial, job in jobs_of(caller).items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, bytes]]:
    """The weights of all trials on a server that nobody disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    server = Server(folder / "data", "--training-slots", "2")
    sweep = SweepCommand(folder, server.address)
    try:
        sweep.wait()
        yield weights_of(server.caller)
    finally:
        sweep.close()
        server.close()


@pytest.mark.parametrize("count", [2, 4])
def test_a_sweep_survives_kills(
    tmp_path: Path,
    postgresql_server: PostgresqlServer,
    own_s3_server: S3Server,
    undisturbed: dict[int, bytes],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    assert len(set(undisturbed.values())) == JOBS
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
    commands = 0
    sweep = SweepCommand(tmp_path, replicas.address)
    followers: dict[str, list[Follower]] = {}

    def follow() -> None:
        """Follows each job of the sweep twice as soon as it is there."""
        with suppress(
            grpc.RpcError, ValueError
        ):  # its server was killed; the next round asks another
            for job in jobs_of(replicas.any()).values():
                if job.id not in followers:
                    followers[job.id] = [Follower(replicas, job.id) for _ in range(2)]
                    for follower in followers[job.id]:
                        follower.start()

    def running() -> bool:
        """Returns whether a job may still run."""
        return len(followers) < JOBS or any(not pair[0].ended for pair in followers.values())

    try:
        while sum(killed.values()) < KILLS:
            follow()
            time.sleep(chance.uniform(0.1, 2.5))
            what = chance.choice(["server", "worker"])
            place = chance.randrange(count)
            if what == "worker":
                killed[what] += replicas.kill_worker(place)
            elif replicas.kill(place):
                killed[what] += 1
                threading.Thread(target=replicas.start, args=(place,)).start()
            if chance.random() < 0.1:
                commands += sweep.kill()
            met += running()
        sweep.wait()
        while None in replicas.servers:
            time.sleep(0.1)
        follow()
        assert len(followers) == JOBS
        end = time.monotonic() + PATIENCE_S
        for one, other in followers.values():
            one.join(max(0.0, end - time.monotonic()))
            other.join(max(0.0, end - time.monotonic()))
            assert one.faults + other.faults == []
            assert one.events == other.events
        found = replicas.any().stub.GetModel(pb.GetModelRequest(model="killed"))
        jobs = jobs_of(replicas.any()).values()
        assert sorted(found.versions) == sorted(job.version for job in jobs)
        assert weights_of(replicas.any()) == undisturbed
        reconnections = sum(each.reconnections for pair in followers.values() for each in pair)
        print(
            f"{count} servers: {killed}, {commands} times the command, {met} rounds while jobs ran"
        )
        print(f"{reconnections=}")
    finally:
        sweep.close()
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
