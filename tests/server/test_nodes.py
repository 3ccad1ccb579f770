"""Jobs whose work several processes share, which `--mpirun` starts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from mpirun import ENVIRONMENT, MPIRUN, needs_mpi

from treadle.model import Model
from treadle.server.resources.process_status import with_descendants
from treadle.server.storage.job_files import STATE_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    TEXT,
    Server,
    fields_of,
    first_progress,
    is_running,
    long_spec,
    tiny_spec,
    wait_for,
)

pytestmark = [pytest.mark.jit, needs_mpi]


NODES = (
    f"--mpirun={MPIRUN}",
    "--standby-workers=0",
    "--threads=1",
    "--checkpoint-interval-s=0.2",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("data"), *NODES, environment=ENVIRONMENT)
    yield made
    made.close()


def shared(spec: pb.TrainSpec, nodes: int) -> pb.TrainSpec:
    """Returns a spec with three shards to share."""
    spec.data.batch_size = 40
    spec.nodes = nodes
    return spec


def processes(server: Server) -> list[int]:
    """Returns mpirun and all that it has started."""
    return [pid for worker in server.workers() for pid in with_descendants(worker)]


def ranks(server: Server) -> list[int]:
    """Returns the processes that share a job."""

    def command(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    python = os.fsencode(sys.executable)
    commands = ((pid, command(pid)) for pid in processes(server))
    return [pid for pid, words in commands if words.startswith(python) and b"--ranks" in words]


def weights(server: Server, name: str) -> bytes:
    (file,) = (server.data_dir / "models" / name).rglob("*.safetensors")
    return Model.load(file).parameters.flat.tobytes()


def test_the_number_of_nodes_changes_no_bit(server: Server) -> None:
    for nodes in (1, 3):
        spec = shared(tiny_spec(f"nodes-{nodes}", max_steps=12), nodes)
        events = list(server.caller.train(spec, TEXT * 3))
        assert events[0].state.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
        (started,) = [event.started for event in events if event.HasField("started")]
        assert started.spec.nodes == nodes
    assert weights(server, "nodes-1") == weights(server, "nodes-3")
    wait_for(lambda: not processes(server))


def test_a_job_outlives_a_killed_rank_and_leaves_none_behind(server: Server) -> None:
    events = server.caller.train(shared(long_spec("killed"), 2), TEXT * 3)
    job = next(events).job
    first_progress(events)
    wait_for(lambda: (server.data_dir / "jobs" / job / STATE_FILE).exists())
    started = ranks(server)
    assert len(started) == 2, server.log
    os.kill(started[1], signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, started)))
    wait_for(lambda: server.caller.job(job).restarts == 1)
    first_progress(events)

    server.caller.stub.PauseJob(pb.PauseJobRequest(job=job))
    wait_for(lambda: server.caller.job(job).state == pb.JOB_STATE_PAUSED)
    wait_for(lambda: not processes(server))
    step = server.caller.job(job).progress.step
    server.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job))
    wait_for(lambda: server.caller.job(job).progress.step > step)

    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job))
    wait_for(lambda: server.caller.job(job).state == pb.JOB_STATE_CANCELLED)
    wait_for(lambda: not processes(server))


@pytest.mark.shared
def test_no_rank_outlives_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", *NODES, environment=ENVIRONMENT)
    try:
        events = server.caller.train(shared(long_spec("orphan"), 2), TEXT * 3)
        first_progress(events)
        started = processes(server)
        assert len(ranks(server)) == 2, server.log
    finally:
        server.process.kill()
        server.close()
    wait_for(lambda: not any(map(is_running, started)))


def test_a_server_has_a_limit_of_nodes(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(server.caller.train(shared(tiny_spec("refused"), 5000), TEXT))
    assert fields_of(caught.value) == ["spec.nodes"]


def test_a_server_without_mpirun_refuses_nodes(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--standby-workers=0")
    try:
        with pytest.raises(grpc.RpcError) as caught:
            list(server.caller.train(shared(tiny_spec("refused"), 2), TEXT))
        assert fields_of(caught.value) == ["spec.nodes"]
        assert "--mpirun" in (caught.value.details() or "")
    finally:
        server.close()
