"""`survive` kills the process or the server of a training job, which has to survive both.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--steps 12000]

Trains one model undisturbed, then the same again while its process or its server, in turns drawn
by the seed, is killed at moments drawn by the seed. A watcher follows the second job, comes back
after each kill of the server, and asks for what came after the last event that it saw. Then the
weights of both models are compared byte for byte, and the numbers of the events are counted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.model import Model
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_CALL_S = 120.0
_CORPUS = ("".join(chr(97 + i * i % 23) for i in range(400)) + "\n") * 20


@dataclass
class Survival:
    """What became of a job that was killed again and again."""

    kills: list[str] = field(default_factory=list)
    """What was killed, in order: worker or server."""
    sequences: list[int] = field(default_factory=list)
    """The numbers of the events that the watcher saw, in the order in which it saw them."""
    steps: list[int] = field(default_factory=list)
    """The steps of their progress."""
    restarts: int = 0
    """How often the job went on after its process had died."""
    undisturbed: bytes = b""
    """The weights of the job that nobody disturbed."""
    disturbed: bytes = b""
    """The weights of the job that was killed."""

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, in sentences."""
        found = []
        if self.undisturbed != self.disturbed:
            found.append("the weights differ")
        if self.sequences != list(range(1, len(self.sequences) + 1)):
            found.append(f"events were missed, repeated or out of order: {self.sequences}")
        if self.steps != sorted(self.steps):
            found.append("progress went backwards")
        return found


def spec(model: str, steps: int) -> pb.TrainSpec:
    """Returns a spec with all that a state must hold: dropout, accumulation, validation."""
    return pb.TrainSpec(
        model=model,
        network=pb.NetworkSpec(
            hidden_size=24, embedding_size=8, layers=2, dropout=0.1, output_dropout=0.2
        ),
        data=pb.DataSpec(batch_size=4, window=16),
        optimizer=pb.OptimizerSpec(accumulation_steps=2, schedule=pb.SCHEDULE_PLATEAU),
        limits=pb.LimitsSpec(max_steps=steps),
        report=pb.ReportSpec(
            sample_tokens=4, progress_interval_s=0.1, validation_interval_steps=steps // 20
        ),
        keep=pb.KEEP_LAST,
        seed=7,
    )


class Server:
    """A server that may be killed and started again on the same data directory."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Starts a server and waits until it is ready."""
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", str(self._data), "--checkpoint-interval-s", "0.1"]
        command += ["--standby-workers", "0", "--log-level", "error"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().split()[-1]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the server and waits until it is gone."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(_CALL_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def workers(self) -> list[int]:
        """Returns the ids of its training processes."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        children = ((task / "children").read_text().split() for task in tasks.iterdir())
        return [int(pid) for pids in children for pid in pids]

    @contextmanager
    def stub(self) -> Iterator[sequence_pb2_grpc.SequenceServiceStub]:
        """Gives a stub of the server."""
        with grpc.insecure_channel(self.address, THIS_MACHINE) as channel:
            yield sequence_pb2_grpc.SequenceServiceStub(channel)


class Watcher(threading.Thread):
    """Follows a job to its end, through the deaths of its server."""

    def __init__(self, server: Server, job: str, survival: Survival) -> None:
        super().__init__()
        self._server = server
        self._job = job
        self._survival = survival
        self.error = ""
        """What the job ended with instead of a model."""

    def run(self) -> None:
        """Follows, and comes back where it was cut off."""
        end = time.monotonic() + 10 * _CALL_S
        while time.monotonic() < end:
            try:
                if self._follow():
                    return
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                    self.error = f"{error.code().name}: {error.details()}"
                    return
            time.sleep(0.05)
        self.error = "the job did not end"

    def _follow(self) -> bool:
        seen = self._survival.sequences
        with self._server.stub() as stub:
            request = pb.WatchJobRequest(job=self._job, after_sequence=seen[-1] if seen else 0)
            for reply in stub.WatchJob(request, timeout=_CALL_S):
                seen.append(reply.event.sequence)
                if reply.event.HasField("progress"):
                    self._survival.steps.append(reply.event.progress.step)
                if reply.event.HasField("completed"):
                    return True
        return False


def survive(kills: int, seed: int, steps: int, folder: Path) -> Survival:
    """Trains undisturbed, then again with kills.

    Args:
        kills: How often to kill.
        seed: Draws what is killed and when.
        steps: Steps of the job; it should last longer than all the kills.
        folder: Where the servers keep their data.

    Returns:
        What became of the second run, compared with the first.
    """
    draw = random.Random(seed)
    survival = Survival()
    server = Server(folder)
    server.start()
    try:
        survival.undisturbed = _weights(folder, "calm", _train(server, "calm", steps))
        with server.stub() as stub:
            job = next(stub.Train(_upload(spec("killed", steps)), timeout=_CALL_S)).job
        watcher = Watcher(server, job, survival)
        watcher.start()
        for _ in range(kills):
            time.sleep(draw.uniform(0.0, 1.5))
            if not watcher.is_alive():
                break
            survival.kills.append(_kill(server, draw.random() < 0.5))
        watcher.join()
        assert not watcher.error, watcher.error
        with server.stub() as stub:
            done = stub.GetJob(pb.GetJobRequest(job=job), timeout=_CALL_S).job
        survival.restarts = done.restarts
        survival.disturbed = _weights(folder, "killed", done.version)
    finally:
        server.kill(signal.SIGTERM)
    return survival


def _kill(server: Server, whole: bool) -> str:
    workers = server.workers()
    if whole or not workers:
        server.kill()
        server.start()
        return "server"
    os.kill(workers[0], signal.SIGKILL)
    return "worker"


def _upload(order: pb.TrainSpec) -> Iterator[pb.TrainRequest]:
    data = _CORPUS.encode()
    yield pb.TrainRequest(spec=order)
    yield pb.TrainRequest(corpus_chunk=data)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(data)))


def _train(server: Server, model: str, steps: int) -> int:
    """Trains to the end and returns the version."""
    with server.stub() as stub:
        events = list(stub.Train(_upload(spec(model, steps)), timeout=10 * _CALL_S))
    return events[-1].completed.version


def _weights(folder: Path, model: str, version: int) -> bytes:
    path = folder / "models" / model / str(version) / "model.safetensors"
    return Model.load(path).parameters.flat.tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement and prints what became of the job."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws what is killed and when")
    parser.add_argument("--steps", type=int, default=12_000, help="of the job")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        survival = survive(options.kills, options.seed, options.steps, Path(folder))
    killed = {kind: survival.kills.count(kind) for kind in ("worker", "server")}
    print(f"killed {len(survival.kills)} times: {killed}; {survival.restarts} restarts noted")
    print(f"events seen: {len(survival.sequences)}, the last is number {survival.sequences[-1]}")
    print(f"weights: {len(survival.disturbed):,} bytes")
    for fault in survival.faults:
        print(f"FAULT: {fault}")
    print("byte-equal, and each event once and in order" if not survival.faults else "failed")
    return 1 if survival.faults else 0


if __name__ == "__main__":
    sys.exit(main())
