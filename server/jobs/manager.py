"""Training jobs: who may train, who waits, and what is told to whom.

A job is the server's own from the moment its corpus is whole: it goes on when its client goes
away, when its process dies and when the server starts again. `Job` holds one, `attempt` has one
process train it, and here is decided what becomes of it.

::

    queued ---> running ---> succeeded
      ^  |        |  |-----> failed
      |  v        v  `-----> cancelled      (a queued or paused job may be cancelled, too)
      paused <----+
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from treadle.server.errors import (
    StatusError,
    aborted,
    exhausted,
    from_exception,
    job_not_found,
    precondition,
    unavailable,
)
from treadle.server.failures import DatabaseError, is_full
from treadle.server.jobs.completion import Completion
from treadle.server.jobs.job import (
    CANCELLING,
    PAUSED_ON_REQUEST,
    PAUSING,
    Job,
    outlast,
    queued_event,
)
from treadle.server.jobs.registry import JobRegistry
from treadle.server.jobs.runner import Ending, JobRunner, Outcome, RunLimits
from treadle.server.jobs.worker_pool import WorkerPool
from treadle.server.resources import thread_pools
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_files import STATE_FILE
from treadle.server.storage.job_state import UNFINISHED_STATES, JobState
from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_SPACE_S = 5.0
"""Seconds between two looks for disk space that jobs wait for; a job that soon lacks it again waits
twice as long each time."""
_SPACE_TRIES = 7
"""Times that its waiting doubles, to ten minutes."""

_RETRY_S = 5.0

_BACKOFF_S = 0.1

_ROWS_AT_ONCE = 8
"""Rows read together at the start."""

_ANSWER_S = 0.3
"""How long the answer to a request waits for what it leads to; most jobs are quicker."""


@dataclass(frozen=True)
class JobLimits:
    """How many jobs there may be."""

    slots: int
    """Jobs that may run at once."""
    queue: int
    """Jobs that may wait, those still uploading included."""
    uploads: int
    """Jobs that may upload at once."""
    restarts: int
    """How often in a row a job goes on after its process died without a new checkpoint."""


class JobManager:
    """Every training job of one server.

    Args:
        data_dir: Where jobs and models are kept.
        workers: Who trains.
        room: How many jobs there may be.
        run: What holds for each of them.
        held_by: Says why the server runs no job yet; empty where it does.
    """

    def __init__(
        self,
        data_dir: DataDir,
        workers: WorkerPool,
        room: JobLimits,
        run: RunLimits,
        held_by: Callable[[], str] = lambda: "",
    ) -> None:
        self._data_dir = data_dir
        self._database = data_dir.database
        self._room = room
        self._attempt = JobRunner(data_dir, workers, run)
        self._uploading = 0
        self._comparing = 0
        """Uploads that are only compared with those of jobs that are there."""
        self._open = False
        self._looking: asyncio.Task[None] | None = None
        data_dir.space.reserved = self._reserved
        self._killed = False
        self._held_by = held_by
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._ending: dict[Job, asyncio.Task[None]] = {}
        """Jobs without a process whose end is being noted; they hold no slot."""
        self._endings = Completion(data_dir, lambda: self.closing.done())
        self.closing: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        """Done when no job may come any more; holds what callers are told."""
        self.registry = JobRegistry(data_dir.database, self.closing, self._tasks)
        """What is known of jobs."""
        self._jobs = self.registry.live

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot or for the rest of their corpus."""
        return self._uploading + len(self._waiting())

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place in the queue while a corpus is on its way.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: all are taken; UNAVAILABLE: the server is closing.
        """
        self._check_uploads()
        if self.running + self.queued >= self._room.slots + self._room.queue:
            message = f"the training queue is full: {self.running} running, {self.queued} waiting"
            raise exhausted(message, _RETRY_S)
        self._uploading += 1
        try:
            yield
        finally:
            self._uploading -= 1

    @contextmanager
    def admit_again(self) -> Iterator[None]:
        """Holds a place while the corpus of a job that is there is on its way once more.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: all are taken; UNAVAILABLE: the server is closing.
        """
        self._check_uploads()
        self._comparing += 1
        try:
            yield
        finally:
            self._comparing -= 1

    def _check_uploads(self) -> None:
        if self.closing.done():
            raise self.closing.result()
        count = self._uploading + self._comparing
        if count >= self._room.uploads:
            raise exhausted(f"{count} corpora are on their way; no more fit", _RETRY_S)

    async def explain_wait(self, reason: str) -> None:
        """Tells those who follow the first jobs of the queue why none runs yet.

        Args:
            reason: Why, as a sentence.
        """
        for job in self._waiting()[: self._room.slots]:
            async with job.deciding:
                if job.row.state == JobState.QUEUED:
                    with suppress(OSError):  # a full disk must not keep the server from starting
                        await job.enter(JobState.QUEUED, reason)

    async def submit(self, row: JobRow) -> JobRow:
        """Puts a job into the queue.

        Returns:
            The job, or the earlier one with the same request id; the row's own directory is then
            removed.
        """
        return await outlast(self._submit(row))

    async def _submit(self, row: JobRow) -> JobRow:
        row = replace(row, reason=self._held_by())
        first = queued_event(row.created_s, row.reason).SerializeToString()
        kept = await thread_pools.DATABASE.run(self._database.add_job, row, first)
        if kept.id == row.id:
            self._jobs[row.id] = Job(self._database, kept)
            self._schedule()
        else:
            await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)
        return kept

    async def recover(self) -> None:
        """Takes up the jobs that an earlier server left; before any call comes."""
        for job in await thread_pools.DATABASE.run(self._left_over):
            self._jobs[job.id] = job
            try:
                await self._recover(job)
            except Exception:  # one job must not keep the server from starting
                logger.exception("job %s cannot be taken up as it is; it waits", job.id)
            self._let_go(job)

    async def _recover(self, job: Job) -> None:
        if job.row.state == JobState.RUNNING and await self._endings.completed_before(job):
            return
        if job.cancelling:
            self._end_cancelled(job)
        elif job.row.state == JobState.RUNNING and job.pausing:
            await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
        elif job.row.state == JobState.RUNNING:
            await job.enter(JobState.QUEUED, "the server stopped; the job goes on")

    def open(self) -> None:
        """Begins to run jobs."""
        self._open = True
        self._looking = asyncio.create_task(self._look_for_space())
        self._schedule()

    async def close(self, reason: str) -> None:
        """Makes all running jobs keep their state, to be gone on with by the next server.

        Args:
            reason: Why, as a sentence.
        """
        if not self.closing.done():
            self.closing.set_result(unavailable(reason))
        if self._looking is not None:
            self._looking.cancel()
        self._attempt.leave(list(self._running), reason)
        if tasks := self._tasks():
            await asyncio.wait(tasks)
        for job in self._jobs.values():
            job.tell()

    async def kill(self) -> None:
        """Ends all running processes at once; the next server goes on from their checkpoints."""
        self._killed = True
        for job in self._running:
            if job.worker is not None:
                job.worker.kill()
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def position(self, job: str) -> int:
        """Returns how many jobs are before one in the queue; 0 where it does not wait."""
        return self.positions().get(job, 0)

    def positions(self) -> dict[str, int]:
        """Returns how many jobs are before each one that waits, by their ids."""
        return {job.id: place for place, job in enumerate(self._waiting())}

    async def cancel(self, job: str) -> JobRow:
        """Has a job end for good, keeping what it has learned; nothing where it is over.

        Returns:
            The job, over or on its way there; the latter outlives the server.

        Raises:
            StatusError: NOT_FOUND; RESOURCE_EXHAUSTED: it ends, but the disk is too full to note
                that, and a server that starts before it has ended would continue it.
        """
        if job not in self._jobs:
            return await self.registry.row(job)
        return await outlast(self._cancel(self._jobs[job]))

    async def _cancel(self, job: Job) -> JobRow:
        full = None
        async with self._deciding(job):
            if not job.row.is_final:
                job.cancelling = True
                full = await self._noted(job, CANCELLING)
                if job in self._running:
                    self._attempt.stop(job, "cancelled")
                elif job not in self._ending and not job.row.is_final:  # as it just may be
                    self._end_cancelled(job)
        await self._moment(job)
        if full is not None and not job.row.is_final:
            raise full
        return job.row

    def _end_cancelled(self, job: Job) -> None:
        """Begins to end a cancelled job that does not run."""
        self._ending[job] = asyncio.create_task(self._until_ended(job))

    async def _until_ended(self, job: Job) -> None:
        """Ends a cancelled job that does not run; never raises."""
        await self._guarded(job, self._endings.cancel(job))
        del self._ending[job]
        self._let_go(job)

    async def _noted(self, job: Job, wish: str) -> StatusError | None:
        """Notes a request for the next server; returns what the caller is told if it cannot."""
        try:
            await job.change(reason=wish)
        except OSError as error:
            if not is_full(error):
                raise
            logger.error("job %s: a request cannot be noted: %s", job.id, error)
            return exhausted(
                f"job {job.id} is {wish}, but the disk is too full to note that: free some space, "
                "or a server that starts before it is done continues the job",
                _RETRY_S,
            )
        return None

    async def _moment(self, job: Job) -> None:
        """Waits until a job has neither a process nor an end to note, but not for long."""
        tasks = [*filter(None, (self._running.get(job), self._ending.get(job)))]
        if tasks:
            await asyncio.wait(tasks, timeout=_ANSWER_S)

    def _tasks(self) -> list[asyncio.Task[None]]:
        """Returns the tasks of the jobs that run or whose end is being noted."""
        return [*self._running.values(), *self._ending.values()]

    async def pause(self, job: str) -> JobRow:
        """Has a job wait until it is resumed.

        Returns:
            The job, paused or on its way there; the latter outlives the server.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it is over, or being cancelled;
                RESOURCE_EXHAUSTED: it pauses, but the disk is too full to note that, and a server
                that starts before it has paused would continue it.
        """
        return await outlast(self._pause(await self.registry.find(job, "paused")))

    async def _pause(self, job: Job) -> JobRow:
        full = None
        async with self._deciding(job):
            if job.cancelling and not job.row.is_final:
                raise precondition(f"job {job.id} is being cancelled and cannot be paused")
            if job in self._running:
                self._attempt.pause(job, PAUSED_ON_REQUEST)
                full = await self._noted(job, PAUSING)
            elif job.row.state == JobState.QUEUED or job.row.waits_for_bytes:
                await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
            elif job in self._ending:  # if it is to be queued again, it pauses instead
                job.pausing = job.pausing or PAUSED_ON_REQUEST
        await self._moment(job)
        if job.row.is_final:
            state = job.row.state
            raise precondition(f"job {job.id} is {state}: it ended before it could be paused")
        if full is not None and job.row.state != JobState.PAUSED:
            raise full
        return job.row

    async def resume(self, job: str) -> JobRow:
        """Puts a paused job back into the queue; nothing where it is there or runs.

        A job that is on its way to pause is queued once its process has left it.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it is over, or being cancelled.
        """
        return await outlast(self._resume(await self.registry.find(job, "resumed")))

    async def _look_for_space(self) -> None:
        """Lets jobs go on that paused for want of disk space, as there is space for each."""
        while True:
            await asyncio.sleep(_SPACE_S)
            try:
                await self.resume_for_space()
            except Exception as error:  # a disk that fails now may not the next time
                logger.warning("no job could be resumed for its disk space: %s", error)

    async def resume_for_space(self) -> None:
        """Queues the first job that waits for disk space, if there is as much as it waits for.

        One at a time: each takes of what is free.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        for job in list(self._jobs.values()):
            if not job.row.waits_for_bytes or job.space_try_at > time.monotonic():
                continue
            if not await thread_pools.DATABASE.run(
                self._data_dir.space.has_again, job.row.waits_for_bytes
            ):
                continue
            async with self._deciding(job):
                if job.row.waits_for_bytes and not job.cancelling:  # nobody has decided meanwhile
                    job.space_try_at = time.monotonic() + _SPACE_S * 2**job.space_tries
                    job.space_tries = min(job.space_tries + 1, _SPACE_TRIES)
                    await self._queue_again(job, "there is disk space again")
                    return

    async def _queue_again(self, job: Job, reason: str) -> None:
        """Puts a paused job into the queue, behind those that wait already."""
        await job.enter(JobState.QUEUED, reason, queued_s=job.time_s())
        job.pausing = ""
        self._jobs[job.id] = self._jobs.pop(job.id)

    def _reserved(self) -> int:
        """Returns the bytes that running jobs need to write their next states; from any thread."""
        size = 0
        for job in list(self._running):
            with suppress(OSError):  # it has none yet
                size += (self._data_dir.jobs.root / job.id / STATE_FILE).stat().st_size
        return size

    async def _resume(self, job: Job) -> JobRow:
        async with self._deciding(job):
            if job.cancelling:
                raise precondition(f"job {job.id} is being cancelled and cannot be resumed")
            if job.row.state == JobState.PAUSED:
                await self._queue_again(job, "resumed")
            elif job.pausing:
                await job.change(reason="resumed")
                job.pausing = ""
        return job.row

    async def delete(self, job: str) -> None:
        """Deletes a job that is over or paused, with all that it kept.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it waits or runs.
        """
        await self._cleared(job)
        if job in self._jobs:
            live = self._jobs[job]
            async with self._deciding(live):
                await outlast(self._delete(live.row))
        else:
            await outlast(self._delete(await self.registry.row(job, damaged=True)))

    async def _cleared(self, job: str) -> None:
        """Waits until a job whose end is known has removed what it does not need any more."""
        live = self._jobs.get(job)
        if live is not None and live.row.is_final and live in self._ending:
            await asyncio.wait([self._ending[live]])

    async def _delete(self, row: JobRow) -> None:
        live = self._jobs.get(row.id)
        if live in self._ending:
            raise precondition(f"job {row.id} is about to end: delete it once it has")
        if row.state in (JobState.QUEUED, JobState.RUNNING) and not self.registry.fault(row):
            message = f"job {row.id} is {row.state}: cancel or pause it before you delete it"
            raise precondition(message)
        try:
            await thread_pools.DATABASE.run(self._database.delete_job, row.id)
        except OSError as error:
            if not is_full(error):
                raise
            # First the files, then the row: that makes room for the change.
            await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)
            await thread_pools.DATABASE.run(self._database.delete_job, row.id)
        self._jobs.pop(row.id, None)
        await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)

    @asynccontextmanager
    async def _deciding(self, job: Job) -> AsyncIterator[None]:
        """Lets one caller at a time decide about a job, which is not started meanwhile."""
        try:
            async with job.deciding:
                if job.id not in self._jobs and not job.row.is_final:
                    raise job_not_found(job.id)  # deleted while this one waited
                yield
        finally:
            self._let_go(job)
            self._schedule()

    def _let_go(self, job: Job) -> None:
        """Forgets a job that is over, and wakes all who follow it."""
        if job.row.is_final:
            self._jobs.pop(job.id, None)
        job.tell()

    def _left_over(self) -> list[Job]:
        jobs: list[Job] = []
        after: tuple[float, str] | None = None
        # A few at a time: each may be megabytes as it is stored, and a job keeps little of that.
        while page := self._database.jobs(UNFINISHED_STATES, after=after, limit=_ROWS_AT_ONCE):
            after = page[-1].place
            for row in page:
                if fault := damage(row):  # it stays in the list, and can be deleted
                    logger.error("job %s is not taken up: its record is damaged: %s", row.id, fault)
                else:
                    jobs.append(Job(self._database, row))
        return sorted(jobs, key=lambda job: (job.row.queued_s, job.id))

    def _waiting(self) -> list[Job]:
        busy = self._running.keys() | self._ending.keys()
        jobs = [job for job in self._jobs.values() if job not in busy]
        free = [job for job in jobs if not (job.cancelling or job.deciding.locked())]
        # One whose row says running does not: an earlier server left it so.
        return [job for job in free if job.row.state in (JobState.QUEUED, JobState.RUNNING)]

    def _schedule(self) -> None:
        """Starts jobs, the oldest first, while there are slots."""
        if not self._open or self._killed or self.closing.done():
            return
        for job in self._waiting()[: max(0, self._room.slots - self.running)]:
            self._running[job] = asyncio.create_task(self._run(job))
        self._attempt.share_threads(list(self._running))

    async def _run(self, job: Job) -> None:
        """Does a job until it is over or has to wait; never raises."""
        await self._guarded(job, self._trained(job))
        self._running.pop(job, None)
        self._ending.pop(job, None)
        self._let_go(job)
        self._schedule()

    async def _trained(self, job: Job) -> None:
        try:
            outcome = await self._attempts(job)
        except OSError as error:
            if not is_full(error):
                raise
            outcome = Outcome(Ending.PAUSED, f"the disk is full: {error.strerror}", needs_bytes=1)
        self._free_slot(job)
        await self._endings.settle(job, outcome)
        if job.cancelling and not job.row.is_final:  # just now
            await self._endings.cancel(job)

    def _free_slot(self, job: Job) -> None:
        """Lets the next job run: the end of this one may take long, or wait for disk space."""
        if job in self._running:
            self._ending[job] = self._running.pop(job)
            self._schedule()

    async def _guarded(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        """Awaits what brings a job to its end; where that fails, so does the job."""
        try:
            await work
        except asyncio.CancelledError:
            pass  # the server ends, and the next one goes on
        except (OSError, DatabaseError) as error:
            if self.closing.done():  # its row says running, and the next server goes on
                logger.error("job %s: its end cannot be noted: %s", job.id, error)
            else:
                await self._give_up(job, error)
        except Exception as error:
            await self._give_up(job, error)

    async def _give_up(self, job: Job, error: Exception) -> None:
        """Ends a job that an error of ours keeps from going on; never raises."""
        failure = from_exception(error, f"job {job.id}")
        self._free_slot(job)
        try:
            await self._endings.fail(job, failure)
        except Exception:  # the next server finds it running, and goes on
            logger.exception("job %s: its end cannot be noted", job.id)

    async def _attempts(self, job: Job) -> Outcome:
        """Has processes train a job, one after the other where they die; returns the last one's."""
        reason = ""
        while True:
            await job.enter(JobState.RUNNING, job.wish or reason, **_first_start(job))
            outcome = await self._attempt.run(job)
            if self._killed and outcome.ending is Ending.DIED:
                raise asyncio.CancelledError  # an `outlast` may have taken the first one
            if outcome.ending is not Ending.DIED or job.leaving:
                return outcome
            job.crashes += 1
            if job.crashes > self._room.restarts:
                times = f"{job.crashes} times in a row without a new checkpoint between"
                error = aborted(f"{outcome.reason} ({times})")
                return Outcome(Ending.FAILED, error=error)
            logger.warning("job %s goes on: %s", job.id, outcome.reason)
            await job.change(restarts=job.row.restarts + 1)
            reason = f"{outcome.reason}; the job goes on from its last checkpoint"
            if job.crashes > 1:  # what made it die may pass
                await asyncio.sleep(min(_BACKOFF_S * 2**job.crashes, _RETRY_S))


def _first_start(job: Job) -> dict[str, float]:
    return {} if job.row.started_s else {"started_s": job.time_s()}
