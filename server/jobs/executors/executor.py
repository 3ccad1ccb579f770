"""`Executor` is what gives workers to jobs; `Worker` is the process that trains one of them.

`WorkerPool` runs the processes on this machine. Others may run them elsewhere: all that a job reads
and writes is in its own directory and among the corpora, and a worker has brought its files back to
the directory before it reports them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from treadle.server.jobs import worker_protocol

STOP_TIMEOUT_S = 30.0
"""Seconds that a process may take to follow a request or to respond; then it is killed."""

OnWait = Callable[[str], Awaitable[None]]
"""Gets the reason why a job that may run has no process yet."""


@dataclass(frozen=True)
class JobNeeds:
    """What a job needs of the machine that runs its process."""

    job: str
    """The job's id."""
    fence: int
    """The number of its holder, where several servers share their jobs; else 0."""
    threads: int
    """Threads that it uses."""
    memory_bytes: int | None
    """The most memory that it takes; None: nobody knows."""
    nodes: int = 1
    """Processes that share it, each with so many threads."""


class Worker(Protocol):
    """The process that trains one job."""

    took_too_much: bool
    """Whether it was killed for taking too much memory."""
    starved: bool
    """Whether it was killed for lack of memory, by its own fault or another process'."""
    lost: bool
    """Whether it ended with the machine that it was on, and so by no fault of the job."""

    @property
    def pid(self) -> int:
        """The process' id; 0 where it is on another machine."""
        ...

    @property
    def alive(self) -> bool:
        """False once the process was seen to have ended."""
        ...

    def send(self, message: worker_protocol.Message) -> None:
        """Sends a message; one to a process that ended is lost without an error."""

    def ask_to_leave(self, message: worker_protocol.Message) -> None:
        """Sends a request to end, which the process must follow in time; see `supervise`."""

    async def receive(self) -> worker_protocol.Message:
        """Returns the next message of the process.

        Raises:
            StatusError: ABORTED: the process ended instead.
            ValueError: What it sent is no message.
        """
        ...

    async def supervise(self, timeout_s: float, limit_bytes: int | None = None) -> None:
        """Kills the process once it hangs or takes too much memory; returns when it has ended.

        Args:
            timeout_s: Seconds for which it may neither respond nor follow a request to end.
            limit_bytes: The most memory that its job may take; None: no limit.
        """

    def kill(self, why: str = "was killed") -> None:
        """Kills the process.

        Args:
            why: The reason, which follows "the training process" in messages.
        """

    async def end(self) -> None:
        """Ends the process, which gets a moment to clean up, and waits until it is gone."""


class Executor(Protocol):
    """Gives workers to jobs, and ends them."""

    shares_threads: bool
    """Whether all workers are on one machine, so that running jobs share its threads."""

    async def start(self) -> None:
        """Gets ready to give workers.

        Raises:
            SettingError: A setting of the executor cannot be used.
        """

    @property
    def count(self) -> int:
        """How many workers there are, those that stand by or are about to end included."""
        ...

    async def take(self, needs: JobNeeds, on_wait: OnWait) -> Worker:
        """Returns a worker that is ready for a job; `dismiss` it in the end.

        Args:
            needs: What the job needs.
            on_wait: Gets the reason where this takes longer than usual.

        Raises:
            StatusError: ABORTED: a new process did not get ready.
            OSError: None could be started.
        """
        ...

    def keep(self, taking: asyncio.Task[Worker]) -> None:
        """Takes back a worker that `take` was to return and that is not needed any more.

        Args:
            taking: The task of `take`.
        """

    def dismiss(self, worker: Worker) -> asyncio.Task[None]:
        """Begins to end a worker; the task is done when it is gone."""
        ...

    def refill(self, delay_s: float = 0.0) -> None:
        """Gets workers ready in the background, where this executor keeps any ready.

        Args:
            delay_s: Seconds to wait before that.
        """

    def kill(self) -> None:
        """Kills every worker that is left; those who wait for one get an error."""

    async def close(self) -> None:
        """Ends every worker."""
