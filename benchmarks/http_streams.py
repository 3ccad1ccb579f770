"""`run` compares streams over HTTP with those over gRPC, on one server and in turns.

    python benchmarks/http_streams.py [--only one,many,health] [--rounds 5]

Starts a server of its own with the model of load.py, an LSTM of one layer of 256 units over
characters, and an HTTP address. The ways to call it are gRPC, the Connect protocol with JSON and
with protobuf, and the completions of OpenAI as server-sent events (SSE).

- one: how long until the first text of a single stream, on a connection that is open already;
- many: 64 streams of 500 tokens at once: tokens a second in all;
- health: how long health checks of gRPC take while 64 streams over gRPC and 64 SSE streams run.

Medians over the rounds, with the least and the most; each round, another way goes first. Whatever
else the machine does counts too, so the load average stands below.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from treadle.benchmarks import load
from treadle.benchmarks.load import spread
from treadle.benchmarks.local_server import LocalServer, serve
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_MODEL = "load"
_STREAMS = 64
_TOKENS = 500
_HEALTH_S = 15.0
_PARTS = ("one", "many", "health")

_GENERATE = "/treadle.v1.SequenceService/Generate"
_PREFIX = struct.Struct(">BI")

Stream = Callable[[int, int], Awaitable[float]]
"""Generates so many tokens with a seed; returns the seconds until the first text."""


def main() -> None:
    """Runs the parts asked for and prints what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(_PARTS), help="parts, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=_HEALTH_S, help="of the part health")
    options = parser.parse_args()
    with serve(flags=["--http-address", "127.0.0.1:0"]) as server:
        asyncio.run(run(server, options))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


async def run(server: LocalServer, options: argparse.Namespace) -> None:
    """Goes through the parts."""
    async with server.channel() as channel:
        stub = server.stub(channel)
        await load.train(stub, 256)
        ways = _ways(stub, server.http_url)
        for stream in ways.values():
            await stream(20, 0)  # loads the model, and opens a connection
        parts = options.only.split(",")
        if "one" in parts:
            await one(ways, options.rounds)
        if "many" in parts:
            await many(ways, options.rounds)
        if "health" in parts:
            await health(server, ways, options.seconds)


def _ways(stub: Stub, url: str) -> Mapping[str, Stream]:
    """Returns the ways to call the server, by their names."""
    http = HttpClient(url)

    async def over_grpc(tokens: int, seed: int) -> float:
        return (await load.generate(stub, tokens, seed))[0]

    async def connect_json(tokens: int, seed: int) -> float:
        fields = {"model": _MODEL, "prompt": "A", "maxNewTokens": tokens, "seed": seed}
        body = json.dumps(fields).encode()
        body = _PREFIX.pack(0, len(body)) + body
        return await http.stream(_GENERATE, "application/connect+json", body, b'"text"')

    async def connect_proto(tokens: int, seed: int) -> float:
        request = pb.GenerateRequest(model=_MODEL, prompt="A", max_new_tokens=tokens, seed=seed)
        body = request.SerializeToString()
        body = _PREFIX.pack(0, len(body)) + body
        return await http.stream(_GENERATE, "application/connect+proto", body, b"\n")

    async def sse(tokens: int, seed: int) -> float:
        fields = {"model": _MODEL, "prompt": "A", "max_tokens": tokens, "seed": seed}
        body = json.dumps(fields | {"stream": True}).encode()
        return await http.stream("/v1/completions", "application/json", body, b"data: ")

    return {"gRPC": over_grpc, "Connect": connect_json, "Connect (proto)": connect_proto} | {
        "SSE": sse
    }


class HttpClient:
    """A client with connections that are kept, and as little work as possible.

    Args:
        url: The URL of the server.
    """

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        self._address = (found.hostname, found.port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def stream(self, path: str, content_type: str, body: bytes, mark: bytes) -> float:
        """Sends a request, and reads the response to its end.

        Args:
            path: The path.
            content_type: That of the body.
            body: The body.
            mark: What the part of the response with the first text contains.

        Returns:
            The seconds until that part.

        Raises:
            RuntimeError: The response is an error.
        """
        began = time.perf_counter()
        first_s = 0.0
        reader, writer = await self._connection()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head_bytes = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head_bytes.partition(b"\r\n")[0]:
            raise RuntimeError(f"{head_bytes!r} {await reader.read(1000)!r}")
        while size := int(await reader.readline(), 16):
            chunk = await reader.readexactly(size + 2)
            if not first_s and mark in chunk:
                first_s = time.perf_counter() - began
        await reader.readline()
        self._idle.append((reader, writer))
        return first_s

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._idle:
            return self._idle.pop()
        return await asyncio.open_connection(*self._address)


async def one(ways: Mapping[str, Stream], rounds: int) -> None:
    """Measures the first text of a single stream."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(40 * rounds):
        for name in _order(ways, number):
            found[name].append(1e3 * await ways[name](20, number))
    for name, times in found.items():
        over = statistics.median(times) - statistics.median(found["gRPC"])
        p99 = sorted(times)[int(0.99 * len(times))]
        median = statistics.median(times)
        print(f"one: {name}: first text p50 {median:.2f} ms ({over:+.2f}), p99 {p99:.2f}")


async def many(ways: Mapping[str, Stream], rounds: int) -> None:
    """Measures many streams at once."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in _order(ways, number):
            began = time.perf_counter()
            await asyncio.gather(*(ways[name](_TOKENS, seed) for seed in range(_STREAMS)))
            found[name].append(_STREAMS * _TOKENS / (time.perf_counter() - began))
    for name, speeds in found.items():
        share = statistics.median(speeds) / statistics.median(found["gRPC"])
        print(f"many: {name}: {spread(speeds)} tokens/s of {_STREAMS} streams, {share:.0%} of gRPC")


def _order(ways: Mapping[str, Stream], number: int) -> list[str]:
    """Returns the names, beginning with another one each time."""
    names = list(ways)
    start = number % len(names)
    return names[start:] + names[:start]


async def health(server: LocalServer, ways: Mapping[str, Stream], seconds: float) -> None:
    """Measures health checks while streams of both kinds run."""
    # Checked from another process: this one is busy reading streams.
    command = [sys.executable, load.__file__, "--health", server.address]
    checks = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert checks.stdout is not None
    await checks.stdout.readline()  # it has begun
    until = time.perf_counter() + seconds

    async def keep_calling(stream: Stream, seed: int) -> int:
        made = 0
        while time.perf_counter() < until:
            await stream(_TOKENS, seed)
            made += _TOKENS
        return made

    calls = [keep_calling(ways[name], seed) for name in ("gRPC", "SSE") for seed in range(_STREAMS)]
    made = await asyncio.gather(*calls)
    printed, _ = await checks.communicate(b"enough\n")
    times = sorted(json.loads(printed))
    print(
        f"health: {_STREAMS} streams over gRPC and {_STREAMS} over SSE, "
        f"{sum(made) / seconds:,.0f} tokens/s: p50 {statistics.median(times):.2f} ms, "
        f"p99 {times[int(0.99 * len(times))]:.2f}, max {times[-1]:.2f} ({len(times)} checks)"
    )


if __name__ == "__main__":
    main()
