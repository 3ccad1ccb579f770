"""The threads that block on the disk for the event loop, one pool a kind of work.

Whatever fills one pool leaves the others free: a hundred lists of models keep no job from being
stored, and no upload waits behind a model that is being read. Nothing in a pool waits for work of
another one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ThreadPool:
    """Some threads for one kind of work; they begin when first needed.

    Args:
        name: What the threads are called.
        threads: The most of them.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        """What the threads are called."""
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    async def run(
        self,
        work: Callable[Arguments, Result],
        /,
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Does a piece of work in one of the threads.

        Args:
            work: What to do. It is not begun once the caller is cancelled, and never broken off.
            arguments: What it is called with.
            named: The same, by name.

        Returns:
            What the work returned.

        Raises:
            BaseException: What the work raised.
        """
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._threads, self.name)
            executor = self._executor
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, partial(work, *arguments, **named))

    def close(self) -> None:
        """Lets go of the threads: what is begun ends, what waits does not begin."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


DATABASE = ThreadPool("database", 4)
"""Short reads and writes of the database, and which version a name leads to."""

EVENTS = ThreadPool("events", 2)
"""What watchers of jobs read."""

LISTS = ThreadPool("lists", 2)
"""Pages of lists, and descriptions of single models."""

MODELS = ThreadPool("models", 2)
"""Models being read into memory."""

STORE = ThreadPool("store", 4)
"""Versions being stored and deleted, and directories of jobs: seconds for a large model."""

UPLOADS = ThreadPool("uploads", 8)
"""Corpora being written."""

RETENTION = ThreadPool("retention", 1)
"""Old jobs and corpora being deleted."""

ALL = (DATABASE, EVENTS, LISTS, MODELS, STORE, UPLOADS, RETENTION)
"""Every pool there is."""


def close() -> None:
    """Lets go of all threads, at the end of the server."""
    for pool in ALL:
        pool.close()
