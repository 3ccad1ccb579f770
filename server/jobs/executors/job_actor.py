"""`JobActor` runs the worker of one job on a node of a Ray cluster.

The worker is the process that the server would run itself, in a directory of its own. Files come
and go through the actor: the node shares no file system with the server. This module does not
import Ray, which runs the actor as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from treadle.server.errors import StatusError
from treadle.server.failures import is_full
from treadle.server.jobs.executors.file_transfer import (
    DamagedTransferError,
    IncomingFile,
    OutgoingFile,
)
from treadle.server.jobs.executors.job_scratch import JobScratch
from treadle.server.jobs.executors.worker_pool import LocalWorker
from treadle.server.jobs.worker_protocol import Message
from treadle.server.release import RELEASE
from treadle.server.resources import thread_pools
from treadle.server.storage.files import DiskSpace

RECEIVE_S = 1.0
"""Seconds after which the actor answers even if the worker has sent nothing."""

_LOG_LINES = 1000
"""Lines of the worker's log that wait for the server; then the worker waits."""

_LOG_S = 1.0
"""Seconds for which the end of a worker waits for the rest of its log."""


class JobActor:
    """The worker of one job, its files and its messages; one at a time, and then the actor ends.

    Args:
        job: The job's id.
        min_free_bytes: Bytes of the node's disk to leave free.
    """

    def __init__(self, job: str, min_free_bytes: int) -> None:
        self._scratch = JobScratch(job)
        self._space = DiskSpace(self._scratch.root, min_free_bytes)
        self._worker: LocalWorker | None = None
        self._messages: asyncio.Queue[Message] = asyncio.Queue(_LOG_LINES)
        self._log: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._incoming: dict[int, IncomingFile] = {}
        self._outgoing: dict[int, OutgoingFile] = {}

    async def start(self) -> Message:
        """Starts the worker and waits until it is ready.

        Returns:
            `release`, `host` and `pid`; with `fault` where the worker did not get ready.
        """
        about: Message = {"release": RELEASE, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            worker = await LocalWorker.start(warm=False, log=asyncio.subprocess.PIPE)
        except OSError as error:
            return about | {"fault": f"no training process could be started: {error.strerror}"}
        self._worker = worker
        self._log = asyncio.create_task(self._follow_log(worker))
        try:
            await worker.receive()
        except StatusError as error:
            return about | {"fault": error.message}
        return about

    async def submit(self, request: Message, timeout_s: float, limit_bytes: int | None) -> None:
        """Gives the worker its job, whose files have arrived.

        Args:
            request: What `worker_request` says; the paths become those of this node.
            timeout_s: Seconds for which the worker may neither respond nor follow a request.
            limit_bytes: The most memory that the job may take; None: no limit.
        """
        worker = self._running()
        files = [
            file | {"path": str(self._scratch.corpora / file["sha256"])}
            for file in request["files"]
        ]
        here = {"files": files, "directory": str(self._scratch.directory), "reserved_bytes": 0}
        worker.send({"job": request | here})
        self._tasks.append(asyncio.create_task(worker.supervise(timeout_s, limit_bytes)))
        self._tasks.append(asyncio.create_task(self._follow(worker)))

    async def send(self, message: Message) -> None:
        """Sends the worker a message."""
        self._running().send(message)

    async def ask_to_leave(self, message: Message) -> None:
        """Sends the worker a request to end, which it must follow in time."""
        self._running().ask_to_leave(message)

    async def receive(self) -> list[Message]:
        """Returns the next messages of the worker, those of its log and of its death included.

        There are none after `RECEIVE_S` without one, which shows that the actor is alive.
        """
        messages = []
        with suppress(TimeoutError):
            messages.append(await asyncio.wait_for(self._messages.get(), RECEIVE_S))
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        return messages

    async def begin_file(self, folder: str, name: str, size: int) -> Message:
        """Begins to take a file from the server.

        Args:
            folder: `corpora`, or `job` for the job's directory.
            name: The file's name.
            size: Its bytes.

        Returns:
            Its `number` here; or `full`, the reason why the disk cannot take it.
        """
        place = self._scratch.corpora if folder == "corpora" else self._scratch.directory

        def begin() -> Message:
            number = next(self._numbers)
            self._incoming[number] = IncomingFile(place / name, size, self._space.require)
            return {"number": number}

        return await _or_full(begin)

    async def write_file(self, number: int, piece: bytes) -> Message:
        """Takes the next piece of a file; the result is as for `begin_file`."""
        return await _or_full(partial(self._incoming[number].write, piece))

    async def finish_file(self, number: int, sha256: str) -> Message:
        """Puts a file in its place.

        Returns:
            As for `begin_file`; `damaged`, where it is not what was sent.
        """
        file = self._incoming.pop(number)
        try:
            return await _or_full(partial(file.finish, sha256))
        except DamagedTransferError as error:
            return {"damaged": str(error)}
        finally:
            file.discard()

    async def results(self) -> list[tuple[str, str]]:
        """Returns the worker's files so far; see `JobScratch.results`."""
        return await thread_pools.STORE.run(self._scratch.results)

    async def open_result(self, name: str) -> tuple[int, int]:
        """Opens a file of the worker; returns its number here and its bytes."""
        number = next(self._numbers)
        file = await thread_pools.STORE.run(OutgoingFile, self._scratch.directory / name)
        self._outgoing[number] = file
        return number, file.size

    async def read_result(self, number: int) -> bytes:
        """Returns the next piece of an open file; none at the end."""
        return await thread_pools.STORE.run(self._outgoing[number].read)

    async def close_result(self, number: int) -> str:
        """Closes an open file; returns the SHA-256 of what was read."""
        file = self._outgoing.pop(number)
        file.close()
        return file.sha256

    async def end(self) -> list[Message]:
        """Ends the worker and removes its files; returns the rest of its log."""
        if self._worker is not None:
            await self._worker.end()
            await self._end_log()
        for task in self._tasks:
            task.cancel()
        await thread_pools.STORE.run(self._scratch.remove)
        rest = []
        while not self._messages.empty():
            rest.append(self._messages.get_nowait())
        return [message for message in rest if message["event"] == "log"]

    def _running(self) -> LocalWorker:
        assert self._worker is not None, "start() comes first"
        return self._worker

    async def _follow(self, worker: LocalWorker) -> None:
        """Passes on what the worker reports, its death at last."""
        while True:
            try:
                message = await worker.receive()
            except StatusError as error:
                await self._end_log()
                death = {"took_too_much": worker.took_too_much, "starved": worker.starved}
                await self._messages.put({"event": "died", "reason": error.message} | death)
                return
            await self._messages.put(message)

    async def _follow_log(self, worker: LocalWorker) -> None:
        """Passes on what the worker writes to its log."""
        assert worker.log is not None
        while True:
            try:
                line = await worker.log.readline()
            except ValueError:  # longer than any buffer; the rest of the line follows
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip("\n")
            await self._messages.put({"event": "log", "line": text})

    async def _end_log(self) -> None:
        """Waits for the rest of the log of a worker that has ended."""
        if self._log is not None:
            await asyncio.wait([self._log], timeout=_LOG_S)


async def _or_full(work: Callable[[], Message | None]) -> Message:
    """Does blocking work; returns its result, or why the disk is full."""
    try:
        return await thread_pools.STORE.run(work) or {}
    except OSError as error:
        if not is_full(error):
            raise
        return {"full": error.strerror or str(error), "needs_bytes": getattr(error, "size", 1)}
