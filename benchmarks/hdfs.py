"""`score` finds anomalies in HDFS sessions: those with an event that the model did not expect.

    python benchmarks/hdfs.py hdfs100k_train.jsonl hdfs100k_test.jsonl [--steps 1500]

Each line is a session: {"block": ..., "label": 0 or 1, "events": [1, 2, ...]}, 1 for abnormal. A
server of its own trains an LSTM on the first file, which has normal sessions only. The sessions of
the second go through one ScoreStream call, an item each, with ranks on. As DeepLog does (Du et al.,
"DeepLog: anomaly detection and diagnosis from system logs through deep learning", CCS 2017), a
session is flagged where an event is not among the g likeliest; with and without the end of the
session as an event. Events that training never saw are unknown tokens, and rank as such.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.script import input_file
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

_CHUNK_BYTES = 1 << 20
_LARGEST_G = 10


@dataclass(frozen=True)
class Ranked:
    """A session as the model saw it."""

    abnormal: bool
    """Its label."""
    worst: int
    """The highest rank of its events."""
    end: int
    """The rank of its end."""


def spec(steps: int, hidden_size: int) -> pb.TrainSpec:
    """Returns how the model is trained."""
    return pb.TrainSpec(
        model="hdfs",
        network=pb.NetworkSpec(cell=pb.CELL_LSTM, hidden_size=hidden_size, layers=1),
        tokenizer=pb.TokenizerSpec(
            kind=pb.TOKENIZER_KIND_EVENTS, unknown_policy=pb.UNKNOWN_POLICY_UNKNOWN
        ),
        data=pb.DataSpec(
            layout=pb.CORPUS_LAYOUT_LINES, format=pb.CORPUS_FORMAT_JSONL, column="events"
        ),
        limits=pb.LimitsSpec(max_steps=steps),
        report=pb.ReportSpec(sample_tokens=0),
    )


def train(stub: sequence_pb2_grpc.SequenceServiceStub, order: pb.TrainSpec, corpus: bytes) -> None:
    """Trains to the end, and prints what came of it."""

    def messages() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=order)
        for start in range(0, len(corpus), _CHUNK_BYTES):
            yield pb.TrainRequest(corpus_chunk=corpus[start : start + _CHUNK_BYTES])
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))

    began = time.monotonic()
    *_, last = stub.Train(messages())
    model = last.completed
    took = time.monotonic() - began
    print(
        f"trained {model.parameter_count:,} parameters in {took:.1f} s; "
        f"vocabulary {model.vocabulary_size}"
    )


def score(
    stub: sequence_pb2_grpc.SequenceServiceStub, sessions: Sequence[dict[str, object]]
) -> list[Ranked]:
    """Scores all sessions in one stream, and prints how fast that went."""

    def messages() -> Iterator[pb.ScoreStreamRequest]:
        yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="hdfs", ranks=True))
        for session in sessions:
            events = session["events"]
            assert isinstance(events, list)
            text = " ".join(map(str, events))
            yield pb.ScoreStreamRequest(piece=pb.TextPiece(text=text, end=True))

    began = time.monotonic()
    found = []
    *replies, result = stub.ScoreStream(messages())
    for session, reply in zip(sessions, replies, strict=True):
        *events, end = [token.rank for token in reply.piece.tokens]
        found.append(Ranked(session["label"] == 1, max(events, default=0), end))
    took = time.monotonic() - began
    tokens = result.result.total.token_count
    print(
        f"scored {len(found):,} sessions of {tokens:,} tokens in {took:.2f} s; "
        f"{result.result.total.perplexity:.2f} perplexity"
    )
    return found


def report(found: Sequence[Ranked]) -> None:
    """Prints precision, recall and F1 for every g."""
    abnormal = sum(session.abnormal for session in found)
    print(f"{abnormal} of {len(found):,} sessions are abnormal\n")
    print("| g | events: precision | recall | F1 | and end: precision | recall | F1 |")
    print("|---|---|---|---|---|---|---|")
    for g in range(1, _LARGEST_G + 1):
        cells = [str(g)]
        for with_end in (False, True):
            flagged = [s for s in found if s.worst > g or (with_end and s.end > g)]
            cells += map("{:.3f}".format, figures(flagged, abnormal))
        print("| " + " | ".join(cells) + " |")


def figures(flagged: Sequence[Ranked], abnormal: int) -> tuple[float, float, float]:
    """Returns precision, recall and F1 of what was flagged."""
    right = sum(session.abnormal for session in flagged)
    precision = right / len(flagged) if flagged else 0.0
    recall = right / abnormal if abnormal else 0.0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("train", type=input_file)
    parser.add_argument("test", type=input_file)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--hidden-size", type=int, default=64)
    options = parser.parse_args(arguments)
    sessions = [json.loads(line) for line in options.test.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            with grpc.insecure_channel(address, THIS_MACHINE) as channel:
                stub = sequence_pb2_grpc.SequenceServiceStub(channel)
                train(stub, spec(options.steps, options.hidden_size), options.train.read_bytes())
                report(score(stub, sessions))
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
