"""`JobManager` keeps the training jobs of one server, from the queue to their end.

A job is owned by the server once its corpus is complete. It continues when its client leaves, when
its process dies and when the server starts again. `Job` is one job, `JobQueue` says which one runs
next, `JobRunner` has processes train it, and `Completion` records its end. `JobDecisions` decides
what callers ask of it: to cancel, pause, resume or delete it.

Where several servers share a database, a job belongs to the server that has its lease, and only to
that. `LeaseKeeper` takes a job where a slot is free or a request is to be decided. The server gives
it back once it neither runs nor ends: the queue is the database then.

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
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import set_request_id
from treadle.server.errors import StatusError, from_exception, precondition, unavailable
from treadle.server.failures import (
    DatabaseError,
    DatabaseUnavailableError,
    LostLeaseError,
    is_full,
)
from treadle.server.jobs.completion import Completion
from treadle.server.jobs.job import PAUSED_ON_REQUEST, Job, outlast, queued_event
from treadle.server.jobs.job_decisions import JobDecisions
from treadle.server.jobs.job_queue import JobLimits, JobQueue
from treadle.server.jobs.leases.remote_news import RemoteNews
from treadle.server.jobs.registry import JobRegistry
from treadle.server.jobs.runner import Ending, JobRunner, Outcome
from treadle.server.resources import thread_pools
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_files import STATE_FILE
from treadle.server.storage.job_state import UNFINISHED_STATES, JobState

if TYPE_CHECKING:
    from treadle.server.jobs.executors.executor import Executor
    from treadle.server.jobs.job_blobs import JobBlobs
    from treadle.server.jobs.leases.backlog import StoredBacklog
    from treadle.server.jobs.leases.lease_keeper import Replica
    from treadle.server.jobs.leases.replica_jobs import ReplicaJobs
    from treadle.server.jobs.worker_request import RunLimits
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_SPACE_S = 5.0
"""Seconds between two checks for the disk space that jobs wait for. The wait of a job doubles each
time it lacks space again (exponential backoff)."""
_SPACE_TRIES = 7
"""How often the wait doubles, to ten minutes."""

_ROWS_AT_ONCE = 8
"""Rows that are read together at the start."""


class JobManager:
    """Every training job of one server.

    Args:
        data_dir: Where jobs and models are kept.
        workers: Gives the processes that train.
        limits: How many jobs there may be.
        run_limits: The limits of each job.
        hold_reason: Returns why the server runs no job yet; empty where it does.
        quotas: The quotas of the callers; None: there are none.
        replica: This server among those that share the database; None: it has one of its own.
    """

    def __init__(
        self,
        data_dir: DataDir,
        workers: Executor,
        limits: JobLimits,
        run_limits: RunLimits,
        hold_reason: Callable[[], str] = lambda: "",
        quotas: QuotaBook | None = None,
        replica: Replica | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._database = data_dir.database
        self._slots = limits.slots
        self._hold_reason = hold_reason
        self._looking: asyncio.Task[None] | None = None
        """Looks for disk space that jobs wait for."""
        self.closing: asyncio.Future[StatusError] = asyncio.get_running_loop().create_future()
        """Done when the server takes no more jobs; holds the error for callers."""
        self._blobs = None if replica is None else _blobs(data_dir)
        self._runner = JobRunner(data_dir, workers, run_limits, limits.restarts, self._blobs)
        self._completion = Completion(data_dir, self.closing.done, self._blobs)
        self._remote = None if replica is None else RemoteNews()
        self.registry = JobRegistry(
            data_dir.database, self.closing, lambda: self.queue.tasks(), self._remote
        )
        """All jobs, to be looked up, listed and watched."""
        self._jobs = self.registry.live
        self.queue = JobQueue(
            self._jobs,
            limits,
            self.closing,
            run=self._run,
            running_changed=self._runner.share_threads,
            left=self._leave,
            quotas=quotas or QuotaBook(),
        )
        """The jobs that wait, run or are about to end."""
        data_dir.space.reserved = self._reserved
        self.replica: ReplicaJobs | None = None
        """Which jobs are this server's; None: all are."""
        if replica is not None:
            self.replica = self._shared(replica, quotas or QuotaBook())
        self.decisions = JobDecisions(
            data_dir,
            self.registry,
            self.queue,
            self._runner,
            self.replica,
            begin_cancel=self._begin_cancel,
            leave=self._leave,
            check_trains=self.check_trains,
        )
        """What callers ask of a job: to cancel, pause, resume or delete it."""

    def _shared(self, replica: Replica, quotas: QuotaBook) -> ReplicaJobs:
        # Not imported where the server has a database of its own.
        from treadle.server.jobs.leases.replica_jobs import ReplicaJobs

        assert self._remote is not None
        assert self._blobs is not None
        return ReplicaJobs(
            self._database,
            replica,
            self._jobs,
            self.queue,
            self._runner,
            self._remote,
            self._blobs,
            running_quota=lambda owner: quotas.quotas_of(owner).jobs_running,
            recover=self._recover,
            answer=lambda job, request: self.decisions.answer(job, request),
            has_space=self._data_dir.space.has_again,
            is_closing=self.closing.done,
        )

    async def explain_wait(self, reason: str) -> None:
        """Publishes why the first jobs of the queue do not run yet.

        Args:
            reason: The reason, as a sentence.
        """
        for job in self.queue.waiting[: self._slots]:
            async with job.deciding:
                if job.row.state == JobState.QUEUED:
                    with suppress(OSError):  # a full disk must not keep the server from starting
                        await job.enter(JobState.QUEUED, reason)

    async def submit(self, row: JobRow) -> JobRow:
        """Puts a job into the queue.

        Returns:
            The job, or the earlier one with the same request id. The directory of the new one is
            removed in that case.
        """
        return await outlast(self._submit(row))

    async def _submit(self, row: JobRow) -> JobRow:
        row = replace(row, reason=self._hold_reason())
        first = queued_event(row.created_s, row.reason).SerializeToString()
        kept = await thread_pools.DATABASE.run(self._database.add_job, row, first)
        if kept.id == row.id and self.replica is not None:
            self.replica.keeper.look()
        elif kept.id == row.id:
            self._jobs[row.id] = Job(self._database, kept)
            self.queue.schedule()
        else:
            await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)
        return kept

    async def recover(self) -> None:
        """Continues the jobs that the previous server process left unfinished.

        Called before the first request. Where servers share a database, each takes jobs as it has
        slots, and those of a server that has ended are no exception.
        """
        if self.replica is not None:
            self.replica.keeper.start()
            return
        for job in await thread_pools.DATABASE.run(self._left_over):
            self._jobs[job.id] = job
            set_request_id(job.row.call_id, job.row.owner)
            try:
                await self._recover(job)
            except Exception:  # one job must not prevent the start of the server
                logger.exception(
                    "job %s cannot be recovered; it stays in its current state", job.id
                )
            self._leave(job)
        set_request_id("")
        if (count := len(self.queue.waiting)) and not self._slots:
            logger.warning("%d jobs wait, and --training-slots 0 runs none of them", count)

    async def _recover(self, job: Job) -> None:
        is_running = job.row.state == JobState.RUNNING
        # What another server had ready but not stored is computed once more, from its last
        # checkpoint.
        is_here = self.replica is None
        if is_running and is_here and await self._completion.completed_before(job):
            return
        was_ending = not is_here and (is_running or job.cancelling)
        if was_ending and await self._completion.stored_before(job):
            return
        if job.cancelling:
            self._begin_cancel(job)
        elif job.pausing and (is_running or job.row.state == JobState.QUEUED):
            await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
        elif is_running:
            what = "the server" if is_here else "its server"
            await job.enter(JobState.QUEUED, f"{what} stopped; the job continues")

    def open(self) -> None:
        """Begins to run jobs."""
        if self._slots:  # otherwise jobs need the space of another server's disk
            self._looking = asyncio.create_task(self._look_for_space())
        self.queue.open()

    async def close(self, reason: str) -> None:
        """Has all running jobs write checkpoints, from which the next server continues them.

        Args:
            reason: Why the server closes, as a sentence.
        """
        if not self.closing.done():
            self.closing.set_result(unavailable(reason))
        if self._looking is not None:
            self._looking.cancel()
        self._runner.leave(self.queue.running, reason)
        if tasks := self.queue.tasks():
            await asyncio.wait(tasks)
        if self.replica is not None:
            await self.replica.close()
        for job in self._jobs.values():
            job.wake_followers()
            job.trace.close()

    async def kill(self) -> None:
        """Kills all running processes; the next server continues from their checkpoints."""
        self.queue.stop()
        self._runner.kill(self.queue.running)
        tasks = self.queue.tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self.replica is not None:
            await self.replica.close()
        for job in self._jobs.values():
            job.trace.close()

    @property
    def replica_id(self) -> str:
        """The id of this server among those that share the database; empty: there are none."""
        return "" if self.replica is None else self.replica.keeper.replica.id

    @property
    def waiting_count(self) -> int:
        """Jobs that wait for a slot or for the rest of their corpus; of all servers, if several."""
        waiting = self.queue.waiting_count
        return waiting if self.replica is None else waiting + self.replica.waiting_count

    async def backlog(self) -> JobQueue | StoredBacklog:
        """Returns what counts the jobs that are not over: of all servers that share the database.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        return self.queue if self.replica is None else await self.replica.backlog()

    def admit(self, backlog: JobQueue | StoredBacklog) -> AbstractContextManager[None]:
        """Holds a place in the queue while a corpus is uploaded; see `JobQueue.admit`."""
        elsewhere = 0 if backlog is self.queue else backlog.waiting_count
        return self.queue.admit(elsewhere)

    def check_trains(self) -> None:
        """Checks that jobs may run, here or on a server that shares the database.

        Raises:
            StatusError: FAILED_PRECONDITION: nobody runs them.
        """
        if not self._slots and self.replica is None:
            raise precondition(
                "this server trains nothing: have it started with --training-slots 1 or more"
            )

    def _begin_cancel(self, job: Job) -> None:
        """Begins to end a cancelled job that does not run."""
        self.queue.begin_end(job, lambda: self._guarded(job, self._completion.cancel(job)))

    async def _look_for_space(self) -> None:
        """Continues jobs that paused for lack of disk space, as space becomes free."""
        while True:
            await asyncio.sleep(_SPACE_S)
            try:
                await self.resume_for_space()
            except Exception as error:  # the disk may work again the next time
                logger.warning("no job could be resumed for its disk space: %s", error)

    async def resume_for_space(self) -> None:
        """Queues the first job that waits for disk space, if there is enough for it.

        Only one job at a time, since each takes some of the free space.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        for job in await self._waiting_for_space():
            try:
                if await self._continue_for_space(job):
                    return
            finally:
                if self.replica is not None:  # it was taken for this
                    self._leave(job)

    async def _continue_for_space(self, job: Job) -> bool:
        """Queues a job that waits for disk space, if there is enough; returns whether it did."""
        if not job.row.waits_for_bytes or job.space_try_at > time.monotonic():
            return False
        if not await thread_pools.DATABASE.run(
            self._data_dir.space.has_again, job.row.waits_for_bytes
        ):
            return False
        async with self.decisions.deciding(job):
            if not job.row.waits_for_bytes or job.cancelling:  # a request came meanwhile
                return False
            job.space_try_at = time.monotonic() + _SPACE_S * 2**job.space_tries
            job.space_tries = min(job.space_tries + 1, _SPACE_TRIES)
            await self.decisions.queue_again(job, "there is disk space again")
            return True

    async def _waiting_for_space(self) -> list[Job]:
        """Returns the jobs here; of those of all servers one that waits for disk space."""
        if self.replica is None:
            return [*self._jobs.values()]
        return [] if self.closing.done() else await self.replica.take_for_space()

    def _reserved(self) -> int:
        """Returns the bytes that running jobs need for their next checkpoints; thread-safe."""
        size = 0
        for job in self.queue.running:
            with suppress(OSError):  # it has no checkpoint yet
                size += (self._data_dir.jobs.root / job.id / STATE_FILE).stat().st_size
        return size

    def _leave(self, job: Job) -> None:
        """Forgets a job if it is final, and wakes its followers.

        Where servers share a database, it is given back unless it runs or is about to end.
        """
        if self.replica is not None:
            self.replica.settle(job)
        elif job.row.is_final:
            self._jobs.pop(job.id, None)
        job.wake_followers()

    def _left_over(self) -> list[Job]:
        jobs: list[Job] = []
        after: tuple[float, str] | None = None
        # A few at a time: a stored row may take megabytes, and a job keeps little of it.
        while page := self._database.jobs(UNFINISHED_STATES, after=after, limit=_ROWS_AT_ONCE):
            after = page[-1].place
            for row in page:
                if fault := damage(row):  # it stays listed and can be deleted
                    logger.error(
                        "job %s is not continued: its record is damaged: %s", row.id, fault
                    )
                else:
                    jobs.append(Job(self._database, row))
        return sorted(jobs, key=lambda job: (job.row.queued_s, job.id))

    async def _run(self, job: Job) -> None:
        """Runs a job until it is final or has to wait; never raises."""
        await self._guarded(job, self._train(job))

    async def _train(self, job: Job) -> None:
        try:
            outcome = await self._runner.run(job)
        except OSError as error:
            if not is_full(error):
                raise
            outcome = Outcome(Ending.PAUSED, f"the disk is full: {error.strerror}", needs_bytes=1)
        self.queue.free_slot(job)
        await self._completion.settle(job, outcome)
        if job.cancelling and not job.row.is_final:  # cancelled while it was recorded
            await self._completion.cancel(job)

    async def _guarded(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        """Awaits work that ends a job; where the work fails, so does the job."""
        # What began the task may be a call for another job.
        set_request_id(job.row.call_id, job.row.owner)
        job.trace.attach()
        try:
            await work
        except asyncio.CancelledError:
            pass  # the server ends, and the next one continues the job
        except (LostLeaseError, DatabaseUnavailableError) as error:
            await self._let_go(job, error)
        except (OSError, DatabaseError) as error:
            if self.closing.done():  # the next server finds it running and continues it
                logger.error("job %s: its end cannot be recorded: %s", job.id, error)
            else:
                await self._give_up(job, error)
        except Exception as error:
            await self._give_up(job, error)

    async def _let_go(self, job: Job, error: DatabaseError) -> None:
        """Takes leave of a job that runs or ends here and is another server's now."""
        logger.info("job %s continues elsewhere: %s", job.id, error)
        if self.replica is not None:
            self.replica.lose(job)
            await self.replica.blobs.leave(job)

    async def _give_up(self, job: Job, error: Exception) -> None:
        """Ends a job that an internal error prevents from continuing; never raises."""
        failure = from_exception(error, f"job {job.id}")
        self.queue.free_slot(job)
        try:
            await self._completion.fail(job, failure)
        except (LostLeaseError, DatabaseUnavailableError) as lost:
            await self._let_go(job, lost)
        except Exception:  # the next server finds it running and continues it
            logger.exception("job %s: its end cannot be recorded", job.id)


def _blobs(data_dir: DataDir) -> JobBlobs:
    # Not imported where the server has files of its own.
    from treadle.server.jobs.job_blobs import JobBlobs

    return JobBlobs(data_dir.jobs)
