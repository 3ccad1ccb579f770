"""Training jobs: who may train, who waits, and what is told to whom.

A job is a task of the server's own, not of the call that started it: it goes on when its
client goes away. Its newest events are kept, so that any number of calls can follow it from any
event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from treadle.model.config import TrainConfig
from treadle.server import records, wire
from treadle.server.convert import spec_field
from treadle.server.errors import StatusError, exhausted, from_exception, unavailable
from treadle.server.store import MODEL_FILE, Store
from treadle.server.workers import Worker, Workers
from treadle.v1 import sequence_pb2 as pb

logger = logging.getLogger(__name__)

_RETRY_S = 5.0

KEPT_PROGRESS = 1000
"""Progress events of a run that are kept; a follower that is behind misses older ones."""

Result = TypeVar("Result")


class Job:
    """One training run.

    Args:
        name: What the model is to be called.
        config: Its settings.
        corpus: The file to train on.
    """

    def __init__(self, name: str, config: TrainConfig, corpus: Path) -> None:
        self.name = name
        self.config = config
        self.corpus = corpus
        self.worker: Worker | None = None
        self._last = 0
        self._events: dict[int, pb.TrainResponse] = {}
        self._progress: deque[int] = deque()
        """The numbers of the progress events kept: no gap between them and the last event."""
        self._failure: StatusError | None = None
        self._over = False
        self._news = asyncio.Event()

    async def watch(self, after: int = 0) -> AsyncIterator[pb.TrainResponse]:
        """Yields the events, old ones first, until the job is over.

        Of the progress events only the last KEPT_PROGRESS are there: who is behind misses some,
        and sees so by their sequence numbers.

        Args:
            after: Sequence number of the last event already known.

        Raises:
            StatusError: What the job failed with, after its last event.
        """
        while event := await self._next(after):
            yield event
            after = event.sequence
        if self._failure is not None:
            raise self._failure

    async def _next(self, after: int) -> pb.TrainResponse | None:
        """Returns the event that follows number `after`; None where the job ended with it."""
        while not self._over and self._last <= after:
            await self._news.wait()
        if self._last <= after:
            return None
        return self._events.get(after + 1) or self._events[self._progress[0]]

    def publish(self, event: pb.TrainResponse) -> None:
        """Numbers and dates an event and tells it to everybody who watches."""
        self._last += 1
        event.sequence = self._last
        event.event_time.GetCurrentTime()
        self._events[self._last] = event
        if event.HasField("progress"):
            self._progress.append(self._last)
            if len(self._progress) > KEPT_PROGRESS:
                del self._events[self._progress.popleft()]
        self._tell()

    def finish(self, failure: StatusError | None = None) -> None:
        """Ends the job for everybody who watches."""
        self._failure = failure
        self._over = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Place:
    """A right to train, held from the spec on until the job is over."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.release = release
        self.taken = False


class JobRoom:
    """Every training job of one server.

    Args:
        store: Where models go.
        workers: Who trains them.
        slots: Jobs that may run at once.
        queue_limit: Jobs that may wait, those still uploading included.
        threads: Threads of one job.
        max_run_s: Seconds after which a run is stopped; its model is stored. 0: never.
        max_run_bytes: The most memory that a run's arrays may take; None: whatever there is.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        *,
        slots: int,
        queue_limit: int,
        threads: int,
        max_run_s: float = 0.0,
        max_run_bytes: int | None = None,
    ) -> None:
        self._store = store
        self._workers = workers
        self._limit = slots + queue_limit
        self._threads = threads
        self._max_run_s = max_run_s
        self._max_run_bytes = max_run_bytes
        self._slots = asyncio.Semaphore(slots)  # first come, first served
        self._admitted = 0
        self._running: set[Job] = set()
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._stop_reason = ""
        self._kill_reason = ""
        self.closing: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        """Done when no job may come any more; holds what callers are told."""

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot or for the rest of their corpus."""
        return self._admitted - self.running

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Gives a place, and takes it back at the end unless a job took it over.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: all are taken; UNAVAILABLE: the server is closing.
        """
        if self.closing.done():
            raise self.closing.result()
        if self._admitted >= self._limit:
            message = f"the training queue is full: {self.running} running, {self.queued} waiting"
            raise exhausted(message, _RETRY_S)
        self._admitted += 1
        place = Place(self._release)
        try:
            yield place
        finally:
            if not place.taken:
                place.release()

    def start(self, place: Place, job: Job) -> None:
        """Begins a job, which takes over the place and the corpus file.

        Raises:
            StatusError: UNAVAILABLE: the server is closing.
        """
        if self.closing.done():
            raise self.closing.result()
        place.taken = True
        self._tasks[job] = asyncio.create_task(self._run(job, place))

    async def close(self, reason: str) -> None:
        """Ends all jobs: running ones keep what they learnt, waiting ones fail.

        Args:
            reason: Why, as a sentence; it ends up in the models' records.
        """
        self._stop_reason = reason
        self._kill_reason = f"{reason}; nothing was trained"
        if not self.closing.done():
            self.closing.set_result(unavailable(self._kill_reason))
        await asyncio.sleep(0)  # a task cancelled before its first step would not clean up
        for job, task in self._tasks.items():
            if job.worker is not None:
                job.worker.send({"stop": reason})
            elif job not in self._running:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def kill(self, reason: str) -> None:
        """Ends all jobs at once; what they learnt is lost.

        Args:
            reason: What their clients are told.
        """
        self._kill_reason = reason
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _release(self) -> None:
        self._admitted -= 1

    async def _run(self, job: Job, place: Place) -> None:
        """Does a job from the queue to its end; never raises."""
        failure: StatusError | None = None
        try:
            async with self._slots:
                self._running.add(job)
                try:
                    await self._train(job)
                finally:
                    self._running.discard(job)
        except asyncio.CancelledError:
            failure = unavailable(self._kill_reason)
        except Exception as error:
            failure = from_exception(error, f"training {job.name}", "corpus_chunk", spec_field)
        finally:
            if failure is not None:
                logger.info("training %s ended without a model: %s", job.name, failure)
            place.release()
            try:
                await _outlast(asyncio.to_thread(self._store.discard, job.corpus))
            finally:
                del self._tasks[job]
                job.finish(failure)

    async def _train(self, job: Job) -> None:
        draft = await asyncio.to_thread(self._store.new_draft)
        began = time.monotonic()
        try:
            job.worker = await self._workers.take()
            try:
                await self._follow(job, job.worker, draft / MODEL_FILE)
            except BaseException:
                await self._workers.dismiss(job.worker)  # it may still be writing
                raise
            self._workers.dismiss(job.worker)
            # What is learnt is not thrown away for an end that comes a moment too early.
            model = await _outlast(self._claim(job, draft))
        finally:
            await _outlast(asyncio.to_thread(self._store.discard, draft))
        taken = time.monotonic() - began
        logger.info("trained %s version %d in %.1f s", model.name, model.version, taken)

    async def _follow(self, job: Job, worker: Worker, path: Path) -> None:
        """Gives the job to the worker and passes on what it says, until the model is saved."""
        order = {
            "corpus": str(job.corpus),
            "model": str(path),
            "config": job.config.to_json(),
            "threads": self._threads,
            "memory_limit_bytes": self._max_run_bytes,
        }
        worker.send({"job": order})
        if self._stop_reason:
            worker.send({"stop": self._stop_reason})
        with self._limited(worker):
            await self._listen(job, worker)

    @contextmanager
    def _limited(self, worker: Worker) -> Iterator[None]:
        """Tells a worker to stop once it ran for as long as it may."""
        if not self._max_run_s:
            yield
            return
        stop = {"stop": self._limit_reason}
        timer = asyncio.get_running_loop().call_later(self._max_run_s, worker.send, stop)
        try:
            yield
        finally:
            timer.cancel()

    @property
    def _limit_reason(self) -> str:
        unit = "second" if self._max_run_s == 1 else "seconds"
        return f"the server ends a run after {self._max_run_s:,.15g} {unit}, and did so"

    async def _listen(self, job: Job, worker: Worker) -> None:
        while True:
            message = await worker.receive()
            match message.pop("event"):
                case "started":
                    job.publish(pb.TrainResponse(started=records.started(job.name, message)))
                case "progress":
                    job.publish(pb.TrainResponse(progress=records.progress(message)))
                case "saved":
                    return
                case "stopped":
                    raise self._stopped(message["reason"])
                case "failed":
                    raise wire.unpack_error(message["error"])

    def _stopped(self, reason: str) -> StatusError:
        """Returns what ends a run that was stopped before its first step."""
        message = f"{reason}; nothing was trained"
        if reason == self._limit_reason:
            return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, message)
        return unavailable(message)

    async def _claim(self, job: Job, draft: Path) -> pb.Model:
        """Stores the model in a draft and tells everybody."""
        model = await asyncio.to_thread(self._stored, job, draft)
        job.publish(pb.TrainResponse(completed=model))
        return model

    def _stored(self, job: Job, draft: Path) -> pb.Model:
        stored = self._store.claim(job.name, draft)
        return records.model(stored, self._store.describe(stored))


async def _outlast(work: Coroutine[Any, Any, Result]) -> Result:
    """Does a short piece of work to its end, even where the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
