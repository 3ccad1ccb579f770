"""Jobs on the nodes of a Ray cluster, which share no files with the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from services.ray_cluster import ENVIRONMENT, Node, RayCluster, require_cluster

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, is_running, long_spec, tiny_spec, wait_for

pytestmark = pytest.mark.shared

STEPS = 3000


def steady_spec(model: str) -> pb.TrainSpec:
    """Returns a spec that trains for some seconds."""
    spec = tiny_spec(model, max_steps=STEPS)
    spec.network.hidden_size = 64
    spec.data.batch_size = 32
    spec.data.window = 32
    spec.report.progress_interval_s = 0.05
    spec.report.validation_interval_steps = STEPS
    return spec


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "data"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def cluster(data_dir: Path) -> Iterator[RayCluster]:
    """A cluster with one node of two CPUs, for all tests."""
    require_cluster()
    cluster = RayCluster(2, data_dir, data_dir.parent / "ray.log")
    try:
        cluster.wait(1)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of the model that the steady spec trains without Ray."""
    server = Server(tmp_path_factory.mktemp("local") / "data")
    server.caller.trained(steady_spec("m"))
    weights = weights_of(server, "m")
    server.close()
    return weights


def weights_of(server: Server, model: str) -> bytes:
    """Returns the arrays of a stored model, without the record of their training."""
    from treadle.model import Model

    path = server.data_dir / "models" / model / "1" / "model.safetensors"
    return Model.load(path).parameters.flat.tobytes()


def start(cluster: RayCluster, data_dir: Path, *flags: str, threads: int = 2) -> Server:
    """Starts a server with its jobs on the cluster."""
    address = f"unix:{cluster.folder}/server"
    return Server(
        data_dir,
        *("--address", address, "--executor", "ray", "--ray-address", cluster.address),
        *("--threads", str(threads), "--log-level", "info", "--checkpoint-interval-s", "0"),
        *flags,
        prefix=cluster.inside,
        environment=ENVIRONMENT,
    )


@pytest.fixture
def server(cluster: RayCluster, data_dir: Path) -> Iterator[Server]:
    server = start(cluster, data_dir, "--training-slots", "2", "--max-restarts", "0")
    yield server
    server.close()


def begun(server: Server, spec: pb.TrainSpec) -> str:
    """Submits a job and returns its id."""
    job: str = next(server.caller.train(spec, TEXT)).job
    return job


def reasons(server: Server, job: str) -> list[str]:
    """Returns the reasons that a job has given so far."""
    last = server.caller.job(job).last_sequence
    # The range comes first: a watcher of a job that waits would wait as well.
    events = [event for _, event in zip(range(last), server.caller.watch(job), strict=False)]
    return [event.state.reason for event in events if event.state.reason]


def state(server: Server, job: str) -> int:
    return int(server.caller.job(job).state)


def succeeded(server: Server, job: str) -> None:
    """Waits until a job has a model."""
    wait_for(lambda: state(server, job) in (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED))
    described = server.caller.job(job)
    assert described.state == pb.JOB_STATE_SUCCEEDED, described.reason


def node_of(server: Server, nodes: list[Node], job: str) -> Node:
    """Returns the node on which a job runs."""
    lines = [line for line in server.log.splitlines() if f"job {job} runs on node" in line]
    [node] = [node for node in nodes if f"({node.address})" in lines[-1]]
    return node


def has_checkpoint(server: Server, job: str) -> bool:
    # The last file of a checkpoint to arrive.
    return (server.data_dir / "jobs" / job / "last.safetensors").exists()


def test_a_job_of_a_killed_node_resumes_on_another_with_the_same_bytes(
    cluster: RayCluster, server: Server, undisturbed: bytes
) -> None:
    second = cluster.add(2)
    cluster.wait(2)
    jobs = [begun(server, steady_spec(name)) for name in ("first", "second")]
    for job in jobs:
        wait_for(partial(has_checkpoint, server, job))
    nodes = [node_of(server, cluster.nodes, job) for job in jobs]
    assert set(nodes) == set(cluster.nodes)
    [hit] = [job for job, node in zip(jobs, nodes, strict=True) if node is second]
    second.kill()
    for job in jobs:
        succeeded(server, job)
    said = " ".join(reasons(server, hit))
    assert f"({second.address}) or the actor there died; the job continues from its last" in said
    assert "waiting for a node of the Ray cluster with 2 CPUs free" in said
    assert node_of(server, cluster.nodes, hit) is cluster.nodes[0]
    assert server.caller.job(hit).restarts == 1
    for name in ("first", "second"):
        assert weights_of(server, name) == undisturbed
    events = [e.progress.step for e in server.caller.watch(hit) if e.HasField("progress")]
    assert events == sorted(set(events))
    [line] = [n for n in server.log.splitlines() if f"job {hit} is trained from step" in n][1:]
    assert line.startswith(f"job {hit} on node ")
    assert "from step 0" not in line


def test_a_job_that_fits_no_node_waits_and_can_be_paused_and_cancelled(
    cluster: RayCluster, data_dir: Path
) -> None:
    server = start(cluster, data_dir, threads=3)
    job = begun(server, tiny_spec("large"))
    wait_for(lambda: any("3 CPUs: the Ray cluster has" in text for text in reasons(server, job)))
    assert "largest has 2 CPUs" in reasons(server, job)[-1]
    server.caller.stub.PauseJob(pb.PauseJobRequest(job=job))
    wait_for(lambda: server.caller.job(job).state == pb.JOB_STATE_PAUSED)
    server.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job))
    wait_for(lambda: reasons(server, job)[-1].startswith("waiting for a node with 3 CPUs"))
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job))
    wait_for(lambda: state(server, job) == pb.JOB_STATE_CANCELLED)
    waiting = begun(server, tiny_spec("large"))
    wait_for(
        lambda: any("3 CPUs: the Ray cluster has" in text for text in reasons(server, waiting))
    )
    large = cluster.add(3)
    succeeded(server, waiting)
    assert server.end() == 0
    large.kill()


def test_pause_and_resume_and_cancel_are_as_on_one_machine(
    server: Server, undisturbed: bytes
) -> None:
    job = begun(server, steady_spec("paused"))
    wait_for(lambda: has_checkpoint(server, job))
    server.caller.stub.PauseJob(pb.PauseJobRequest(job=job))
    wait_for(lambda: state(server, job) == pb.JOB_STATE_PAUSED)
    server.caller.stub.ResumeJob(pb.ResumeJobRequest(job=job))
    succeeded(server, job)
    assert weights_of(server, "paused") == undisturbed
    endless = begun(server, long_spec("cancelled"))
    wait_for(lambda: has_checkpoint(server, endless))
    assert server.caller.text("", job=endless, prompt="the", max_new_tokens=4)
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=endless))
    wait_for(lambda: state(server, endless) == pb.JOB_STATE_CANCELLED)
    assert server.caller.text("cancelled", prompt="the", max_new_tokens=4)


def processes(text: str) -> list[int]:
    """Returns the processes of this machine whose command has a text in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in command:
            found.append(int(path.parent.name))
    return found


def workers(cluster: RayCluster) -> list[int]:
    """Returns the processes that train on the nodes of a cluster."""
    ours = []
    for pid in processes("treadle.server.jobs.worker"):
        environment = Path(f"/proc/{pid}/environ")
        if str(cluster.folder).encode() in environment.read_bytes():
            ours.append(pid)
    return ours


def test_a_killed_worker_is_a_crash_of_its_job(server: Server, cluster: RayCluster) -> None:
    job = begun(server, long_spec("killed"))
    wait_for(lambda: has_checkpoint(server, job))
    [pid] = workers(cluster)
    os.kill(pid, signal.SIGSTOP)  # so that no further checkpoint forgives the crash
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state(server, job) in (pb.JOB_STATE_FAILED, pb.JOB_STATE_SUCCEEDED))
    wait_for(lambda: not workers(cluster))
    assert server.caller.job(job).state == pb.JOB_STATE_FAILED
    assert "was killed by signal 9 (SIGKILL) (on node " in server.caller.job(job).reason


def test_a_dead_server_leaves_no_orphan_and_the_next_one_continues(
    cluster: RayCluster, data_dir: Path, undisturbed: bytes
) -> None:
    server = start(cluster, data_dir)
    job = begun(server, steady_spec("orphan"))
    wait_for(lambda: has_checkpoint(server, job))
    [worker] = workers(cluster)
    server.end(signal.SIGKILL)
    following = start(cluster, data_dir)
    wait_for(lambda: not is_running(worker))
    succeeded(following, job)
    assert weights_of(following, "orphan") == undisturbed
    wait_for(lambda: not workers(cluster))
    assert following.end() == 0
    wait_for(lambda: not processes("executors.ray_bridge"))


def test_memory_is_set_aside_for_a_job(cluster: RayCluster, data_dir: Path) -> None:
    server = start(cluster, data_dir, "--max-training-bytes", "1000000")
    assert server.caller.trained(tiny_spec("small")).version == 1
    assert server.end() == 0
    server = start(cluster, data_dir, "--max-training-bytes", str(10**13))
    job = begun(server, tiny_spec("huge"))
    wait_for(lambda: any("CPUs and 11,250,268,435,456 bytes" in r for r in reasons(server, job)))
    assert reasons(server, job)[-1].endswith("fewer --threads or --max-training-bytes")
    server.caller.stub.CancelJob(pb.CancelJobRequest(job=job))
    wait_for(lambda: state(server, job) == pb.JOB_STATE_CANCELLED)
    assert server.end() == 0


def test_without_a_cluster_the_server_says_so(cluster: RayCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "treadle.server", "--executor", "ray"]
    flags = ["--ray-address", "nonsense", "--data-dir", str(tmp_path), "--address", "127.0.0.1:0"]
    ended = subprocess.run(
        [*cluster.inside, *command, *flags],
        env=os.environ | ENVIRONMENT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "--ray-address 'nonsense' leads to no Ray cluster: Invalid address" in ended.stderr
