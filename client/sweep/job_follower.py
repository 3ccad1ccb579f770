"""`JobFollower` reads the events of a sweep's jobs in threads, and puts them into one queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from treadle.client.errors import NotFoundError, ServerError
from treadle.client.replicas.retry import FIRST_PAUSE_S, Retry, ignore
from treadle.v1.sequence_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    Job,
    JobEvent,
)

if TYPE_CHECKING:
    from treadle.client.training_run import TrainingRun

_FINAL = (JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED)

_AGAIN_S = 1.0
"""Seconds before a job that sends no events, such as a paused one, is looked at again."""

_TRIES = 20
"""How often the last events of a job that has ended are read, which a server with a damaged disk
may lack."""

_MISSING_TRIES = 3
"""How often a server has to say that there is no such job, one second after the other."""

_READERS = 4
"""How many jobs that have ended are read at the same time."""

Result = TypeVar("Result")


class Watcher(Protocol):
    """The part of a `Client` that follows jobs."""

    def watch(
        self, job: str, after: int = 0, *, reconnect_s: float = 0.0, timeout_s: float | None = None
    ) -> TrainingRun:
        """Follows a job."""

    def get_job(self, job: str) -> Job:
        """Describes a job."""


class Break(NamedTuple):
    """A connection that was lost, and is tried again."""

    reason: ServerError


class Update(NamedTuple):
    """What a follower has learned about the job of a trial."""

    trial: int
    """The number of the trial."""
    job: str
    news: JobEvent | Job | Break | Exception
    """An event; the job itself, when it has ended or sends no events; a broken connection; or why
    it is followed no more, a `NotFoundError` if it was deleted."""


class JobFollower:
    """Follows jobs until they end, also across lost connections.

    Args:
        client: The connection.
        reconnect_s: How long to try to reconnect, in seconds.
    """

    def __init__(self, client: Watcher, reconnect_s: float) -> None:
        self._client = client
        self._reconnect_s = reconnect_s
        self._closing = threading.Event()
        self._has_answered = False
        """Whether the server has answered a call."""
        self._readers = ThreadPoolExecutor(_READERS, "sweep-reader")
        self.updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        """What was learned, in the order in which it arrived."""

    def follow(self, trial: int, job: str, *, is_over: bool = False) -> None:
        """Begins to follow a job, from its first event on.

        Args:
            trial: The number of its trial.
            job: Its id.
            is_over: Whether it has ended, so that its events need not be waited for.
        """
        if is_over:
            self._readers.submit(self._follow, trial, job)
        else:
            threading.Thread(
                target=self._follow, args=(trial, job), name=f"sweep-{trial}", daemon=True
            ).start()

    def close(self) -> None:
        """Stops following; the jobs continue."""
        self._closing.set()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def patiently(
        self,
        call: Callable[[], Result],
        on_break: Callable[[ServerError], None] = ignore,
        *,
        unless: tuple[type[ServerError], ...] = (),
    ) -> Result:
        """Makes a call, and again while the server cannot be reached or says to come again.

        Nothing waits for a server that was not there in the beginning.

        Args:
            call: Makes the call; making it twice must do no harm.
            on_break: Called once with the error of a broken connection, or of a full server.
            unless: Errors that are raised at once.

        Returns:
            What it returned.

        Raises:
            ServerError: It failed, or the server could not be reached, or was full, for too long.
        """
        retry = self._new_retry(on_break)
        while True:
            try:
                result = call()
            except ServerError as error:
                is_absent = error.unsent and not self._has_answered
                if is_absent or isinstance(error, unless) or not retry.wait(error):
                    raise
            else:
                self._has_answered = True
                return result

    def _new_retry(self, on_break: Callable[[ServerError], None]) -> Retry:
        return Retry(self._reconnect_s, on_break, heeds_full=True, stopped=self._closing)

    def _follow(self, trial: int, job: str) -> None:
        """Puts what happens to a job into the queue, at last why it is followed no more."""
        try:
            self._read(trial, job)
        except Exception as error:  # also what gRPC raises where the client is closed
            self.updates.put(Update(trial, job, error))

    def _read(self, trial: int, job: str) -> None:
        """Puts every event of a job into the queue once, and at last the job itself.

        Raises:
            NotFoundError: There is no such job.
            ServerError: The server could not be reached, or was full, for too long.
        """

        def say_break(error: ServerError) -> None:
            self.updates.put(Update(trial, job, Break(error)))

        after = 0
        tries = 0
        missing = 0
        retry = self._new_retry(say_break)
        while not self._closing.is_set():
            before = after
            try:
                after, refusal = self._watch(trial, job, before)
                found = self.patiently(lambda: self._client.get_job(job), say_break)
            except NotFoundError:
                # Of several servers one may not know yet what another one has accepted.
                missing += 1
                if missing == _MISSING_TRIES:
                    raise
                self._closing.wait(_AGAIN_S)
                continue
            missing = 0
            if after > before:
                tries = 0
                retry.succeeded()
            if found.state not in _FINAL:
                self.updates.put(Update(trial, job, found))
                self._closing.wait(_AGAIN_S)
            elif found.last_sequence <= after or tries == _TRIES:
                self.updates.put(Update(trial, job, found))
                return
            elif refusal is not None:  # without its last events a trial has another result
                retry.wait(refusal)
            else:
                tries += 1
                self._closing.wait(FIRST_PAUSE_S)

    def _watch(self, trial: int, job: str, after: int) -> tuple[int, ServerError | None]:
        """Reads the events of a job until the call ends.

        Returns:
            The number of the last event, and the error of a broken connection or of a full server.
        """
        run = self._client.watch(job, after, reconnect_s=0.0)
        refusal = None
        try:
            with run:
                for event in run:
                    self.updates.put(Update(trial, job, event))
                    if self._closing.is_set():
                        break
        except NotFoundError:
            raise
        except ServerError as error:  # the job says how it ended, or it is watched again
            if error.broken or error.retry_delay_s is not None:
                refusal = error
        return run.last_sequence, refusal
