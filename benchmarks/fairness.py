"""`run` measures what one caller keeps of its speed while another one keeps 200 calls running.

    python benchmarks/fairness.py [--only generate,score] [--streams 200] [--rounds 5]

Starts a server of its own with TLS, two callers and an LSTM of one layer of 256 units over
characters. One caller has a single call at a time and measures its tokens a second, first alone and
then next to the other one, round after round; the other one calls from a process of its own. Both
generate, or both score. Printed are medians over the rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING

from treadle.benchmarks.load import spread, train
from treadle.benchmarks.local_server import LocalServer, serve
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_MODEL = "load"
_KINDS = ("generate", "score")
_TEXT = "The quick brown fox jumps over the lazy dog".upper().replace(" ", "+") * 100
_TOKENS = 20_000


def main() -> None:
    """Runs the measurement, or the part of the caller with many calls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(_KINDS), help="what both do, with commas")
    parser.add_argument("--streams", type=int, default=200, help="calls of the other caller")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args()
    if options.crowd:
        asyncio.run(crowd(options.crowd, options.streams))
        return
    with serve(["single", "many"]) as server:
        asyncio.run(run(server, options))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


async def run(server: LocalServer, options: argparse.Namespace) -> None:
    """Measures each kind of call alone and next to many."""
    async with server.channel() as channel:
        stub = server.stub(channel, "single")
        await train(stub, 256)
        for kind in options.only.split(","):
            await speed(stub, kind, 1.0)  # loads the model
            alone = []
            crowded = []
            crowds = []
            for _ in range(options.rounds):
                alone.append(await speed(stub, kind, options.seconds))
                others = await start_crowd(server, kind, options.streams)
                crowded.append(await speed(stub, kind, options.seconds))
                printed, _ = await others.communicate(b"\n")
                crowds.append(json.loads(printed))
            kept = statistics.median(crowded) / statistics.median(alone)
            print(
                f"{kind}: one caller alone {spread(alone)} tokens/s, next to {options.streams} "
                f"calls of another {spread(crowded)}: keeps {kept:.0%}; the other made "
                f"{spread(crowds)}",
                flush=True,
            )


async def speed(stub: Stub, kind: str, seconds: float) -> float:
    """Returns the tokens a second of one call after the other, for so many seconds at least."""
    began = time.perf_counter()
    made = 0
    for seed in count():
        async for tokens in call(stub, kind, seed):
            made += tokens
        taken = time.perf_counter() - began
        if taken >= seconds:
            return made / taken
    raise AssertionError


async def call(stub: Stub, kind: str, seed: int) -> AsyncIterator[int]:
    """Makes a call; yields its tokens as they come, which are characters here."""
    if kind == "score":
        scores = (await stub.Score(pb.ScoreRequest(model=_MODEL, texts=[_TEXT]))).scores
        yield scores[0].token_count
        return
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=_TOKENS, seed=seed, prompt="A")
    async for reply in stub.Generate(request):
        yield len(reply.text)


async def start_crowd(server: LocalServer, kind: str, streams: int) -> asyncio.subprocess.Process:
    """Starts the caller with many calls; returns its process once all of them run."""
    others = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--crowd", kind, "--streams", str(streams)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert others.stdin is not None
    assert others.stdout is not None
    about = [server.address, server.certificate.decode(), server.tokens["many"]]
    others.stdin.write(json.dumps(about).encode() + b"\n")
    await others.stdout.readline()
    await asyncio.sleep(1.0)
    return others


async def crowd(kind: str, streams: int) -> None:
    """Keeps many calls running until the input ends; prints their tokens a second."""
    loop = asyncio.get_running_loop()
    address, certificate, token = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    server = LocalServer(address, 0, certificate.encode(), {"many": token})
    made = 0

    async def keep_calling(stub: Stub, worker: int) -> None:
        nonlocal made
        for seed in count(worker, streams):
            async for tokens in call(stub, kind, seed):
                made += tokens

    async with server.channel() as channel:
        stub = server.stub(channel, "many")
        began = time.perf_counter()
        workers = [asyncio.create_task(keep_calling(stub, number)) for number in range(streams)]
        print(flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        for worker in workers:
            worker.cancel()
        taken = time.perf_counter() - began
        ended = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
    print(json.dumps(made / taken))


if __name__ == "__main__":
    main()
