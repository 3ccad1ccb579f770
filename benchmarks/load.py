"""`run` loads a server: streams one at a time, 64 and 256 at once, and everything mixed.

    python benchmarks/load.py [--only one,many,training,mixed] [--rounds 5] [--minutes 10] [--tls]

Starts a server of its own with an LSTM of one layer of 256 units over characters (65 of them, as in
Tiny Shakespeare), and calls it from this process over gRPC on the same machine.

- one: a single stream; how long until the first text, and tokens a second until the end;
- many: 64 streams of 500 tokens at once: tokens a second in all, and the slowest stream's share;
- training: 256 streams at any time while a job trains, and a health check every few milliseconds;
- mixed: for some minutes generations, scores, cancellations at random, deadlines and garbage;
  which errors came, and the server's memory from the end of the first minute on.

With --tls there are two servers: an open one, and one with TLS whose callers show tokens. The parts
one and many go to both in turns, and what TLS and tokens cost stands below them.

Medians over the rounds; the spread next to them. Whatever else the machine does counts too, so the
load average stands below.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.local_server import LocalServer, serve
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

Result = TypeVar("Result")

_MODEL = "load"
_LETTERS = "".join(map(chr, range(33, 97))) + "\n"
_PAUSE_S = 0.005
_TRAINING_S = 20.0
_PARTS = ("one", "many", "training", "mixed")


def main() -> None:
    """Runs the parts asked for and prints what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(_PARTS), help="parts, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="of the parts one and many")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the part mixed")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--tls", action="store_true", help="compare with TLS and tokens")
    parser.add_argument("--health", help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args()
    if options.health:
        ask_health(options.health)
        return
    if options.tls:
        with serve() as plain, serve(["caller"]) as guarded:
            asyncio.run(compare(plain, guarded, options))
    else:
        with serve() as server:
            asyncio.run(run(server, options))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


async def run(server: LocalServer, options: argparse.Namespace) -> None:
    """Goes through the parts."""
    async with server.channel() as channel:
        stub = server.stub(channel)
        await train(stub, options.hidden_size)
        await generate(stub, 200, 0)  # loads the model
        parts = options.only.split(",")
        if "one" in parts:
            await one(stub, options.rounds)
        if "many" in parts:
            await many(stub, options.rounds)
        if "training" in parts:
            await under_training(server.address, stub)
        if "mixed" in parts:
            await mixed(stub, server.pid, options.minutes * 60)


async def compare(plain: LocalServer, guarded: LocalServer, options: argparse.Namespace) -> None:
    """Measures what TLS and tokens cost one stream, and many at once."""
    async with plain.channel() as open_channel, guarded.channel() as tls_channel:
        stubs = [plain.stub(open_channel), guarded.stub(tls_channel, "caller")]
        for stub in stubs:
            await train(stub, options.hidden_size)
            await generate(stub, 200, 0)
        parts = options.only.split(",")
        if "one" in parts:
            firsts = await in_turns(stubs, 40 * options.rounds, first_text)
            report("one: first text, ms", firsts)
            report("one: tokens/s", await in_turns(stubs, options.rounds, speed_of_one))
        if "many" in parts:
            rounds = await in_turns(stubs, options.rounds, lambda stub, _: together(stub))
            speeds = [[each.speed for each in found] for found in rounds]
            report("many: tokens/s of 64 streams in all", speeds)
            firsts = [[1e3 * each.first_s for each in found] for found in rounds]
            report("many: median first text of 64 streams, ms", firsts)


async def in_turns(
    stubs: list[Stub], rounds: int, measure: Callable[[Stub, int], Awaitable[Result]]
) -> list[list[Result]]:
    """Returns what a measurement gave for each server; each round, another one goes first."""
    found: list[list[Result]] = [[] for _ in stubs]
    for number in range(rounds):
        for place in (number % 2, 1 - number % 2):
            found[place].append(await measure(stubs[place], number))
    return found


def report(what: str, found: list[list[float]]) -> None:
    """Prints a figure of the open server, of the other one, and their ratio."""
    ratio = statistics.median(found[1]) / statistics.median(found[0])
    plain, guarded = (spread(values, 2 if values[0] < 1e3 else 0) for values in found)
    print(f"{what}: {plain}; with TLS and tokens {guarded}, {ratio - 1:+.1%}", flush=True)


async def train(stub: Stub, hidden_size: int, model: str = _MODEL, steps: int = 3) -> None:
    """Trains a model of random characters."""
    spec = pb.TrainSpec(
        model=model,
        network=pb.NetworkSpec(hidden_size=hidden_size),
        limits=pb.LimitsSpec(max_steps=steps),
    )
    draw = random.Random(0)
    corpus = (_LETTERS + "".join(draw.choices(_LETTERS, k=100_000))).encode()
    call = stub.Train(upload(spec, corpus))
    async for event in call:
        if steps > 10**6 and event.HasField("progress"):
            return


async def upload(spec: pb.TrainSpec, corpus: bytes):  # type: ignore[no-untyped-def]
    """Yields the requests of a Train call."""
    yield pb.TrainRequest(spec=spec)
    yield pb.TrainRequest(corpus_chunk=corpus)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))


async def generate(stub: Stub, tokens: int, seed: int) -> tuple[float, float, int]:
    """Returns the seconds until the first text and until the end, and the tokens made."""
    began = time.perf_counter()
    first = 0.0
    made = 0
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=tokens, seed=seed, prompt="A")
    async for reply in stub.Generate(request):
        if reply.text and not first:
            first = time.perf_counter() - began
        if reply.HasField("result"):
            made = reply.result.new_tokens
    return first, time.perf_counter() - began, made


async def first_text(stub: Stub, seed: int) -> float:
    """Returns the milliseconds until the first text of a single stream."""
    return 1e3 * (await generate(stub, 20, seed))[0]


async def speed_of_one(stub: Stub, seed: int) -> float:
    """Returns the tokens a second of a single stream."""
    _, seconds, made = await generate(stub, 30_000, seed)
    return made / seconds


async def one(stub: Stub, rounds: int) -> None:
    """Measures a single stream."""
    firsts = sorted([await first_text(stub, seed) for seed in range(40 * rounds)])
    print(
        f"one: first text p50 {statistics.median(firsts):.2f} ms, "
        f"p99 {firsts[int(0.99 * len(firsts))]:.2f} ms over {len(firsts)} calls"
    )
    speeds = [await speed_of_one(stub, seed) for seed in range(rounds)]
    print(f"one: {spread(speeds)} tokens/s end to end, 30,000 tokens a call", flush=True)


class Together(NamedTuple):
    """What many streams at once gave."""

    speed: float
    """Tokens a second of all of them."""
    share: float
    """The part of the mean's speed that the slowest one has."""
    first_s: float
    """The median of the seconds until the first text of each."""


async def together(stub: Stub, streams: int = 64, tokens: int = 500) -> Together:
    """Measures many streams once."""
    began = time.perf_counter()
    done = await asyncio.gather(*(generate(stub, tokens, seed) for seed in range(streams)))
    speed = sum(made for *_, made in done) / (time.perf_counter() - began)
    each = [made / seconds for _, seconds, made in done]
    first_s = statistics.median(first for first, *_ in done)
    return Together(speed, min(each) / statistics.mean(each), first_s)


async def many(stub: Stub, rounds: int) -> None:
    """Measures many streams at once."""
    found = [await together(stub) for _ in range(rounds)]
    print(f"many: 64 streams of 500: {spread([each.speed for each in found])} tokens/s in all")
    slowest = min(each.share for each in found)
    print(f"many: the slowest stream has {slowest:.2f} of the mean's speed", flush=True)


def ask_health(address: str) -> None:
    """Checks the health every few milliseconds until its input ends; prints the milliseconds."""
    times: list[float] = []
    print(flush=True)
    with grpc.insecure_channel(address, THIS_MACHINE) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while not select.select([sys.stdin], [], [], 0)[0]:
            asked = time.perf_counter()
            health.Check(health_pb2.HealthCheckRequest())
            times.append((time.perf_counter() - asked) * 1e3)
            time.sleep(_PAUSE_S)
    print(json.dumps(times))


async def under_training(address: str, stub: Stub, streams: int = 256) -> None:
    """Measures many more streams while a job trains, and health checks."""
    await train(stub, 256, "background", 10**12)
    job = (await stub.ListJobs(pb.ListJobsRequest())).jobs[0].id
    # Checked from another process: this one is busy reading streams.
    command = [sys.executable, __file__, "--health", address]
    checks = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert checks.stdout is not None
    await checks.stdout.readline()  # it has begun
    began = time.perf_counter()
    until = began + _TRAINING_S

    async def keep_calling(seed: int) -> int:
        made = 0
        draw = random.Random(seed)
        while time.perf_counter() < until:
            made += (await generate(stub, draw.randint(100, 900), seed))[2]
        return made

    made = sum(await asyncio.gather(*(keep_calling(seed) for seed in range(streams))))
    seconds = time.perf_counter() - began
    printed, _ = await checks.communicate(b"enough\n")
    times = sorted(json.loads(printed))
    print(
        f"training: {streams} streams, none failed, {made / seconds:,.0f} tokens/s; "
        f"health p50 {statistics.median(times):.2f} ms, "
        f"p99 {times[int(0.99 * len(times))]:.2f} ms, max {times[-1]:.2f} ms ({len(times)} checks)",
        flush=True,
    )
    await stub.CancelJob(pb.CancelJobRequest(job=job))


async def mixed(stub: Stub, pid: int, seconds: float, workers: int = 24) -> None:
    """Measures everything at once for a while."""
    outcomes: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    tasks = [asyncio.create_task(abuse(stub, seed, until, outcomes)) for seed in range(workers)]
    memory: list[tuple[float, int]] = []
    while time.perf_counter() < until:
        await asyncio.sleep(min(5.0, seconds / 20))
        memory.append((until - time.perf_counter(), resident_bytes(pid)))
    await asyncio.gather(*tasks)
    await asyncio.sleep(1.0)
    info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    warm = [size for left, size in memory if left <= seconds - min(60.0, seconds / 5)]
    print(f"mixed: {dict(sorted(outcomes.items()))}")
    print(
        f"mixed: {info.inference_running} calls and {info.sessions_running} texts left; memory "
        f"{warm[0] / 2**20:.0f} MiB at first, {warm[-1] / 2**20:.0f} at the end, "
        f"{max(warm) / warm[0] - 1:+.1%} at most",
        flush=True,
    )


async def abuse(stub: Stub, seed: int, until: float, outcomes: Counter[str]) -> None:
    """Plays one caller of the part `mixed`."""
    draw = random.Random(seed)
    while time.perf_counter() < until:
        kind = draw.choice(list(_KINDS))
        try:
            outcome = await _KINDS[kind](stub, draw)
        except aio.AioRpcError as error:
            outcome = error.code().name
        outcomes[f"{kind}: {outcome}"] += 1


async def _generate(stub: Stub, draw: random.Random) -> str:
    await generate(stub, draw.randint(1, 2000), draw.randint(0, 2**63))
    return "ok"


async def _several(stub: Stub, draw: random.Random) -> str:
    request = pb.GenerateRequest(
        model=_MODEL,
        n=draw.randint(2, 8),
        max_new_tokens=100,
        stop_sequences=["ab", "Q"],
        return_state=True,
        temperature=draw.uniform(0, 2),
        repetition_penalty=1.2,
    )
    results = [reply.result async for reply in stub.Generate(request) if reply.HasField("result")]
    return "ok" if len(results) == request.n else "lost a text"


async def _score(stub: Stub, draw: random.Random) -> str:
    texts = ["".join(draw.choices(_LETTERS, k=draw.randint(1, 3000))) for _ in range(3)]
    await stub.Score(pb.ScoreRequest(model=_MODEL, texts=texts))
    return "ok"


async def _cancel(stub: Stub, draw: random.Random) -> str:
    call = stub.Generate(pb.GenerateRequest(model=_MODEL, max_new_tokens=50_000))
    await asyncio.sleep(draw.uniform(0, 0.05))
    call.cancel()
    return "ok"


async def _deadline(stub: Stub, draw: random.Random) -> str:
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=100_000)
    async for _ in stub.Generate(request, timeout=draw.uniform(0.001, 0.05)):
        pass
    return "ended before its deadline"


async def _garbage(stub: Stub, draw: random.Random) -> str:
    requests = [
        pb.GenerateRequest(model=_MODEL, prompt="é"),
        pb.GenerateRequest(model=_MODEL, temperature=-1),
        pb.GenerateRequest(model=_MODEL, state=draw.randbytes(draw.randint(1, 3000))),
        pb.GenerateRequest(model=_MODEL, regex="("),
    ]
    async for _ in stub.Generate(draw.choice(requests)):
        pass
    return "was taken"


_KINDS = {
    "generate": _generate,
    "several": _several,
    "score": _score,
    "cancel": _cancel,
    "deadline": _deadline,
    "garbage": _garbage,
}


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def spread(values: list[float], digits: int = 0) -> str:
    """Returns the median with the least and the most."""
    median = statistics.median(values)
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


if __name__ == "__main__":
    main()
