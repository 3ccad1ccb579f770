"""`measure` returns what calls and connections take of a server: a process of its own.

What the event loop does is the processor time of the server's main thread, which neither the
kernels nor other programs of the machine add to.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks.load import train
from treadle.benchmarks.local_server import LocalServer, serve
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_MODEL = "scale"
_STREAMS = 64
_TOKENS = 500
_CONNECTIONS = 200


def measure(seconds: float) -> dict[str, float]:
    """Returns constants by their names.

    Args:
        seconds: For the calls, about.
    """
    with serve() as server:
        return asyncio.run(_measure(server, seconds))


async def _measure(server: LocalServer, seconds: float) -> dict[str, float]:
    async with server.channel() as channel:
        stub = server.stub(channel)
        await train(stub, 256, _MODEL)
        state = await _state_bytes(stub)
        call_s = await _call_s(server, stub, seconds)
        tokens_per_message, message_s = await _message(server, stub, seconds, call_s)
    return {
        "call_s": call_s,
        "message_s": message_s,
        "tokens_per_message": tokens_per_message,
        "state_bytes": float(state),
        "connection_bytes": await _connection_bytes(server),
    }


async def _generate(stub: Stub, tokens: int, seed: int) -> int:
    """Generates a text; returns how many replies came."""
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=tokens, seed=seed, prompt="A")
    replies = 0
    async for _ in stub.Generate(request):
        replies += 1
    return replies


async def _state_bytes(stub: Stub) -> int:
    request = pb.GenerateRequest(model=_MODEL, max_new_tokens=20, seed=1, return_state=True)
    size = 0
    async for reply in stub.Generate(request):
        size = max(size, len(reply.result.state))
    return size


async def _call_s(server: LocalServer, stub: Stub, seconds: float) -> float:
    """Returns the event loop's time for a call of one token, 16 of them at once."""
    calls = 0
    began = loop_s(server.pid)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.gather(*(_generate(stub, 1, seed) for seed in range(16)))
        calls += 16
    return (loop_s(server.pid) - began) / calls


async def _message(
    server: LocalServer, stub: Stub, seconds: float, call_s: float
) -> tuple[float, float]:
    """Returns the tokens of a reply, and the event loop's time for each after the first."""
    streams = 0
    replies = 0
    began = loop_s(server.pid)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        found = await asyncio.gather(*(_generate(stub, _TOKENS, seed) for seed in range(_STREAMS)))
        streams += _STREAMS
        replies += sum(found)
    spent = loop_s(server.pid) - began
    return streams * _TOKENS / replies, (spent - streams * call_s) / (replies - streams)


async def _connection_bytes(server: LocalServer) -> float:
    """Returns by how much the server grows for a connection with a health watch and no calls."""
    channels = [aio.insecure_channel(server.address, _OWN) for _ in range(_CONNECTIONS)]
    before = memory_bytes(server.pid)
    watches = []
    for channel in channels:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        watches.append(watch)
        await watch.read()
    grew = memory_bytes(server.pid) - before
    for watch in watches:
        watch.cancel()
    for channel in channels:
        await channel.close()
    return grew / _CONNECTIONS


_OWN = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
"""Options by which a channel has a connection of its own."""


def loop_s(pid: int) -> float:
    """Returns the processor time of a process's main thread so far."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Returns the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
