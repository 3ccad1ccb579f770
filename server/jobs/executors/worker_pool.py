"""`WorkerPool` runs jobs on this machine: it keeps processes ready; `LocalWorker` is one of them.

A process trains one model and ends. It is a new Python and not a fork, since gRPC and thread pools
break in forked children. Imports and loading kernels take most of a second, so some processes
stand by that have done both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context

from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.executor import STOP_TIMEOUT_S, JobNeeds, OnWait, Worker
from treadle.server.resources import process_memory, process_status

logger = logging.getLogger(__name__)

_REFILL_DELAY_S = 1.0
"""Seconds after the start of a job before the next process starts, so that both do not compete."""


_END_S = 2.0
"""Seconds that a process may take to end after the end of its input; then it is killed."""

_LOOK_S = 0.5
"""Seconds between two checks of a process."""


class LocalWorker:
    """One training process."""

    def __init__(self, process: asyncio.subprocess.Process, has_ranks: bool = False) -> None:
        self._process = process
        self._has_ranks = has_ranks
        self._kill_reason = ""
        self._listening = False
        self._silent_s = 0.0
        self._asked_s: float | None = None
        self._busy_s = 0.0
        self._kills_before = process_status.kills_for_memory()
        self.took_too_much = False
        """Whether it was killed for taking too much memory."""
        self.starved = False
        """Whether Linux killed it for lack of memory, by its own fault or another process'."""
        self.lost = False
        """Never: the server would have ended with its machine."""

    @classmethod
    async def start(
        cls, warm: bool, mpirun: Sequence[str] = (), log: int | None = None
    ) -> LocalWorker:
        """Starts a process, which reports when it is ready.

        Args:
            warm: Whether it loads every kernel first. Otherwise it loads only those that its job
                needs, which is quicker where a job waits already.
            mpirun: The command that starts it together with others; empty: it is alone.
            log: Where it writes its log, as a file descriptor or `PIPE`; None: where this process
                writes its own.

        Returns:
            The process.
        """
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        python = (sys.executable, "-P", "-m")  # the working directory is no place to import from
        process = await asyncio.create_subprocess_exec(
            *([*python, "treadle.server.jobs.executors.bound_command", *mpirun] if mpirun else []),
            *python,
            "treadle.server.jobs.worker",
            *(["--ranks"] if mpirun else []),
            *(["--warm"] if warm else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=worker_protocol.MAX_LINE_BYTES,
            env=environment,
        )
        return cls(process, bool(mpirun))

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    @property
    def log(self) -> asyncio.StreamReader | None:
        """What it writes to its log, where `start` made a pipe for that."""
        return self._process.stderr

    @property
    def alive(self) -> bool:
        """False once the process was seen to have ended."""
        return self._process.returncode is None

    def send(self, message: worker_protocol.Message) -> None:
        """Sends a message; one to a process that ended is lost without an error."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            self._process.stdin.write(worker_protocol.encode(message))

    def ask_to_leave(self, message: worker_protocol.Message) -> None:
        """Sends a request to end, which the process must follow in time; see `supervise`."""
        self.send(message)
        if self._asked_s is None:
            self._asked_s = 0.0

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        """Kills the process once it hangs or takes too much memory; returns when it has ended.

        A process hangs where it has not ended `timeout_s` after a request to end, or has neither
        sent a message nor used the processor for so long. Time in which this server stood still
        does not count.

        Args:
            timeout_s: Seconds that either may last.
            limit_bytes: The most memory that its job may take; None: no limit.
        """
        before = time.monotonic()
        while self.alive:
            await asyncio.sleep(min(_LOOK_S, timeout_s / 4))
            if limit_bytes is not None:
                # Of several processes, each has the limit to itself: they are for several machines.
                taken = max(map(process_status.own_bytes, self._family()))
                if taken > process_memory.most_bytes(limit_bytes):
                    self.took_too_much = True
                    self.kill(f"took {taken:,} bytes of memory and was killed")
                    return
            now = time.monotonic()
            passed = min(now - before, 2 * _LOOK_S)
            before = now
            if self._asked_s is not None:
                self._asked_s += passed
                if self._asked_s >= timeout_s:
                    self.kill(f"did not stop within {timeout_s:g} seconds and was killed")
                    return
            busy_s = sum(map(process_status.processor_seconds, self._family()))
            quiet = self._listening and busy_s == self._busy_s
            self._busy_s = busy_s
            self._silent_s = self._silent_s + passed if quiet else 0.0
            if self._silent_s >= timeout_s:
                self.kill(f"gave no sign of life for {timeout_s:g} seconds and was killed")
                return

    def kill(self, why: str = "was killed") -> None:
        """Kills the process.

        Args:
            why: The reason, which follows "the training process" in messages.
        """
        self._kill_reason = self._kill_reason or why
        others = self._family()[1:]
        with suppress(ProcessLookupError):
            self._process.kill()
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _family(self) -> list[int]:
        """Returns the process and, where mpirun has started several, those on this machine."""
        return process_status.with_descendants(self.pid) if self._has_ranks else [self.pid]

    async def receive(self) -> worker_protocol.Message:
        """Returns the next message of the process.

        Raises:
            StatusError: ABORTED: the process ended instead.
            ValueError: What it sent is no message.
        """
        assert self._process.stdout is not None
        while True:
            self._listening = True
            line = await self._process.stdout.readline()
            self._listening = False
            self._silent_s = 0.0
            if not line:
                raise await self._death()
            try:
                message = worker_protocol.decode(line)
            except ValueError:
                if not self._has_ranks:
                    raise
                # mpirun says there, too, why it ends.
                logger.warning("mpirun: %s", line.decode("utf-8", "replace").strip())
                continue
            if message["event"] != "alive":
                return message

    async def _death(self) -> StatusError:
        code = await self._process.wait()
        if self._kill_reason:
            return aborted(f"the training process {self._kill_reason}")
        if code >= 0:
            return aborted(
                f"the training process ended with exit code {code}; see the server's log"
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        killed = process_status.kills_for_memory() > self._kills_before
        self.starved = killed and -code == signal.SIGKILL
        hint = ", for lack of memory" if self.starved else ""
        return aborted(f"the training process was killed by signal {-code} ({name}){hint}")

    async def end(self) -> None:
        """Ends the process, which gets a moment to clean up, and waits until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()


class WorkerPool:
    """Provides training processes and keeps some ready.

    Args:
        standby: How many to keep ready.
        mpirun: The command that starts the processes of a job with several nodes; empty: none does.
    """

    shares_threads = True

    def __init__(self, standby: int, mpirun: str = "") -> None:
        self._standby = standby
        self._mpirun = shlex.split(mpirun)
        self._starting: list[asyncio.Task[Worker]] = []
        """Processes on standby, ready or starting."""
        self._all: set[Worker] = set()
        self._dismissed: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._refilling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Does nothing: this machine is there."""

    @property
    def count(self) -> int:
        """How many processes there are, those that stand by or are about to end included."""
        return len(self._all) + len(self._dismissed)

    async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
        """Returns a process that is ready for a job; `dismiss` it in the end.

        Args:
            needs: What the job needs; it gets a share of the threads later.
            on_wait: Not called.

        Raises:
            StatusError: ABORTED: a new process did not get ready.
            OSError: None could be started.
        """
        if needs.nodes > 1 and self._mpirun:
            return await self._start(warm=False, nodes=needs.nodes)
        if needs.nodes > 1:  # it was accepted by an earlier server
            logger.warning("job %s runs on one node: --mpirun is not given", needs.job)
        while self._starting:
            with suppress(StatusError, OSError):  # the log has it; another process is started below
                worker = await self._starting.pop(0)
                if worker.alive:
                    self.refill(_REFILL_DELAY_S)
                    return worker
                self.dismiss(worker)
        worker = await self._start(warm=False)
        self.refill(_REFILL_DELAY_S)
        return worker

    def keep(self, taking: asyncio.Task[Worker]) -> None:
        """Puts a process on standby that `take` was to return and that is not needed any more.

        Args:
            taking: The task of `take`.
        """
        taking.add_done_callback(_log_failure)
        self._starting.insert(0, taking)

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        """Begins to end a process; the task is done when it is gone."""
        self._all.discard(worker)
        self._dismissed.add(worker)
        ending = asyncio.create_task(self._end(worker))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def _end(self, worker: Worker) -> None:
        try:
            await worker.end()
        finally:
            self._dismissed.discard(worker)

    def refill(self, delay_s: float = 0.0) -> None:
        """Starts processes in the background until enough are on standby.

        Args:
            delay_s: Seconds to wait before that.
        """
        if self._refilling is None or self._refilling.done():
            # In a context of its own: it is not part of the call that happens to need a process.
            self._refilling = asyncio.create_task(self._refill(delay_s), context=Context())

    def kill(self) -> None:
        """Kills every process that is left; those who wait for one get an error."""
        for worker in self._all | self._dismissed:
            worker.kill()

    async def close(self) -> None:
        """Ends every process."""
        tasks = [*self._starting, *filter(None, [self._refilling])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for worker in list(self._all):
            self.dismiss(worker)
        if self._ending:
            await asyncio.wait(self._ending)

    async def _refill(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while len(self._starting) < self._standby:
            starting = asyncio.create_task(self._start(warm=True))
            starting.add_done_callback(_log_failure)
            self._starting.append(starting)

    async def _start(self, warm: bool, nodes: int = 1) -> Worker:
        mpirun = [*self._mpirun, "-n", str(nodes)] if nodes > 1 else []
        worker = await LocalWorker.start(warm, mpirun)
        self._all.add(worker)
        looking = asyncio.create_task(worker.supervise(STOP_TIMEOUT_S))
        try:
            await worker.receive()  # it is ready
        except BaseException:
            await self.dismiss(worker)
            raise
        finally:
            looking.cancel()
        return worker


def _log_failure(starting: asyncio.Task[Worker]) -> None:
    """Logs why no process became ready; the next job tries again."""
    if not starting.cancelled() and starting.exception() is not None:
        logger.error("no training process is on standby: %s", starting.exception())
