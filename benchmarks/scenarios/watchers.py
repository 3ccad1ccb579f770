"""`Watcher` runs next to a scenario, in a process of its own: health checks, ordinary streams.

    python -m treadle.benchmarks.scenarios.watchers health ADDRESS
    python -m treadle.benchmarks.scenarios.watchers ordinary ADDRESS STREAMS

Either prints `ready`, works until its standard input ends, and prints what it saw as JSON. Health
is asked at fixed moments, whether or not earlier answers have come: a server that is silent for
three seconds owes hundreds of late answers, not one.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import IO, Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

HEALTH_EVERY_S = 0.01
_LINE_EVERY_S = 0.25
_GENERATE_EVERY_S = 0.5
_TOKENS = 40
_CALL_S = 60.0
_PATIENCE_S = 30.0
"""How long a call that is refused with RESOURCE_EXHAUSTED or UNAVAILABLE is sent again."""

MODEL = "log"
"""What ordinary streams ask: a model of the template."""

LINES = [
    f"2026-11-{day:02d} 10:{minute:02d}:07 INFO worker {day * minute % 17} took {minute * 13} ms"
    for day in range(1, 29)
    for minute in range(0, 60, 7)
]


class Watcher:
    """One of the two, as a child process.

    Args:
        kind: `health` or `ordinary`.
        address: The server's address.
        streams: How many ordinary streams.
    """

    def __init__(self, kind: str, address: str, streams: int = 0) -> None:
        command = [sys.executable, "-m", __name__, kind, address, str(streams)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        output: IO[str] | None = self._process.stdout
        assert output is not None
        output.readline()

    def collect(self) -> dict[str, Any]:
        """Ends it and returns what it saw."""
        try:
            printed, _ = self._process.communicate("", timeout=30.0)
            return dict(json.loads(printed))
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.communicate()
            return {}


async def watch_health(channel: aio.Channel, ended: asyncio.Event) -> dict[str, Any]:
    """Asks for health until the end; returns milliseconds, and the checks that failed."""
    stub = health_pb2_grpc.HealthStub(channel)
    times: list[float] = []
    failures: Counter[str] = Counter()

    async def check() -> None:
        began = time.perf_counter()
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_S)
        except aio.AioRpcError as error:
            if not ended.is_set():
                failures[f"{error.code().name}: {error.details()}"[:120]] += 1
        finally:  # one that has not been answered yet took as long as it waited
            times.append((time.perf_counter() - began) * 1e3)

    await check()
    times.clear()
    print("ready", flush=True)
    checks: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    while not ended.is_set():
        task = asyncio.create_task(check())
        checks.add(task)
        task.add_done_callback(checks.discard)
        due += HEALTH_EVERY_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await asyncio.sleep(0.2)
    for task in checks:
        task.cancel()
    await asyncio.gather(*checks, return_exceptions=True)
    return {"times": times, "failures": failures}


class Ordinary:
    """Ordinary callers: half score a log line by line, half generate short texts."""

    def __init__(self, channel: aio.Channel, ended: asyncio.Event) -> None:
        self._stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        self._ended = ended
        self.answers: list[float] = []
        """Milliseconds of each line's and each text's answer."""
        self.failures: Counter[str] = Counter()
        """Calls that failed, by status and message."""
        self.retries = 0
        """Calls that were refused for lack of memory and sent again, as RetryInfo asks."""

    async def run(self, streams: int) -> dict[str, Any]:
        """Runs the streams until the end."""
        callers = [
            self._repeat(self._score if number % 2 else self._generate, number)
            for number in range(streams)
        ]
        tasks = [asyncio.create_task(caller) for caller in callers]
        await asyncio.sleep(2.0)
        print("ready", flush=True)
        await self._ended.wait()
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {"times": self.answers, "failures": self.failures, "retries": self.retries}

    async def _repeat(self, call: Any, number: int) -> None:
        draw = random.Random(number)
        refused_s = 0.0
        while not self._ended.is_set():
            began = time.perf_counter()
            try:
                await call(draw)
                refused_s = 0.0
            except aio.AioRpcError as error:
                if self._ended.is_set():
                    return
                wait_s = draw.uniform(0.5, 1.5)
                refused = error.code() in (
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    grpc.StatusCode.UNAVAILABLE,
                )
                refused_s += time.perf_counter() - began + wait_s
                if refused and refused_s < _PATIENCE_S:
                    self.retries += 1
                else:
                    self.failures[f"{error.code().name}: {error.details()}"[:200]] += 1
                    refused_s = 0.0
                await asyncio.sleep(wait_s)

    async def _generate(self, draw: random.Random) -> None:
        began = time.perf_counter()
        request = pb.GenerateRequest(
            model=MODEL, prompt="2026-11", max_new_tokens=_TOKENS, seed=draw.randrange(1 << 32)
        )
        async for _ in self._stub.Generate(request, timeout=_CALL_S):
            pass
        self.answers.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(_GENERATE_EVERY_S * draw.uniform(0.5, 1.5))

    async def _score(self, draw: random.Random) -> None:
        """Scores lines until the end: the stream is expected to live as long as the server."""
        sent: asyncio.Queue[float] = asyncio.Queue()

        async def lines() -> AsyncIterator[pb.ScoreStreamRequest]:
            yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model=MODEL))
            while not self._ended.is_set():
                sent.put_nowait(time.perf_counter())
                piece = pb.TextPiece(text=draw.choice(LINES), end=True)
                yield pb.ScoreStreamRequest(piece=piece)
                await asyncio.sleep(_LINE_EVERY_S * draw.uniform(0.5, 1.5))

        async for reply in self._stub.ScoreStream(lines()):
            if reply.HasField("piece"):
                self.answers.append((time.perf_counter() - await sent.get()) * 1e3)


async def _main(kind: str, address: str, streams: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ended.set)
    async with aio.insecure_channel(address, THIS_MACHINE) as channel:
        if kind == "health":
            seen = await watch_health(channel, ended)
        else:
            seen = await Ordinary(channel, ended).run(streams)
    loop.remove_reader(sys.stdin)
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
