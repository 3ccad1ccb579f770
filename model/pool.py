"""Threads that take parts of the work of a step; no result depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from treadle.kernels.optimizers import BLOCK

Item = TypeVar("Item")
Result = TypeVar("Result")

PART = 2 * BLOCK
"""Elements of a part of a flat buffer: enough to be worth a trip to another thread."""


class Pool:
    """Threads that take items of work; with one thread, or one item, the caller works itself."""

    def __init__(self, threads: int) -> None:
        """Start a pool.

        Args:
            threads: how many items run at once, at least 1.
        """
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return work(item) of every item, in order."""
        listed = list(items)
        if self._executor is None or len(listed) == 1:
            return [work(item) for item in listed]
        return list(self._executor.map(work, listed))

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()


def parts(size: int) -> list[slice]:
    """Return the parts of a flat buffer that threads take; no bit depends on where they end."""
    return [slice(i, min(size, i + PART)) for i in range(0, size, PART)]
