"""`main` measures how well the quota `tokens_per_minute` holds, with callers who take all they get.

    python benchmarks/token_quota.py [--quota 60000] [--minutes 3] [--streams 1,8,64] [--score]

Starts a server of its own with a callers file. For every number of streams one caller generates
(with --score it scores as well) without a pause: a call that is refused is repeated after the time
that the server names. Printed are the tokens that arrived in each minute, and how far the worst
minute and the mean are from the quota.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_MODEL = "quota"
_TOKENS = 2000
_TEXT = "the quick brown fox jumps over the lazy dog. " * 5


def main() -> None:
    """Measures each number of streams and prints a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quota", type=int, default=60_000, help="tokens per minute")
    parser.add_argument("--minutes", type=int, default=3, help="for each number of streams")
    parser.add_argument("--streams", default="1,8,64", help="numbers of streams, with commas")
    parser.add_argument("--score", action="store_true", help="every second call scores")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        callers = Path(folder) / "callers.toml"
        counts = [int(count) for count in options.streams.split(",")]
        tokens = {f"c{count}": token(callers, f"c{count}", options.quota) for count in counts}
        trainer = token(callers, "trainer", None)
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        command += ["--data-dir", f"{folder}/data", "--log-level", "error"]
        command += ["--callers-file", str(callers)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            asyncio.run(train(address, trainer))
            for count in counts:
                asyncio.run(measure(address, tokens[f"c{count}"], count, options))
        finally:
            server.terminate()
            server.wait()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


def token(callers: Path, name: str, quota: int | None) -> str:
    """Makes a caller; returns its token."""
    command = [sys.executable, "-m", "treadle.server", "token", "create", name]
    command += ["--role", "trainer", "--models", "*", "--callers-file", str(callers)]
    if quota is not None:
        command += ["--quota", f"tokens_per_minute={quota}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def metadata(secret: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call with a token."""
    return (("authorization", f"Bearer {secret}"),)


async def train(address: str, secret: str) -> None:
    """Makes the model."""

    def upload() -> Iterator[pb.TrainRequest]:
        corpus = (_TEXT * 20).encode()
        spec = pb.TrainSpec(
            model=_MODEL,
            network=pb.NetworkSpec(hidden_size=64),
            limits=pb.LimitsSpec(max_steps=20),
        )
        yield pb.TrainRequest(spec=spec)
        yield pb.TrainRequest(corpus_chunk=corpus)
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))

    async with aio.insecure_channel(address, THIS_MACHINE) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        async for _ in stub.Train(upload(), metadata=metadata(secret)):
            pass


async def measure(address: str, secret: str, count: int, options: argparse.Namespace) -> None:
    """Takes all that one caller gets with so many streams, and prints how much it was."""
    arrived = list[tuple[float, int]]()
    refused = 0

    async def stream(stub: Stub, number: int) -> None:
        nonlocal refused
        call = 0
        while True:
            call += 1
            try:
                if options.score and call % 2:
                    await score(stub, secret, arrived)
                else:
                    await generate(stub, secret, number * 1000 + call, arrived)
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refused += 1
                await asyncio.sleep(retry_s(error))

    async with aio.insecure_channel(address, THIS_MACHINE) as channel:
        stub: Any = sequence_pb2_grpc.SequenceServiceStub(channel)
        began = time.monotonic()
        streams = [asyncio.create_task(stream(stub, number)) for number in range(count)]
        over = asyncio.create_task(asyncio.sleep(60 * options.minutes))
        await asyncio.wait([*streams, over], return_when=asyncio.FIRST_COMPLETED)
        for each in streams:
            if each.done():
                await each
            each.cancel()
    minutes = [0] * options.minutes
    for when, tokens in arrived:
        minute = int((when - began) / 60)
        if minute < options.minutes:
            minutes[minute] += tokens
    worst = max(abs(tokens / options.quota - 1) for tokens in minutes)
    mean = statistics.mean(minutes) / options.quota - 1
    print(
        f"{count} streams: {' '.join(f'{tokens:,}' for tokens in minutes)} tokens in the minutes, "
        f"quota {options.quota:,}: mean {mean:+.2%}, worst {worst:.2%}; {refused} calls refused",
        flush=True,
    )


async def generate(stub: Stub, secret: str, seed: int, arrived: list[tuple[float, int]]) -> None:
    """Generates; a token is a character here."""
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=_TOKENS, seed=seed, prompt="t")
    async for reply in stub.Generate(request, metadata=metadata(secret)):
        when = time.monotonic()
        arrived.append((when, len(reply.text)))


async def score(stub: Stub, secret: str, arrived: list[tuple[float, int]]) -> None:
    """Scores a text."""
    request = pb.ScoreRequest(model=_MODEL, texts=[_TEXT])
    reply = await stub.Score(request, metadata=metadata(secret))
    arrived.append((time.monotonic(), sum(score.token_count for score in reply.scores)))


def retry_s(error: aio.AioRpcError) -> float:
    """Returns the seconds after which the server says that a call may be repeated."""
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    retry = error_details_pb2.RetryInfo()
    for packed in status_pb2.Status.FromString(details).details:
        if packed.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    raise AssertionError("a refusal without RetryInfo")


if __name__ == "__main__":
    main()
