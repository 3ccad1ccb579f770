"""How far the server is with its kernels: what those are told who call before they are ready.

A first start compiles every kernel, in a minute or two. Meanwhile health says NOT_SERVING, jobs
are queued with the reason, and calls that would need kernels are refused with it.
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

logger = logging.getLogger(__name__)

_TELL_S = 5.0
"""Seconds between two messages about how far it is."""


class Warming:
    """Compiles or loads every kernel, once."""

    def __init__(self) -> None:
        # A thread of its own, which an early end need not wait for.
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
        """Lets a call pass that needs kernels.

        Raises:
            StatusError: UNAVAILABLE: they are not ready.
        """
        if not self.done:
            raise unavailable(self.reason, _TELL_S)

    async def run(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """Makes every kernel ready, and says every few seconds how far it is.

        Args:
            tell: Is given the reason for waiting each time.
        """
        began = time.monotonic()
        logger.info("loading the kernels; a first start compiles them, in a minute or two")
        work = asyncio.get_running_loop().run_in_executor(self._thread, warm)
        while not (await asyncio.wait([work], timeout=_TELL_S))[0]:
            logger.info("%s, %.0f s so far", self.reason, time.monotonic() - began)
            await tell(self.reason)
        await work
        self.done = True
        logger.info("the kernels are ready after %.1f s", time.monotonic() - began)

    def close(self) -> None:
        """Lets go of the thread, which goes on to the end of what it compiles."""
        self._thread.shutdown(wait=False)


def warm_up() -> None:
    """Compiles every kernel, and prints how far it is every few seconds."""
    began = time.monotonic()
    print(f"compiling kernels for {compiled_for()} into {kernel_folder()}", flush=True)
    # A daemon: Ctrl-C in the main thread waits for no compiler.
    failed: list[BaseException] = []
    worker = threading.Thread(target=_warm, args=(failed,), daemon=True)
    worker.start()
    while True:
        worker.join(_TELL_S)
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
