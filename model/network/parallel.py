"""`Pool` runs parts of a step in several threads; no result depends on their number.

The calling thread works too, and takes whatever no other thread has begun. Waking a thread takes
longer than many parts of a step, so the caller never waits for one to wake. When another program
takes a processor, the threads that still run take the items that the others do not.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from treadle.kernels.optimizers import BLOCK

Item = TypeVar("Item")
Result = TypeVar("Result")

PART = 2 * BLOCK
"""Elements of a part of a flat buffer: enough to outweigh handing it to another thread."""


class _Job(Generic[Item, Result]):
    """Items of work that any number of threads take, one at a time."""

    def __init__(self, work: Callable[[Item], Result], items: list[Item]) -> None:
        self._work = work
        self._items = items
        self._numbers = itertools.count()  # next() is atomic
        self._left = len(items)
        self._lock = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._results: list[Any] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}

    def take(self) -> None:
        """Works on items until all are taken."""
        while (number := next(self._numbers)) < len(self._items):
            try:
                self._results[number] = self._work(self._items[number])
            except BaseException as error:
                self._errors[number] = error
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._done.release()

    def results(self) -> list[Result]:
        """Waits for all items; the results in order, or the first item's error."""
        self._done.acquire()
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._results


def _serve(jobs: SimpleQueue[_Job[Any, Any] | None]) -> None:
    """Runs jobs until None comes; the main loop of a thread."""
    while (job := jobs.get()) is not None:
        job.take()
        del job  # while it waits, a thread must keep no job alive


def _end(jobs: SimpleQueue[_Job[Any, Any] | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)


class Pool:
    """Threads that share items of work with the caller; close or drop the pool to end them."""

    def __init__(self, threads: int) -> None:
        """Starts a pool.

        Args:
            threads: How many items run at once, the caller's included, at least 1.
        """
        self._jobs: SimpleQueue[_Job[Any, Any] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _end, self._jobs, self._threads)
        self._start(threads - 1)

    @property
    def threads(self) -> int:
        """How many items run at once, the caller's included."""
        return len(self._threads) + 1

    def resize(self, threads: int) -> None:
        """Continues with another number of threads.

        Args:
            threads: As for a new pool. No `map` may be under way.
        """
        self._stop()
        self._start(threads - 1)

    def _start(self, count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(
                target=_serve, args=(self._jobs,), name="treadle-pool", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _stop(self) -> None:
        _end(self._jobs, self._threads)
        for thread in self._threads:
            thread.join()
        self._threads.clear()  # the same list, which the finalizer has as well

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns work(item) of every item, in order.

        Args:
            work: The function to call, from any thread.
            items: Its arguments, one for each call.

        Raises:
            BaseException: What `work` raised for the first item that failed; other items may or
                may not have been worked on.
        """
        listed = list(items)
        if not self._threads or len(listed) < 2:
            return [work(item) for item in listed]
        job = _Job(work, listed)
        for _ in range(min(len(self._threads), len(listed) - 1)):
            self._jobs.put(job)
        job.take()
        return job.results()

    def close(self) -> None:
        """Ends the threads after the items that they work on."""
        self._stop()


def parts(size: int) -> list[slice]:
    """Splits a flat buffer of `size` elements into parts for threads.

    No bit of a result depends on where the parts end.

    Returns:
        The parts, in order.
    """
    return [slice(i, min(size, i + PART)) for i in range(0, size, PART)]
