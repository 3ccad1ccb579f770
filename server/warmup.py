"""`Warmup` compiles or loads every kernel at start and reports its progress.

A first start compiles for a minute or two. Meanwhile health says NOT_SERVING, jobs are queued with
the reason, and calls that need kernels are refused with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from treadle.model import compiled_for, kernel_folder, kernels_ready, warm
from treadle.server.errors import unavailable
from treadle.server.telemetry import metrics

logger = logging.getLogger(__name__)

_REPORT_S = 5.0
"""Seconds between two progress reports."""


class Warmup:
    """Compiles or loads every kernel, once."""

    def __init__(self) -> None:
        # A thread of its own, for which an early end need not wait.
        self._thread = ThreadPoolExecutor(1, "warm")
        self.done = False
        """True once every kernel is ready."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many kernels are ready and how many there are; (0, 0) once all are."""
        return (0, 0) if self.done else kernels_ready()

    @property
    def reason(self) -> str:
        """Why nothing can be computed yet; empty once it can."""
        if self.done:
            return ""
        ready, total = kernels_ready()
        return f"the server is compiling its kernels ({ready} of {total})"

    def check(self) -> None:
        """Checks that a call that needs kernels can run.

        Raises:
            StatusError: UNAVAILABLE: they are not ready.
        """
        if not self.done:
            raise unavailable(self.reason, _REPORT_S)

    async def run(self, report: Callable[[str], Awaitable[None]]) -> None:
        """Makes every kernel ready, and reports its progress every few seconds.

        Args:
            report: Called with the reason for waiting each time.
        """
        began = time.monotonic()
        logger.info("loading the kernels; a first start compiles them, in a minute or two")
        work = asyncio.get_running_loop().run_in_executor(self._thread, warm)
        while not (await asyncio.wait([work], timeout=_REPORT_S))[0]:
            logger.info("%s, %.0f s so far", self.reason, time.monotonic() - began)
            await report(self.reason)
        await work
        self.done = True
        took = time.monotonic() - began
        metrics.WARMUP_SECONDS.set(took)
        logger.info("the kernels are ready after %.1f s", took)

    def close(self) -> None:
        """Abandons the thread, which ends after the kernel that it compiles."""
        self._thread.shutdown(wait=False)


def warm_up() -> None:
    """Compiles every kernel, and prints its progress every few seconds."""
    began = time.monotonic()
    print(f"compiling kernels for {compiled_for()} into {kernel_folder()}", flush=True)
    # A daemon thread, so that Ctrl-C does not wait for the compiler.
    failed: list[BaseException] = []
    worker = threading.Thread(target=_warm, args=(failed,), daemon=True)
    worker.start()
    while True:
        worker.join(_REPORT_S)
        if not worker.is_alive():
            break
        ready, total = kernels_ready()
        print(f"{ready} of {total} kernels, {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        raise failed[0]
    print(f"every kernel is ready after {time.monotonic() - began:.1f} s", flush=True)


def _warm(failed: list[BaseException]) -> None:
    try:
        warm()
    except BaseException as error:
        failed.append(error)
