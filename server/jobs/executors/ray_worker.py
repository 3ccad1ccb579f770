"""`RayWorker` is the worker of one job on a node of a Ray cluster, as the server sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from contextlib import suppress
from typing import Any

from treadle.server.access.request_id import log_form
from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.executor import JobNeeds, OnWait

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Seconds between two checks of a worker."""

_END_S = 20.0
"""Seconds that a worker's end may take, its files removed; then nobody waits for it."""

_SILENT_S = 60.0
"""Seconds for which `ray_bridge`, which says every few seconds why a job waits, may be silent."""

_CONNECTION_LOST = "was lost: the connection to the Ray cluster broke"


class RayWorker:
    """The worker of one job.

    Args:
        job: The job's id.
        reader: What comes from `ray_bridge`.
        writer: What goes there.
    """

    pid = 0

    def __init__(
        self, job: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._job = job
        self._reader = reader
        self._writer = writer
        self._node = ""
        self._is_over = False
        self._kill_reason = ""
        self._listening = False
        self._silent_s = 0.0
        self.took_too_much = False
        self.starved = False
        self.lost = False
        self.is_bridge_silent = False
        """Whether `ray_bridge` said nothing for too long while the worker was to be placed."""

    async def place(self, needs: JobNeeds, min_free_bytes: int, on_wait: OnWait) -> bool:
        """Asks for a node and waits until the worker is ready there.

        Args:
            needs: What the job needs.
            min_free_bytes: Bytes of the node's disk to leave free.
            on_wait: Gets the reason while no node has what the job needs.

        Returns:
            False where the connection broke instead, or the node was lost, or `ray_bridge` was
            silent for too long: the job is to be placed again.

        Raises:
            StatusError: ABORTED: the worker did not get ready.
        """
        self._tell(
            job=needs.job,
            fence=needs.fence,
            threads=needs.threads,
            memory_bytes=needs.memory_bytes,
            min_free_bytes=min_free_bytes,
        )
        while (message := await self._next(_SILENT_S)) is not None:
            match message["event"]:
                case "waiting":
                    await on_wait(message["reason"])
                case "ready":
                    self._node = message["node"]
                    logger.info("job %s runs on node %s", self._job, self._node)
                    return True
                case "died" if message.get("lost"):
                    return False
                case "died":
                    raise aborted(f"the training process {message['reason']}")
        return False

    @property
    def alive(self) -> bool:
        """False once the worker was seen to have ended."""
        return not self._is_over

    def send(self, message: worker_protocol.Message) -> None:
        """Sends a message; one to a worker that ended is lost without an error."""
        self._tell(send=message)

    def ask_to_leave(self, message: worker_protocol.Message) -> None:
        """Sends a request to end, which the node sees to."""
        self._tell(ask_to_leave=message)

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        """Has the node kill the worker once it hangs or takes too much memory.

        Where neither the worker nor the node gives a sign of life, the worker is given up.

        Args:
            timeout_s: Seconds for which it may neither respond nor follow a request to end.
            limit_bytes: The most memory that its job may take; None: no limit.
        """
        self._tell(supervise={"timeout_s": timeout_s, "limit_bytes": limit_bytes})
        before = time.monotonic()
        while self.alive:
            await asyncio.sleep(min(_LOOK_S, timeout_s / 4))
            now = time.monotonic()
            passed = min(now - before, 2 * _LOOK_S)
            before = now
            self._silent_s = self._silent_s + passed if self._listening else 0.0
            if self._silent_s >= timeout_s:
                self.lost = True
                self.kill(f"was lost: node {self._node} gave no sign of life for {timeout_s:g} s")
                return

    def kill(self, why: str = "was killed") -> None:
        """Kills the worker and its actor.

        Args:
            why: The reason, which follows "the training process" in messages.
        """
        self._kill_reason = self._kill_reason or why
        self._writer.close()

    async def receive(self) -> worker_protocol.Message:
        """Returns the next message of the worker.

        Raises:
            StatusError: ABORTED: the worker ended instead.
        """
        while (message := await self._next()) is not None:
            if message["event"] == "died":
                self.took_too_much = message.get("took_too_much", False)
                self.starved = message.get("starved", False)
                self.lost = message.get("lost", False)
                reason = message["reason"]
                # The worker's own words come whole, those of the node without a subject.
                whole = reason.startswith("the training process")
                raise aborted(reason if whole else f"the training process {reason}")
            if message["event"] != "alive":
                return message
        raise self._death()

    def _death(self) -> StatusError:
        self._is_over = True
        if self._kill_reason:
            return aborted(f"the training process {self._kill_reason}")
        self.lost = True
        return aborted(f"the training process {_CONNECTION_LOST}")

    async def end(self) -> None:
        """Ends the worker and its actor, and waits until the connection is closed."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            with suppress(OSError):
                self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                while await self._next() is not None:
                    pass
        self._is_over = True
        self._writer.close()

    async def _next(self, silent_s: float | None = None) -> worker_protocol.Message | None:
        """Returns the next message that is no line of the log; None at the end.

        Args:
            silent_s: Seconds of silence that are the end, too; None: none are.
        """
        self._listening = True
        try:
            while True:
                try:
                    async with asyncio.timeout(silent_s):  # `wait_for` may lose a cancellation
                        line = await self._reader.readline()
                except TimeoutError:
                    self.is_bridge_silent = True
                    line = b""
                except ConnectionError:
                    line = b""
                self._silent_s = 0.0
                if not line.endswith(b"\n"):
                    self._is_over = True
                    return None
                message = worker_protocol.decode(line)
                if message["event"] != "log":
                    return message
                self._write_log(message["line"])
        finally:
            self._listening = False

    def _tell(self, **message: Any) -> None:
        with suppress(ConnectionError):
            if not self._writer.is_closing():
                self._writer.write(worker_protocol.encode(message))

    def _write_log(self, line: str) -> None:
        """Writes a line of the worker's log to the server's, with the job and the node."""
        if log_form() == "json":
            with suppress(ValueError):
                fields = json.loads(line)
                if isinstance(fields, dict):
                    line = json.dumps(fields | {"job": self._job, "node": self._node})
                    print(line, file=sys.stderr, flush=True)
                    return
            logger.warning("job %s on node %s: %s", self._job, self._node, line)
        else:
            print(f"job {self._job} on node {self._node}: {line}", file=sys.stderr, flush=True)
