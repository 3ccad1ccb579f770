"""`RayExecutor` runs each job on a node of a Ray cluster that has enough CPUs and memory free.

Ray itself is in a process of its own, `ray_bridge`. Where that process ends, since the cluster does
not answer, it is started again, and jobs wait meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
from contextlib import suppress

from treadle.server.access.request_id import log_form
from treadle.server.config import SettingError
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.executor import JobNeeds, OnWait, Worker
from treadle.server.jobs.executors.ray_worker import RayWorker

logger = logging.getLogger(__name__)

_CONNECT_S = 30.0
"""Seconds within which a cluster must answer; Ray itself would try for longer."""

_AGAIN_S = 0.5
"""Seconds before a job is placed again whose connection broke meanwhile."""

_RETRY_S = 5.0
"""Seconds between two attempts to reach a cluster that does not answer."""

_END_S = 2.0
"""Seconds that the bridge may take to end; then it is killed."""

_SHOWN = 400
"""Characters of Ray's own messages that an error repeats."""


class ClusterError(Exception):
    """The cluster does not answer. The message is a clause."""


class RayExecutor:
    """Gives each job a worker on a node of a Ray cluster.

    Args:
        address: The cluster's, as for `ray.init`.
        min_free_bytes: Bytes to leave free on the disk of a node.
    """

    shares_threads = False

    def __init__(self, address: str, min_free_bytes: int) -> None:
        self._address = address
        self._min_free_bytes = min_free_bytes
        self._bridge: _Bridge | None = None
        self._starting = asyncio.Lock()
        self._workers: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connects to the cluster.

        Raises:
            SettingError: Ray is not installed, or no cluster answers.
        """
        if importlib.util.find_spec("ray") is None:
            fault = (
                "needs ray, which is not installed: pip install '.[server,ray]' in a checkout of "
                "Treadle"
            )
            raise SettingError("executor", fault)
        try:
            await self._connected()
        except ClusterError as error:
            remedy = "start one with `ray start --head`, or name the address of another"
            fault = f"{self._address!r} leads to no Ray cluster: {error}; {remedy}"
            raise SettingError("ray_address", fault) from error

    @property
    def count(self) -> int:
        """How many workers there are, those that are about to end included."""
        return len(self._workers)

    async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
        """Returns a worker on a node that has what a job needs; `dismiss` it in the end.

        Args:
            needs: What the job needs.
            on_wait: Gets the reason while there is no such node, or the cluster does not answer.

        Raises:
            StatusError: ABORTED: the worker did not get ready on its node.
        """
        while True:
            try:
                bridge = await self._connected()
            except (ClusterError, OSError) as error:
                logger.warning("the Ray cluster does not answer: %s", error)
                await on_wait("waiting for the Ray cluster, which does not answer")
                await asyncio.sleep(_RETRY_S)
                continue
            worker = RayWorker(needs.job, *await bridge.open_channel())
            self._workers.add(worker)
            try:
                if await worker.place(needs, self._min_free_bytes, on_wait):
                    return worker
            except BaseException:
                self.dismiss(worker)
                raise
            self.dismiss(worker)
            if worker.is_bridge_silent:
                logger.warning("the connection to the Ray cluster hangs: a new one is made")
                bridge.kill()
            await asyncio.sleep(_AGAIN_S)

    def keep(self, taking: asyncio.Task[Worker]) -> None:
        """Gives up a worker that nobody needs any more, and its place in Ray's queue.

        Args:
            taking: The task of `take`.
        """
        taking.cancel()
        taking.add_done_callback(self._dismiss_taken)

    def _dismiss_taken(self, taking: asyncio.Task[Worker]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self.dismiss(taking.result())

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        """Begins to end a worker; the task is done when it is gone."""
        ending = asyncio.create_task(self._end(worker))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def _end(self, worker: Worker) -> None:
        try:
            await worker.end()
        finally:
            self._workers.discard(worker)

    def refill(self, delay_s: float = 0.0) -> None:
        """Does nothing: an idle worker would keep its CPUs from other jobs."""

    def kill(self) -> None:
        """Kills every worker that is left, and the connection to the cluster."""
        for worker in self._workers:
            worker.kill()
        if self._bridge is not None:
            self._bridge.kill()

    async def close(self) -> None:
        """Ends every worker, and the connection to the cluster."""
        for worker in list(self._workers):
            self.dismiss(worker)
        if self._ending:
            await asyncio.wait(self._ending)
        if self._bridge is not None:
            await self._bridge.close()

    async def _connected(self) -> _Bridge:
        """Returns the connection to the cluster, a new one where the last one broke.

        Raises:
            ClusterError: The cluster does not answer.
            OSError: No process could be started.
        """
        async with self._starting:
            if self._bridge is None or not self._bridge.is_up:
                self._bridge = await _Bridge.start(self._address)
            return self._bridge


class _Bridge:
    """The process that is connected to the cluster.

    Args:
        process: The process.
        control: The socket on which it takes those of jobs.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    async def start(cls, address: str) -> _Bridge:
        """Starts the process and waits until it is connected.

        Args:
            address: The cluster's.

        Returns:
            The process.

        Raises:
            ClusterError: The cluster does not answer.
            OSError: No process could be started.
        """
        control, inherited = socket.socketpair()
        with inherited:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "treadle.server.jobs.executors.ray_bridge"),
                *("--address", address, "--socket", str(inherited.fileno())),
                *("--log-level", str(logging.getLogger("treadle").getEffectiveLevel())),
                *("--log-format", log_form()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[inherited.fileno()],
                cwd="/",  # Ray has its workers import from this directory, too
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        bridge = cls(process, control)
        try:
            await bridge._connect()
        except BaseException:
            bridge.kill()
            raise
        return bridge

    async def _connect(self) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_CONNECT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ClusterError(f"nothing answers within {_CONNECT_S:g} seconds") from None
        if not line:
            code = await self._process.wait()
            raise ClusterError(f"Ray ended with exit code {code}; see the log")
        message = worker_protocol.decode(line)
        if message["event"] != "connected":
            raise ClusterError(message["reason"][:_SHOWN])

    @property
    def is_up(self) -> bool:
        """False once the process was seen to have ended."""
        return self._process.returncode is None

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Returns the two ends of a new connection for a job; broken where the process is."""
        ours, theirs = socket.socketpair()
        with theirs, suppress(OSError):
            try:
                socket.send_fds(self._control, [b"j"], [theirs.fileno()])
            except ConnectionError:  # it takes no more jobs, and may hang while it leaves
                self.kill()
        return await asyncio.open_connection(sock=ours, limit=worker_protocol.MAX_LINE_BYTES)

    async def close(self) -> None:
        """Ends the process, which gets a moment for that."""
        self._control.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """Kills the process; Ray then ends its actors."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._control.close()
