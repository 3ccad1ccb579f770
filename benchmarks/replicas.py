"""`compare` measures how much two replicas generate, each on a processor of its own, against one.

    python benchmarks/replicas.py [--rounds 5] [--streams 64] [--hidden-size 256]

Starts PostgreSQL and two servers that share it and a folder of blobs, each pinned to one processor
with one thread. 64 streams of 500 tokens go to the first one alone, and then half of them to each,
in turns. Meanwhile another process asks both for their health every few milliseconds.

The caller needs a processor as well. With two processors in all it competes with both replicas, and
has a processor for itself while one replica works alone. So everything is measured a second time
with the caller on the processors of the replicas that it calls: one processor for all against two.

Whatever else the machine does counts too, so the load average stands below.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.benchmarks import load
from treadle.benchmarks.local_server import LocalServer, serve
from treadle.benchmarks.scale import postgresql_server

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_REPLICAS = 2
_TOKENS = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement and prints what it gave.

    Args:
        arguments: The command line; `sys.argv` where None.

    Returns:
        The exit code: 1 where PostgreSQL or a processor is missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=64, help="at once, on all replicas together")
    parser.add_argument("--hidden-size", type=int, default=256)
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < _REPLICAS:
        print(f"replicas: {_REPLICAS} processors are needed", file=sys.stderr)
        return 1
    try:
        with replicas(processors[:_REPLICAS]) as servers:
            asyncio.run(compare(servers, processors, options))
    except postgresql_server.MissingError as error:
        print(f"replicas: {error}", file=sys.stderr)
        return 1
    print(f"load {os.getloadavg()[0]:.1f}, {len(processors)} processors")
    return 0


@contextmanager
def replicas(processors: Sequence[int]) -> Iterator[list[LocalServer]]:
    """Starts a replica on each processor, over one database and one folder, and ends them.

    Args:
        processors: The processors.

    Yields:
        The servers.

    Raises:
        MissingError: PostgreSQL is not installed.
    """
    with ExitStack() as started:
        database = started.enter_context(postgresql_server.run())
        blobs = started.enter_context(tempfile.TemporaryDirectory())
        url = f"postgresql:///postgres?host={database.socket}&user=postgres"
        flags = ["--database-url", url, "--blobs-url", Path(blobs).as_uri()]
        flags += ["--threads", "1", "--standby-workers", "0"]
        yield [started.enter_context(_pinned(processor, flags)) for processor in processors]


@contextmanager
def _pinned(processor: int, flags: Sequence[str]) -> Iterator[LocalServer]:
    """Starts a server that may use one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})  # which a new process inherits
    with ExitStack() as started:
        try:
            server = started.enter_context(serve(flags=flags))
        finally:
            os.sched_setaffinity(0, allowed)
        yield server


async def compare(
    servers: Sequence[LocalServer], processors: Sequence[int], options: argparse.Namespace
) -> None:
    """Prints the tokens a second of one replica and of all, and how long health checks took.

    Args:
        servers: The replicas.
        processors: Those that the caller may use; the first ones are the replicas'.
        options: How much to measure.
    """
    async with AsyncExitStack() as opened:
        channels = [await opened.enter_async_context(server.channel()) for server in servers]
        stubs = [server.stub(channel) for server, channel in zip(servers, channels, strict=True)]
        await load.train(stubs[0], options.hidden_size)
        for stub in stubs:
            await load.generate(stub, 200, 0)  # loads the model
        checks = [await _begin_checks(server.address) for server in servers]
        places = {
            "anywhere": [processors] * 2,
            "on the same processors": [processors[:1], processors[: len(stubs)]],
        }
        found: dict[str, list[list[float]]] = {place: [[], []] for place in places}
        for _ in range(options.rounds):
            for place, allowed in places.items():
                for called, speeds, mine in zip(
                    (stubs[:1], stubs), found[place], allowed, strict=True
                ):
                    _use(mine)
                    speeds.append(await _speed(called, options.streams))
        _use(processors)
        for place, (alone, shared) in found.items():
            ratio = statistics.median(both / one for one, both in zip(alone, shared, strict=True))
            print(f"{options.streams} streams, the caller {place}:")
            print(f"  1 replica: {load.spread(alone)} tokens/s")
            print(f"  {len(stubs)} replicas: {load.spread(shared)} tokens/s, {ratio:.2f}x")
        for number, check in enumerate(checks):
            printed, _ = await check.communicate(b"enough\n")
            times = sorted(json.loads(printed))
            print(
                f"health of replica {number}: p50 {statistics.median(times):.2f} ms, "
                f"p99 {times[int(0.99 * len(times))]:.2f} ms ({len(times)} checks)"
            )


def _use(processors: Sequence[int]) -> None:
    """Has all threads of this process run on some processors."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


async def _speed(stubs: Sequence[Stub], streams: int) -> float:
    """Returns the tokens a second of all streams, divided among servers."""
    share = streams // len(stubs)
    found = await asyncio.gather(*(load.together(stub, share, _TOKENS) for stub in stubs))
    return sum(each.speed for each in found)


async def _begin_checks(address: str) -> asyncio.subprocess.Process:
    """Starts a process that asks a server for its health until its input ends."""
    check = await asyncio.create_subprocess_exec(
        *(sys.executable, load.__file__, "--health", address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert check.stdout is not None
    await check.stdout.readline()  # it has begun
    return check


if __name__ == "__main__":
    sys.exit(main())
