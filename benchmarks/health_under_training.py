"""`measure` times health checks while the server trains, and while it does not.

    python benchmarks/health_under_training.py [--seconds 20] [--hidden-size 256] [--jobs 1]

Starts a server of its own, asks it for its health every few milliseconds from this process,
first idle and then while it trains (LSTMs on random words, which share the threads that the server
may use), and prints the median, the 99th percentile and the longest answer, in milliseconds, and
how fast each job trained meanwhile.
Whatever else the machine does counts too, so the load average stands below.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_PAUSE_S = 0.005
_CORPUS_BYTES = 1 << 20


def main() -> None:
    """Runs the measurement and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--hidden-size", type=int, default=256, help="of the LSTM being trained")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", folder, "--training-slots", str(options.jobs)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            with grpc.insecure_channel(address, THIS_MACHINE) as channel:
                measure(channel, options)
        finally:
            server.terminate()
            server.wait()


def measure(channel: grpc.Channel, options: argparse.Namespace) -> None:
    """Prints one line idle and one under training."""
    time.sleep(3.0)  # the standby worker starts up
    print(f"{'':<16}{'checks':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    report("idle", ask(channel, options.seconds))
    stub = sequence_pb2_grpc.SequenceServiceStub(channel)
    runs = [stub.Train(long_upload(f"m{job}", options.hidden_size)) for job in range(options.jobs)]
    jobs = [next(event.job for event in run if event.HasField("progress")) for run in runs]
    before = [tokens_seen(stub, job) for job in jobs]
    report("training", ask(channel, options.seconds))
    made = [tokens_seen(stub, job) - begun for job, begun in zip(jobs, before, strict=True)]
    speeds = ", ".join(f"{tokens / options.seconds:,.0f}" for tokens in made)
    print(f"trained meanwhile at {speeds} tokens/s; load {os.getloadavg()[0]:.1f}")
    if len(made) > 1:
        print(f"the slowest job made {min(made) / max(made):.0%} of what the fastest made")
    for run in runs:
        run.cancel()


def tokens_seen(stub: sequence_pb2_grpc.SequenceServiceStub, job: str) -> int:
    """Returns the tokens that a job has trained on."""
    return stub.GetJob(pb.GetJobRequest(job=job)).job.progress.tokens_seen


def ask(channel: grpc.Channel, seconds: float) -> list[float]:
    """Returns how long each health check took, in milliseconds."""
    stub = health_pb2_grpc.HealthStub(channel)
    times = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        stub.Check(health_pb2.HealthCheckRequest())
        times.append((time.perf_counter() - begin) * 1e3)
        time.sleep(_PAUSE_S)
    return times


def report(name: str, times: list[float]) -> None:
    """Prints a line of the table."""
    times = sorted(times)
    p50, p99 = (times[int(len(times) * share)] for share in (0.5, 0.99))
    print(f"{name:<16}{len(times):>8}{p50:>10.2f}{p99:>10.2f}{times[-1]:>10.2f}", flush=True)


def long_upload(model: str, hidden_size: int) -> Iterator[pb.TrainRequest]:
    """Yields an upload of random words that trains until the server ends."""
    spec = pb.TrainSpec(
        model=model,
        network=pb.NetworkSpec(hidden_size=hidden_size),
        data=pb.DataSpec(batch_size=64),
        limits=pb.LimitsSpec(max_steps=10**12),
    )
    yield pb.TrainRequest(spec=spec)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(500)]
    corpus = " ".join(draw.choices(words, k=_CORPUS_BYTES // 6)).encode()
    yield pb.TrainRequest(corpus_chunk=corpus)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))


if __name__ == "__main__":
    main()
