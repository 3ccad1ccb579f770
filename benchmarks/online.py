"""`session` measures what learning from a stream gains where its nature changes, and its cost.

    python benchmarks/online.py examples/data/tinyshakespeare.txt [--change permuted]
        [--steps 2000] [--characters 100000] [--optimizer sgd] [--window 64]
        [--learning-rate 0.05 ...] [--repeats 3]

Trains a model on the first 200,000 characters of the file in a server of its own. Then it sends
twice the given number of characters through LearnStream: the file's next ones, and after them a
text of another kind: the ones after those with all letters permuted (`permuted`), or upside down
(`reversed`). One session only predicts; one for each learning rate begins with the same weights
and learns as well. Printed are the mean nats per character in every 10,000, which are the same
wherever the script runs, and the shortest time of a few in which each went through.
"""

from __future__ import annotations

import argparse
import math
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import input_file
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

TRAINED_ON = 200_000
"""Characters to train on."""
INTERVAL = 10_000
"""Characters of one mean."""
PIECE = 1_000
"""Characters of one request."""

Stub = sequence_pb2_grpc.SequenceServiceStub


def permuted(text: str, seed: int = 0) -> str:
    """Returns a text whose letters stand for others: spelled differently, built as before."""
    letters = list(string.ascii_lowercase)
    random.Random(seed).shuffle(letters)
    new = "".join(letters)
    return text.translate(str.maketrans(string.ascii_letters, new + new.upper()))


CHANGES: dict[str, Callable[[str], str]] = {
    "permuted": permuted,
    "reversed": lambda text: text[::-1],
}


@contextmanager
def server() -> Iterator[Stub]:
    """Runs a server on a port and in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        process = subprocess.Popen(
            [*command, "--data-dir", folder, "--standby-workers", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            with grpc.insecure_channel(address, THIS_MACHINE) as channel:
                yield Stub(channel)
        finally:
            process.terminate()
            process.wait()


def train(stub: Stub, text: str, steps: int) -> pb.Model:
    """Trains a model of one layer of 128 units."""
    spec = pb.TrainSpec(
        model="online",
        network=pb.NetworkSpec(hidden_size=128, embedding_size=32),
        limits=pb.LimitsSpec(max_steps=steps),
    )
    data = text.encode()
    requests = [pb.TrainRequest(spec=spec)]
    requests += [
        pb.TrainRequest(corpus_chunk=data[i : i + (1 << 20)]) for i in range(0, len(data), 1 << 20)
    ]
    requests.append(pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(data))))
    last = list(stub.Train(iter(requests)))[-1]
    if not last.HasField("completed"):
        raise SystemExit(f"the training failed: {last}")
    return last.completed


def session(
    stub: Stub, text: str, spec: pb.LearnStreamSpec, learn: bool
) -> tuple[list[float], float]:
    """Sends a text; returns the mean nats of every interval, and the seconds that it took."""
    kind = "learn" if learn else "predict"

    def requests() -> Iterator[pb.LearnStreamRequest]:
        yield pb.LearnStreamRequest(spec=spec)
        for start in range(0, len(text), PIECE):
            piece = pb.TextPiece(text=text[start : start + PIECE])
            yield pb.LearnStreamRequest(**{kind: piece})  # type: ignore[arg-type]

    means = []
    nats = 0.0
    count = 0
    begin = time.perf_counter()
    for number, reply in enumerate(stub.LearnStream(requests()), 1):
        nats -= reply.piece.total_log_probability
        count += reply.piece.token_count
        if number * PIECE % INTERVAL == 0:
            means.append(nats / count)
            nats = 0.0
            count = 0
    return means, time.perf_counter() - begin


def stream_of(corpus: str, characters: int, change: str) -> str:
    """Returns so many characters as the model knows them, and as many of another kind."""
    half = characters // INTERVAL * INTERVAL
    known = corpus[TRAINED_ON : TRAINED_ON + half]
    other = CHANGES[change](corpus[TRAINED_ON + half : TRAINED_ON + 2 * half])
    if not half or len(known + other) < 2 * half:
        raise SystemExit(f"give {INTERVAL} --characters or more, and a file with enough of them")
    return known + other


def fastest(
    stub: Stub, text: str, specs: Sequence[pb.LearnStreamSpec], repeats: int
) -> tuple[list[list[float]], list[float]]:
    """Goes through a text with every spec; returns their means, and the least seconds of each."""
    means: list[list[float]] = [[] for _ in specs]
    seconds = [math.inf] * len(specs)
    for _ in range(repeats):  # one after the other, so that all meet the same disturbances
        for number, spec in enumerate(specs):
            found, took = session(stub, text, spec, learn=spec.learning_rate > 0)
            if means[number] not in ([], found):
                raise SystemExit("the same session scored another time what it did not before")
            means[number] = found
            seconds[number] = min(seconds[number], took)
    return means, seconds


def report(means: list[list[float]], seconds: list[float], heads: list[str], change: str) -> None:
    """Prints the means, and what the sessions cost compared with the first."""
    print("characters   " + "".join(f"{head:>15}" for head in heads))
    for number, row in enumerate(zip(*means, strict=True)):
        mark = f"  {change}" if number >= len(means[0]) // 2 else ""
        values = "".join(f"{mean:15.4f}" for mean in row)
        print(f"to {(number + 1) * INTERVAL:10,d}{values}{mark}")
    size = len(means[0]) * INTERVAL
    speeds = "".join(f"{size / took:15,.0f}" for took in seconds)
    print(f"characters/s {speeds}")
    print("time         " + "".join(f"{took / seconds[0]:14.2f}x" for took in seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, streams and prints a table."""
    parser = argparse.ArgumentParser(description="what learning from a stream brings")
    parser.add_argument("corpus", type=input_file)
    parser.add_argument("--change", choices=CHANGES, default="permuted")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--characters", type=int, default=100_000, metavar="OF_EACH_HALF")
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[0.05])
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    corpus = given.corpus.read_text(encoding="utf-8")
    stream = stream_of(corpus, given.characters, given.change)
    rates = [0.0, *(rate for rate in given.learning_rate if rate > 0)]
    specs = [
        pb.LearnStreamSpec(
            model="online",
            optimizer=pb.Optimizer.Value(f"OPTIMIZER_{given.optimizer.upper()}"),
            learning_rate=rate,
            window=given.window,
            unknown_policy=pb.UNKNOWN_POLICY_SKIP,
        )
        for rate in rates
    ]
    print(describe())
    with server() as stub:
        model = train(stub, corpus[:TRAINED_ON], given.steps)
        print(f"{model.parameter_count:,} parameters; {model.training.ended_by}")
        means, seconds = fastest(stub, stream, specs, given.repeats)
    heads = ["predicted only", *(f"{given.optimizer} {rate:g}" for rate in rates[1:])]
    report(means, seconds, heads, given.change)


if __name__ == "__main__":
    main()
