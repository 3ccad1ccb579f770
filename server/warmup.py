"""`Warmup` makes kernels ready at start and says which are.

A first start compiles, for half a minute or so. The kernels come in groups (`KernelGroup`).
Until the first one is ready, health says NOT_SERVING and calls are refused with the reason. From
then on the server answers what it can: a call that needs a group which is still being compiled
calls `require` before it takes a turn, and waits. Jobs stay queued, with the reason, until the
kernels of training are ready. Nothing is compiled on the event loop or in a turn; other processes
compile, and a thread of this one loads what they did.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress

from treadle.model import compiled_for, kernel_folder, kernels_ready, warm
from treadle.model.kernel_cache import all_compiled, note_all_compiled
from treadle.model.warmup.compilers import Compilers, end_waiting, useful_processes
from treadle.model.warmup.groups import KernelGroup
from treadle.server.errors import unavailable
from treadle.server.telemetry import metrics

logger = logging.getLogger(__name__)

_REPORT_S = 5.0
"""Seconds between two progress reports."""

_FOR_PROCESSES = frozenset({KernelGroup.TRAINING, KernelGroup.BF16})
"""What only training processes call. Once compiled, it need not be loaded here."""

_PATIENCE_S = 30.0
"""Seconds for which a call waits for kernels; then it is to be repeated."""


class Warmup:
    """Compiles or loads every kernel, once."""

    def __init__(self) -> None:
        # A thread of its own, for which an early end need not wait.
        self._thread = ThreadPoolExecutor(1, "warm")
        self._ready = {group: asyncio.Event() for group in KernelGroup}
        self._compilers: Compilers | None = None
        self._closed = threading.Event()
        self._began = 0.0

    @property
    def done(self) -> bool:
        """True once every kernel is ready."""
        return all(event.is_set() for event in self._ready.values())

    @property
    def progress(self) -> tuple[int, int]:
        """How many kernels are ready and how many there are; (0, 0) once all are.

        A kernel counts once it is compiled for any types, but may be needed for others as well.
        So a group that is not ready yet counts as one kernel that is not, at least.
        """
        if self.done:
            return (0, 0)
        ready, total = kernels_ready()
        left = sum(not event.is_set() for event in self._ready.values())
        return min(ready, total - left), total

    def reason(self, group: KernelGroup = KernelGroup.INFERENCE) -> str:
        """Returns why kernels of a group cannot be called yet; empty once they can."""
        if self._ready[group].is_set():
            return ""
        ready, total = self.progress
        return f"the server is compiling its kernels ({ready} of {total})"

    def check(self) -> None:
        """Checks that the kernels of inference are ready, which nearly every call needs.

        Raises:
            StatusError: UNAVAILABLE: they are not.
        """
        reason = self.reason()
        if reason:
            raise unavailable(reason, _REPORT_S)

    async def require(self, group: KernelGroup) -> None:
        """Waits until the kernels of a group are ready. To be called before a turn is taken.

        It takes no time once they are, which is nearly always. A caller with a deadline ends by
        it as ever.

        Args:
            group: What the call needs, in addition to INFERENCE.

        Raises:
            StatusError: UNAVAILABLE with RetryInfo: they are not ready after half a minute, or
                not even those of INFERENCE are.
        """
        if self._ready[group].is_set():
            return
        self.check()
        logger.info("a call waits for the kernels of %s", group.value)
        try:
            await asyncio.wait_for(self._ready[group].wait(), _PATIENCE_S)
        except TimeoutError:
            reason = f"{self.reason(group)}, and those of {group.value} are not ready"
            raise unavailable(reason, _REPORT_S) from None

    async def run(self, report: Callable[[str], Awaitable[None]]) -> None:
        """Makes the kernels of inference ready, and reports the progress every few seconds.

        Args:
            report: Called with the reason for waiting each time.
        """
        self._began = time.monotonic()
        logger.info("loading the kernels; a first start compiles them")
        await self._reach(KernelGroup.INFERENCE, report)
        took = time.monotonic() - self._began
        metrics.WARMUP_SECONDS.set(took)
        logger.info("the kernels are ready after %.1f s", took)

    async def finish(
        self, report: Callable[[str], Awaitable[None]], reached: Callable[[KernelGroup], None]
    ) -> None:
        """Makes the other groups ready as well; the server answers calls meanwhile.

        A group that cannot be made ready counts as ready: calls and jobs that need its kernels get
        the error, rather than wait for ever.

        Args:
            report: As for `run`.
            reached: Called with each group that is ready.
        """
        failed = False
        for group in KernelGroup:
            try:
                await self._reach(group, report)
            except Exception:
                failed = True
                logger.exception("the kernels of %s cannot be made ready", group.value)
                self._ready[group].set()
            reached(group)
        if self._compilers is not None:
            self._compilers.close()
        if self._compilers is not None and not failed:
            took = time.monotonic() - self._began
            logger.info("every kernel is ready after %.1f s", took)
            await asyncio.get_running_loop().run_in_executor(self._thread, note_all_compiled)

    async def _reach(self, group: KernelGroup, report: Callable[[str], Awaitable[None]]) -> None:
        """Makes a group ready."""
        if self._ready[group].is_set():
            return
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._load, group)
        while not (await asyncio.wait([work], timeout=_REPORT_S))[0]:
            reason = self.reason(group)
            logger.info("%s, %.0f s so far", reason, time.monotonic() - self._began)
            await report(reason)
        await work
        self._ready[group].set()

    def _load(self, group: KernelGroup) -> None:
        """Has a group compiled, if need be, and loads it; runs in the thread."""
        if self._compilers is None and group is KernelGroup.INFERENCE:
            self._compilers = _compilers()
        if self._closed.is_set():
            return
        if self._compilers is not None:
            with suppress(CancelledError):  # by `close`
                self._compilers.wait(group)
        elif group in _FOR_PROCESSES and all_compiled():
            return
        if not self._closed.is_set():
            warm([group])

    def close(self) -> None:
        """Ends the processes that compile, and abandons the thread."""
        self._closed.set()
        if self._compilers is not None:
            self._compilers.close()
        self._thread.shutdown(wait=False)


def _compilers() -> Compilers | None:
    """Starts processes that compile; None where nothing is left to compile, or none can start."""
    if all_compiled():  # perhaps by another server, since this one began
        end_waiting()
        return None
    try:
        return Compilers(useful_processes())
    except OSError as error:
        logger.warning("this process alone compiles the kernels: %s", error)
        return None


def warm_up() -> None:
    """Compiles every kernel, and prints its progress every few seconds."""
    began = time.monotonic()
    print(f"compiling kernels for {compiled_for()} into {kernel_folder()}", flush=True)
    compilers = _compilers()
    # A daemon thread, so that Ctrl-C does not wait for the compiler.
    failed: list[BaseException] = []
    worker = threading.Thread(target=_warm, args=(compilers, failed), daemon=True)
    worker.start()
    try:
        while True:
            worker.join(_REPORT_S)
            if not worker.is_alive():
                break
            ready, total = kernels_ready()
            print(f"{ready} of {total} kernels, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        if compilers is not None:
            compilers.close()
    if failed:
        raise failed[0]
    print(f"every kernel is ready after {time.monotonic() - began:.1f} s", flush=True)


def _warm(compilers: Compilers | None, failed: list[BaseException]) -> None:
    try:
        for group in KernelGroup:
            if compilers is not None:
                compilers.wait(group)
            warm([group])
        note_all_compiled()
    except BaseException as error:
        failed.append(error)
