"""Whose turn it is: everything that generates, scores or learns shares the same few threads.

Kernels let go of Python's lock, so threads are enough, and the event loop stays free. Work is done
in turns of a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

TURN_S = 0.005
"""About as long as one turn takes."""


class Scheduler:
    """Threads that callers take turns on.

    Args:
        threads: How many turns run at once.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "turn")

    def caller(self) -> Caller:
        """Returns a new caller, who gets a fair share from now on."""
        return Caller(self._pool)

    def close(self) -> None:
        """Lets go of the threads; what they are at is finished but goes nowhere."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Caller:
    """One who takes turns: a call, or all sessions that decode together."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    async def run(self, work: Callable[[float], Result]) -> Result:
        """Does a piece of work in a thread, when it is this caller's turn.

        Args:
            work: Gets the seconds that it should take at most, and returns soon after them.

        Raises:
            BaseException: What the work raised.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, work, TURN_S)
