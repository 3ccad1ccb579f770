"""`ThreadPool` runs work that blocks on the disk; each kind of work has its own pool.

A full pool leaves the others free: a hundred lists of models do not delay a job that is stored, and
no upload waits for a model that is read. Work in one pool never waits for work in another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ThreadPool:
    """Threads for one kind of work, which start when first needed.

    Args:
        name: The name of the threads.
        threads: The most threads.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        """The name of the threads."""
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
        """Runs a function in one of the threads, in a copy of the caller's context.

        Args:
            work: The function. It does not start once the caller is cancelled, and is never
                interrupted.
            arguments: Its positional arguments.
            named: Its keyword arguments.

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
        # In the context of the caller, what the work logs shows the id of the call.
        run = partial(copy_context().run, work, *arguments, **named)
        return await loop.run_in_executor(executor, run)

    def close(self) -> None:
        """Closes the pool: work that runs finishes, work that waits does not start."""
        with self._lock:
            executor = self._executor
            self._executor = None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


DATABASE = ThreadPool("database", 4)
"""Short reads and writes of the database, and finding the version of a name."""

EVENTS = ThreadPool("events", 2)
"""Events that watchers of jobs read."""

LISTS = ThreadPool("lists", 2)
"""Pages of lists, and descriptions of single models."""

MODELS = ThreadPool("models", 2)
"""Reading models into memory."""

STORE = ThreadPool("store", 4)
"""Storing and deleting versions and directories of jobs: seconds for a large model."""

UPLOADS = ThreadPool("uploads", 8)
"""Writing corpora."""

RETENTION = ThreadPool("retention", 1)
"""Deleting old jobs and corpora."""

SETTINGS = ThreadPool("settings", 1)
"""Reading files of settings again that have changed."""

KEYS = ThreadPool("keys", 1)
"""Fetching the keys of an identity provider, which may take seconds."""

ALL = (DATABASE, EVENTS, LISTS, MODELS, STORE, UPLOADS, RETENTION, SETTINGS, KEYS)
"""Every pool."""


def close() -> None:
    """Closes all pools, at the end of the server."""
    for pool in ALL:
        pool.close()
