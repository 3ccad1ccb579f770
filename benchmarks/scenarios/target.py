"""`Target`: the server under attack, as a scenario sees it; and the registry of scenarios."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc import aio

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.scenarios.memory_use import (
    MIB,
    descendants,
    is_training_worker,
    resident_bytes,
)
from treadle.benchmarks.scenarios.report import Figure, percentile
from treadle.benchmarks.scenarios.server import ServerProcess
from treadle.benchmarks.scenarios.watchers import Watcher
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

T = TypeVar("T")

HEALTH_P99_MS = 100.0
STALL_MS = 500.0
"""The longest that one call may hold up everybody."""

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    *THIS_MACHINE,
]

_TOLD = ("INTERNAL", "UNKNOWN")
"""Statuses whose message is shown as well."""

MESSAGE = (4 << 20) - 4096
"""Bytes of the largest text that a request takes, less what else is in it."""


@dataclass
class Target:
    """A running server, what watches it, and how to call it."""

    server: ServerProcess
    data_dir: Path
    template: Path
    command: list[str]
    """What runs a server, without flags."""
    is_quick: bool
    watchers: dict[str, Watcher]
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the watchers saw, once they have been collected."""
    may_end: bool = False
    """Whether the scenario itself ends the server."""

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.server.address, _OPTIONS)
        self.stub = sequence_pb2_grpc.SequenceServiceStub(self.channel)

    def few(self, count: int) -> int:
        """Returns how many to send: a tenth with --quick."""
        return max(2, count // 10) if self.is_quick else count

    def run(self, attack: Callable[[AsyncStub], Awaitable[T]]) -> T:
        """Runs a coroutine with many calls at once, and waits for its end."""

        async def attempt() -> T:
            async with aio.insecure_channel(self.server.address, _OPTIONS) as channel:
                return await attack(sequence_pb2_grpc.SequenceServiceStub(channel))

        return asyncio.run_coroutine_threadsafe(attempt(), _loop()).result()

    def grew_mib(self) -> float:
        """Returns by how much the server's memory rose, at its peak, since it had started."""
        return (self.server.memory.peak_bytes - self.server.idle_bytes) / MIB

    def kept(self, seconds: float = 8.0) -> Figure:
        """Returns by how much the server's memory is above its start some seconds from now."""
        least: float | None = None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            size = resident_bytes(self.server.pid)
            least = min(size if least is None else least, size)
            time.sleep(0.2)
        if self.server.exit_code is None and least is not None:
            return Figure("kept afterwards", (least - self.server.idle_bytes) / MIB, "MiB", 512.0)
        return Figure("kept afterwards", None, "MiB", 512.0, "the server ended")

    def collect(self) -> None:
        """Ends what watches the server."""
        while self.watchers:
            name, watcher = self.watchers.popitem()
            self.seen[name] = watcher.collect()

    def close(self) -> None:
        """Ends everything."""
        self.collect()
        self.channel.close()
        self.server.close()

    def watched_figures(self, stall_ms: float) -> Iterator[Figure]:
        """Yields what every scenario shows: health, ordinary streams, the server's end."""
        health = self.seen.get("health", {})
        times = health.get("times", [])
        yield _common("health p99", percentile(times, 0.99), "ms", HEALTH_P99_MS)
        yield _common("longest", max(times, default=None), "ms", stall_ms)
        if not self.may_end:
            count, most = _failures(health)
            yield _common("checks failed", count, bound=0.0, note=most)
            code = self.server.exit_code
            note = "" if code is None else f"exit code {code}"
            yield _common("ends of the server", float(code is not None), bound=0.0, note=note)
        if "ordinary" in self.seen:
            ordinary = self.seen["ordinary"]
            answers = ordinary.get("times", [])
            count, most = _failures(ordinary)
            yield _common("ordinary calls failed", count, bound=0.0, note=most)
            note = f"{len(answers)} answers, {ordinary.get('retries', 0)} refused and sent again"
            yield _common("ordinary p99", percentile(answers, 0.99), "ms", note=note)

    def memory_figures(self, most_mib: float) -> Iterator[Figure]:
        """Yields the most memory that the server and the processes that it starts had."""
        memory = self.server.memory
        yield _common("server", memory.peak_bytes / MIB, "MiB", most_mib)
        if memory.peak_worker_bytes:
            yield _common("largest training process", memory.peak_worker_bytes / MIB, "MiB")
        if memory.peak_helper_bytes:
            yield _common("other processes", memory.peak_helper_bytes / MIB, "MiB")

    # Calls that several scenarios make.

    def train(self, messages: Iterable[pb.TrainRequest], timeout: float = 60.0) -> Any:
        """Begins a Train call; returns its events."""
        return self.stub.Train(iter(messages), timeout=timeout)

    def begin(self, messages: Iterable[pb.TrainRequest], until: str = "progress") -> str:
        """Begins a job and returns its id once it has an event of a kind."""
        call = self.stub.Train(iter(messages), timeout=120.0)
        job = next(event.job for event in call if event.WhichOneof("event") == until)
        call.cancel()
        return str(job)

    def job(self, job: str) -> pb.Job:
        """Describes a job."""
        return self.stub.GetJob(pb.GetJobRequest(job=job), timeout=60.0).job

    def workers(self) -> list[int]:
        """Returns the processes that train."""
        return [pid for pid in descendants(self.server.pid) if is_training_worker(pid)]

    def seconds_until(self, condition: Callable[[], bool], most: float) -> float:
        """Returns the seconds until a condition holds, at most so many; errors count as no."""
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < most:
            with suppress(grpc.RpcError):
                if condition():
                    return time.perf_counter() - began
            time.sleep(0.05)
        return passed

    def seconds_until_free(self, most: float) -> float:
        """Returns the seconds until no job runs."""

        def is_free() -> bool:
            info = self.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=most)
            return info.training_running == 0

        return self.seconds_until(is_free, most)

    def generates(self) -> bool:
        """Generates a short text; returns whether that worked."""
        request = pb.GenerateRequest(model="characters", prompt="a", max_new_tokens=5)
        return bool(list(self.stub.Generate(request, timeout=30.0)))


def _failures(seen: Mapping[str, Any]) -> tuple[float | None, str]:
    """Returns how many calls of a watcher failed, and most of the ways in which they did."""
    if not seen:
        return None, "it was not to be asked"
    failed: dict[str, int] = seen["failures"]
    worst = sorted(failed.items(), key=lambda item: -item[1])[:2]
    return float(sum(failed.values())), ", ".join(f"{count} {what}" for what, count in worst)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Returns the event loop of all attacks: gRPC does not bear one that ends before others."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _common(
    what: str, value: float | None, unit: str = "", bound: float = math.inf, note: str = ""
) -> Figure:
    return Figure(what, value, unit, bound, note, is_common=True)


def timed(call: Callable[[], object]) -> tuple[float, str]:
    """Returns the seconds that a call took, and its status."""
    began = time.perf_counter()
    status = status_of(call)
    return time.perf_counter() - began, status


def status_of(call: Callable[[], object]) -> str:
    """Returns the status that a call ended with."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


async def aio_status(call: Awaitable[object]) -> str:
    """Returns the status that an asynchronous call ended with."""
    try:
        await call
    except aio.AioRpcError as error:
        name = str(error.code().name)
        return f"{name} ({error.details()})"[:120] if name in _TOLD else name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


def counted(statuses: Iterable[str]) -> str:
    """Returns how often each status came, in words."""
    found = sorted(statuses)
    return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))


@dataclass(frozen=True)
class Scenario:
    """One way to abuse a server."""

    name: str
    kind: str
    """What it attacks: the name of its module."""
    about: str
    """What it does, in a sentence."""
    run: Callable[[Target], list[Figure]]
    flags: tuple[str, ...]
    """Flags of the server."""
    prepare: Callable[[Path, Path], object] | None
    """Changes a data directory before the server starts; gets the template's folder and it."""
    stall_ms: float
    """The longest that health may wait; infinite where only the 99th percentile is judged."""


SCENARIOS: dict[str, Scenario] = {}
"""Every scenario by its name."""


def scenario(
    name: str,
    *,
    flags: Sequence[str] = (),
    prepare: Callable[[Path, Path], object] | None = None,
    stall_ms: float = math.inf,
) -> Callable[[Callable[[Target], list[Figure]]], Callable[[Target], list[Figure]]]:
    """Makes a function a scenario; its docstring says what it does."""

    def register(run: Callable[[Target], list[Figure]]) -> Callable[[Target], list[Figure]]:
        about = (run.__doc__ or "").partition("\n")[0]
        kind = run.__module__.rpartition(".")[2]
        found = Scenario(name, kind, about, run, tuple(flags), prepare, stall_ms)
        SCENARIOS[name] = found
        return run

    return register
