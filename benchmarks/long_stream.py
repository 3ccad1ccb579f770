"""`measure` sends a million tokens through one ScoreStream: memory, and the sum to the bit.

    python benchmarks/long_stream.py [--tokens 1000000] [--hidden-size 128]

Starts a server of its own, trains a model of characters for a moment, and streams random text in
pieces of 1 to 5,000 characters with ranks on. Prints the server's resident memory after every
tenth, the tokens a second, and whether the stream's sum is, bit for bit, what Score gives for the
whole text.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.load import resident_bytes
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_LETTERS = "".join(map(chr, range(33, 97))) + "\n"
_LONGEST = 5_000


def main() -> None:
    """Runs the measurement and prints what it gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=10**6)
    parser.add_argument("--hidden-size", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", folder, "--log-level", "warning"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            with grpc.insecure_channel(address, THIS_MACHINE) as channel:
                stub = sequence_pb2_grpc.SequenceServiceStub(channel)
                measure(stub, server.pid, options)
        finally:
            server.terminate()
            server.wait()


def measure(stub: sequence_pb2_grpc.SequenceServiceStub, pid: int, options: object) -> None:
    """Trains, streams, and compares."""
    tokens = vars(options)["tokens"]
    hidden = vars(options)["hidden_size"]
    draw = random.Random(0)
    text = _LETTERS + "".join(draw.choices(_LETTERS, k=tokens - len(_LETTERS)))
    list(stub.Train(upload(text[:50_000].encode(), hidden)))
    sizes: list[float] = []
    began = time.perf_counter()
    done = 0
    replies = stub.ScoreStream(pieces(text, draw))
    for reply in replies:
        if reply.HasField("piece"):
            done += reply.piece.token_count
            if done >= tokens * (len(sizes) + 1) / 10:
                sizes.append(resident_bytes(pid) / 2**20)
    seconds = time.perf_counter() - began
    total = reply.result.total
    whole = stub.Score(pb.ScoreRequest(model="m", texts=[text])).scores[0]
    same = total.total_log_probability == whole.total_log_probability
    print("resident MiB after each tenth: " + " ".join(f"{size:.1f}" for size in sizes))
    print(f"{total.token_count:,} tokens, {total.token_count / seconds:,.0f} a second, ranks on")
    print(f"sum {total.total_log_probability!r} nats; the same bits as Score's: {same}")


def upload(corpus: bytes, hidden_size: int) -> Iterator[pb.TrainRequest]:
    """Yields the requests of a Train call."""
    network = pb.NetworkSpec(hidden_size=hidden_size)
    limits = pb.LimitsSpec(max_steps=20)
    yield pb.TrainRequest(spec=pb.TrainSpec(model="m", network=network, limits=limits))
    yield pb.TrainRequest(corpus_chunk=corpus)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))


def pieces(text: str, draw: random.Random) -> Iterator[pb.ScoreStreamRequest]:
    """Yields the requests of a ScoreStream call: the text in pieces of random lengths."""
    yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m", ranks=True))
    place = 0
    while place < len(text):
        length = draw.randint(1, _LONGEST)
        piece = pb.TextPiece(text=text[place : place + length])
        yield pb.ScoreStreamRequest(piece=piece)
        place += length


if __name__ == "__main__":
    main()
