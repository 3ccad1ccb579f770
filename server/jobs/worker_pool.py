"""The server's side of its training processes: starting, talking, and having one ready.

One process trains one model and ends. It is a new Python, never a fork: gRPC and thread pools
break in forked children. Importing and loading kernels takes most of a second, so one process
is kept standing by that has done so already.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress

from treadle.server.errors import StatusError, aborted
from treadle.server.jobs import worker_protocol
from treadle.server.resources import process_memory, process_status

logger = logging.getLogger(__name__)

_REFILL_DELAY_S = 1.0
"""A job gets the processors to itself this long before the next worker starts up."""


_TIDY_S = 2.0
"""How long a process may take to end after the end of its input; then it is killed."""

STOP_TIMEOUT_S = 30.0
"""How long a process may leave a request, or the server, without an answer; then it is killed."""

_LOOK_S = 0.5
"""How often somebody looks after a process; a server that stood still itself counts one look."""


class Worker:
    """One training process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._death_words = ""
        self._listening = False
        self._silent_s = 0.0
        self._asked_s: float | None = None
        self._busy_s = 0.0
        self._kills_before = process_status.kills_for_memory()
        self.took_too_much = False
        """Whether it was killed for the memory that it took."""
        self.starved = False
        """Whether the kernel killed it for want of memory, its own or somebody else's."""

    @classmethod
    async def start(cls, warm: bool) -> Worker:
        """Starts a process; it says by itself when it is ready.

        Args:
            warm: Whether it loads every kernel first; otherwise only those that its job needs,
                which takes less time where a job is waiting already.

        Returns:
            The process.
        """
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working directory is no place to import from
            "-m",
            "treadle.server.jobs.worker",
            *(["--warm"] if warm else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=worker_protocol.MAX_LINE_BYTES,
            env=environment,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

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
        """Sends a message that the process must follow by its end; see `supervise`."""
        self.send(message)
        if self._asked_s is None:
            self._asked_s = 0.0

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        """Kills the process once it is out of control; ends with it.

        That is where it has not ended `timeout_s` after it was asked to, or has given no sign of
        life for so long: has neither said a word nor used the processor. Time in which this
        server stood still does not count.

        Args:
            timeout_s: How long either may last.
            limit_bytes: What its job may take in memory; it is killed where that is too little.
        """
        before = time.monotonic()
        while self.alive:
            await asyncio.sleep(min(_LOOK_S, timeout_s / 4))
            if limit_bytes is not None:
                taken = process_status.own_bytes(self.pid)
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
            busy_s = process_status.processor_seconds(self.pid)
            quiet = self._listening and busy_s == self._busy_s
            self._busy_s = busy_s
            self._silent_s = self._silent_s + passed if quiet else 0.0
            if self._silent_s >= timeout_s:
                self.kill(f"gave no sign of life for {timeout_s:g} seconds and was killed")
                return

    def kill(self, why: str = "was killed") -> None:
        """Kills the process.

        Args:
            why: What is said of it from now on, to be read behind "the training process".
        """
        self._death_words = self._death_words or why
        with suppress(ProcessLookupError):
            self._process.kill()

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
            self._listening, self._silent_s = False, 0.0
            if not line:
                raise await self._death()
            message = worker_protocol.decode(line)
            if message["event"] != "alive":
                return message

    async def _death(self) -> StatusError:
        code = await self._process.wait()
        if self._death_words:
            return aborted(f"the training process {self._death_words}")
        if code >= 0:
            return aborted(
                f"the training process ended with exit code {code}; see the server's log"
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        killed = process_status.kills_for_memory() > self._kills_before
        self.starved = killed and -code == signal.SIGKILL
        hint = ", for want of memory" if self.starved else ""
        return aborted(f"the training process was killed by signal {-code} ({name}){hint}")

    async def end(self) -> None:
        """Ends the process and waits until it is gone; it gets a moment to tidy up."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _TIDY_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()


class WorkerPool:
    """Gives out training processes and keeps some standing by.

    Args:
        standby: How many to keep ready.
    """

    def __init__(self, standby: int) -> None:
        self._standby = standby
        self._starting: list[asyncio.Task[Worker]] = []
        """Processes standing by, ready or on their way."""
        self._all: set[Worker] = set()
        self._dismissed: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._refilling: asyncio.Task[None] | None = None

    async def take(self) -> Worker:
        """Returns a process that is ready for a job; `dismiss` it in the end.

        Raises:
            StatusError: ABORTED: a new process did not get ready.
        """
        while self._starting:
            with suppress(StatusError, OSError):  # it is in the log; another one is started below
                worker = await self._starting.pop(0)
                if worker.alive:
                    self.refill(_REFILL_DELAY_S)
                    return worker
                self.dismiss(worker)
        worker = await self._start(warm=False)
        self.refill(_REFILL_DELAY_S)
        return worker

    def keep(self, taking: asyncio.Task[Worker]) -> None:
        """Has a process stand by that `take` is still to give, and that nobody needs any more."""
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
        """Starts processes in the background until enough are standing by."""
        if self._refilling is None or self._refilling.done():
            self._refilling = asyncio.create_task(self._refill(delay_s))

    def kill(self) -> None:
        """Kills every process that is still there; those who wait for one learn so."""
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

    async def _start(self, warm: bool) -> Worker:
        worker = await Worker.start(warm)
        self._all.add(worker)
        looking = asyncio.create_task(worker.supervise(STOP_TIMEOUT_S))
        try:
            await worker.receive()  # it says that it is ready
        except BaseException:
            await self.dismiss(worker)
            raise
        finally:
            looking.cancel()
        return worker


def _log_failure(starting: asyncio.Task[Worker]) -> None:
    """Logs why no process could be made ready; it is tried again with the next job."""
    if not starting.cancelled() and starting.exception() is not None:
        logger.error("no training process is standing by: %s", starting.exception())
