"""`ThreadPool` runs work that blocks on the disk; each kind of work has its own pool.

A full pool leaves the others free: a hundred lists of models do not delay a job that is stored, and
no upload waits for a model that is read. Work in one pool never waits for work in another. In each
pool callers take turns, so that one with much work does not delay the others' behind all of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from treadle.server.resources.fair_queue import FairQueue
from treadle.server.resources.work_owner import work_owner

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


Work = tuple[Future[Any], Callable[[], Any]]
"""What is to run, and where its result goes."""


class _Threads:
    """The threads of a pool while it is open, and the work that waits for them."""

    def __init__(self, name: str, count: int) -> None:
        self.executor = ThreadPoolExecutor(count, name)
        self.free = count
        self.waiting: FairQueue[Work] = FairQueue()


class ThreadPool:
    """Threads for one kind of work, which start when first needed.

    Args:
        name: The name of the threads.
        threads: The most threads.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        """The name of the threads."""
        self._count = threads
        self._threads: _Threads | None = None
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
        # In the context of the caller, what the work logs shows the id of the call.
        run = partial(copy_context().run, work, *arguments, **named)
        future: Future[Result] = Future()
        with self._lock:
            if self._threads is None:
                self._threads = _Threads(self.name, self._count)
            threads = self._threads
            if threads.free:
                threads.free -= 1
                # A list, since the executor keeps what it passes on, and so would every result.
                threads.executor.submit(self._serve, threads, [(future, run)])
            else:
                threads.waiting.put(work_owner(), (future, run))
        return await asyncio.wrap_future(future)

    def _serve(self, threads: _Threads, first: list[Work]) -> None:
        """Runs a piece of work in a thread, and then what waits, until nothing does."""
        work = first.pop()
        while True:
            _run(*work)
            del work  # a thread that waits for the lock must not keep it alive
            with self._lock:
                if not threads.waiting:
                    threads.free += 1
                    return
                work = threads.waiting.pop()

    def close(self) -> None:
        """Closes the pool: work that runs finishes, work that waits does not start."""
        with self._lock:
            threads = self._threads
            self._threads = None
            if threads is not None:
                while threads.waiting:
                    future, _ = threads.waiting.pop()
                    future.cancel()
        if threads is not None:
            threads.executor.shutdown(wait=False)


def _run(future: Future[Any], run: Callable[[], Any]) -> None:
    """Runs a piece of work, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = run()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


DATABASE = ThreadPool("database", 4)
"""Short reads and writes of the database, and finding the version of a name."""

LEASES = ThreadPool("leases", 2)
"""Renewing and taking leases, which must not wait for anything else."""

EVENTS = ThreadPool("events", 2)
"""Events that watchers of jobs read."""

LISTS = ThreadPool("lists", 2)
"""Pages of lists, and descriptions of single models."""

MODELS = ThreadPool("models", 2)
"""Reading models into memory."""

FETCHES = ThreadPool("fetches", 4)
"""Bringing models from a store of blobs, which may hang, to this machine."""

STORE = ThreadPool("store", 4)
"""Storing and deleting versions and directories of jobs: seconds for a large model."""

BLOBS = ThreadPool("blobs", 4)
"""Bringing the files of jobs from a store of blobs, and storing checkpoints there."""

UPLOADS = ThreadPool("uploads", 8)
"""Writing corpora."""

EXPORTS = ThreadPool("exports", 2)
"""Reading files of models that are sent."""

RETENTION = ThreadPool("retention", 1)
"""Deleting old jobs and corpora."""

SETTINGS = ThreadPool("settings", 1)
"""Reading files of settings again that have changed."""

KEYS = ThreadPool("keys", 1)
"""Fetching the keys of an identity provider, which may take seconds."""

DISK_USAGE = ThreadPool("disk-usage", 1)
"""Adding up what the data directory takes."""

METRICS = ThreadPool("metrics", 1)
"""Writing the page of metrics."""

JSON = ThreadPool("json", 2)
"""Parsing large requests in JSON, writing large replies, and compressing both."""

ALL = (
    DATABASE,
    LEASES,
    EVENTS,
    LISTS,
    MODELS,
    FETCHES,
    STORE,
    BLOBS,
    UPLOADS,
    EXPORTS,
    RETENTION,
    SETTINGS,
    KEYS,
    JSON,
    DISK_USAGE,
    METRICS,
)
"""Every pool."""


def close() -> None:
    """Closes all pools, at the end of the server."""
    for pool in ALL:
        pool.close()
