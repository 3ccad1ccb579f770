"""`JobManager` manages training jobs: it submits, cancels, pauses, resumes and deletes them.

A job is owned by the server once its corpus is complete. It continues when its client leaves, when
its process dies and when the server starts again. `Job` is one job, `JobQueue` says which one runs
next, `JobRunner` has processes train it, and `Completion` records its end.

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
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import set_request_id
from treadle.server.errors import (
    StatusError,
    exhausted,
    from_exception,
    job_not_found,
    precondition,
    unavailable,
)
from treadle.server.failures import (
    DatabaseError,
    DatabaseUnavailableError,
    LostLeaseError,
    is_full,
)
from treadle.server.jobs.completion import Completion
from treadle.server.jobs.job import (
    CANCELLING,
    PAUSED_ON_REQUEST,
    PAUSING,
    Job,
    outlast,
    queued_event,
)
from treadle.server.jobs.job_queue import RETRY_S, JobLimits, JobQueue
from treadle.server.jobs.leases.remote_news import RemoteNews
from treadle.server.jobs.registry import JobRegistry, check_open
from treadle.server.jobs.runner import Ending, JobRunner, Outcome
from treadle.server.resources import thread_pools
from treadle.server.storage.database.request_table import CANCEL, PAUSE
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_files import STATE_FILE
from treadle.server.storage.job_state import UNFINISHED_STATES, JobState
from treadle.server.storage.schema import NoSuchJobError

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

_ANSWER_S = 0.3
"""Seconds that the reply to a request waits for its effect; most jobs are quicker."""

_TAKE_TRIES = 10
"""How often a request is tried for a job that changes hands meanwhile."""

_TAKE_S = 0.1
"""Seconds between two tries to take a job that another server has for a moment."""


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
            answer=self._answer,
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

    async def _answer(self, job: Job, request: str) -> None:
        """Does what another server asked of a job here."""
        if request == CANCEL:
            await outlast(self._cancel(job))
        elif request == PAUSE:
            await outlast(self._pause(job))
        else:
            await outlast(self._resume(job))

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

    async def cancel(self, job: str) -> JobRow:
        """Ends a job for good and keeps what it has learned; does nothing where it is final.

        Args:
            job: The job's id.

        Returns:
            The job, final or about to be. The request is persisted across restarts.

        Raises:
            StatusError: NOT_FOUND; RESOURCE_EXHAUSTED: it ends, but the disk is too full to
                record that, and a server that starts before it has ended would continue it.
        """
        return await self._decide(job, "cancel", self._cancel)

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

    async def _decide(
        self,
        job: str,
        request: str,
        decide: Callable[[Job], Coroutine[Any, Any, JobRow]],
        done: str = "",
    ) -> JobRow:
        """Decides a request for a job here, or leaves it to the server that has the job.

        Args:
            job: Its id.
            request: What is asked of the server that has it.
            decide: Decides the request for a job of this server; may be called again.
            done: What a job that is over cannot be any more; empty: the request may come late.

        Returns:
            The row of the job.

        Raises:
            StatusError: NOT_FOUND; DATA_LOSS where its row is damaged; as `decide`.
            DatabaseError: The database failed, or cannot be reached.
        """
        for _ in range(_TAKE_TRIES):
            found = await outlast(self._find(job, request))
            if not isinstance(found, Job):
                if done:
                    check_open(found, done)
                return found
            try:
                return await outlast(decide(found))
            except LostLeaseError:  # another request had it given back, or it is lost
                self._lost(found)
        raise _keeps_moving(job)

    def _lost(self, job: Job) -> None:
        """Takes leave of a job for which the database has refused a write."""
        # One that is being given back is no longer here, and its lease is still to be released.
        if self.replica is not None and self._jobs.get(job.id) is job:
            self.replica.lose(job)

    def check_trains(self) -> None:
        """Checks that jobs may run, here or on a server that shares the database.

        Raises:
            StatusError: FAILED_PRECONDITION: nobody runs them.
        """
        if not self._slots and self.replica is None:
            raise precondition(
                "this server trains nothing: have it started with --training-slots 1 or more"
            )

    async def _find(self, job: str, request: str) -> Job | JobRow:
        """Returns a job that is this server's by now, to decide a request for it here.

        Args:
            job: Its id.
            request: What is asked of the server that has it.

        Returns:
            The job; its row where it is over, or where the request was left to another server.

        Raises:
            StatusError: NOT_FOUND; DATA_LOSS where its row is damaged.
            DatabaseError: The database failed, or cannot be reached.
        """
        live = self.registry.opened(job)
        if self.replica is None:
            return live or await self.registry.row(job)
        row = await self.registry.row(job)  # nothing is begun where the database is not there
        for _ in range(_TAKE_TRIES):
            live = self.registry.opened(job)
            if live is not None or row.is_final:
                return live or row
            taken = await self.replica.take(job)
            if taken is not None:
                return taken
            row = await self.registry.row(job)
            if not row.is_final and row.holder and await self.replica.ask(row, request):
                return await self.registry.row(job)
        raise _keeps_moving(job)

    async def _cancel(self, job: Job) -> JobRow:
        full = None
        async with self._deciding(job):
            if not job.row.is_final:
                job.cancelling = True
                full = await self._record_request(job, CANCELLING)
                if self.queue.is_running(job):
                    self._runner.stop(job, "cancelled")
                # It may have become final meanwhile.
                elif not self.queue.is_ending(job) and not job.row.is_final:
                    self._begin_cancel(job)
        await self._wait_briefly(job)
        if full is not None and not job.row.is_final:
            raise full
        return job.row

    def _begin_cancel(self, job: Job) -> None:
        """Begins to end a cancelled job that does not run."""
        self.queue.begin_end(job, lambda: self._guarded(job, self._completion.cancel(job)))

    async def _record_request(self, job: Job, request: str) -> StatusError | None:
        """Records a request for the next server; returns the error for the caller if it cannot."""
        try:
            await job.change(reason=request)
        except OSError as error:
            if not is_full(error):
                raise
            logger.error("job %s: a request cannot be recorded: %s", job.id, error)
            return exhausted(
                f"job {job.id} is {request}, but the disk is too full to record that: free some "
                "space, or a server that starts before it is done continues the job",
                RETRY_S,
            )
        return None

    async def _wait_briefly(self, job: Job) -> None:
        """Waits until a job neither runs nor ends, for `_ANSWER_S` at most."""
        tasks = self.queue.tasks_of(job)
        if tasks:
            await asyncio.wait(tasks, timeout=_ANSWER_S)

    async def pause(self, job: str) -> JobRow:
        """Pauses a job until it is resumed.

        Args:
            job: The job's id.

        Returns:
            The job, paused or about to be. The request is persisted across restarts.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it is final, or being cancelled;
                RESOURCE_EXHAUSTED: it pauses, but the disk is too full to record that, and a server
                that starts before it has paused would continue it.
        """
        return await self._decide(job, "pause", self._pause, "paused")

    async def _pause(self, job: Job) -> JobRow:
        full = None
        async with self._deciding(job):
            if job.cancelling and not job.row.is_final:
                raise precondition(f"job {job.id} is being cancelled and cannot be paused")
            if self.queue.is_running(job):
                self._runner.pause(job, PAUSED_ON_REQUEST)
                full = await self._record_request(job, PAUSING)
            elif job.row.state == JobState.QUEUED or job.row.waits_for_bytes:
                await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
            elif self.queue.is_ending(job):  # if it is to be queued again, it pauses instead
                job.pausing = job.pausing or PAUSED_ON_REQUEST
        await self._wait_briefly(job)
        if job.row.is_final:
            state = job.row.state
            raise precondition(f"job {job.id} is {state}: it ended before it could be paused")
        if full is not None and job.row.state != JobState.PAUSED:
            raise full
        return job.row

    async def resume(self, job: str) -> JobRow:
        """Puts a paused job back into the queue; does nothing where it waits or runs.

        A job that is about to pause is queued once its worker process has ended.

        Args:
            job: The job's id.

        Returns:
            The row of the job.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it is final, or being cancelled, or nobody
                runs jobs.
        """
        return await self._decide(job, "resume", self._resume, "resumed")

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
        async with self._deciding(job):
            if not job.row.waits_for_bytes or job.cancelling:  # a request came meanwhile
                return False
            job.space_try_at = time.monotonic() + _SPACE_S * 2**job.space_tries
            job.space_tries = min(job.space_tries + 1, _SPACE_TRIES)
            await self._queue_again(job, "there is disk space again")
            return True

    async def _waiting_for_space(self) -> list[Job]:
        """Returns the jobs here; of those of all servers one that waits for disk space."""
        if self.replica is None:
            return [*self._jobs.values()]
        return [] if self.closing.done() else await self.replica.take_for_space()

    async def _queue_again(self, job: Job, reason: str) -> None:
        """Puts a paused job at the end of the queue."""
        await job.enter(JobState.QUEUED, reason, queued_s=job.time_s())
        job.pausing = ""
        self.queue.move_to_back(job)

    def _reserved(self) -> int:
        """Returns the bytes that running jobs need for their next checkpoints; thread-safe."""
        size = 0
        for job in self.queue.running:
            with suppress(OSError):  # it has no checkpoint yet
                size += (self._data_dir.jobs.root / job.id / STATE_FILE).stat().st_size
        return size

    async def _resume(self, job: Job) -> JobRow:
        async with self._deciding(job):
            if job.cancelling:
                raise precondition(f"job {job.id} is being cancelled and cannot be resumed")
            if job.row.state == JobState.PAUSED:
                self.check_trains()
                await self._queue_again(job, "resumed")
            elif job.pausing:
                await job.change(reason="resumed")
                job.pausing = ""
        return job.row

    async def delete(self, job: str) -> None:
        """Deletes a final or paused job, with its events and files.

        Args:
            job: The job's id.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: it waits or runs.
        """
        for _ in range(_TAKE_TRIES):
            try:
                # Once begun it runs to its end: a cancelled call keeps no lease.
                await outlast(self._delete_now(job))
                return
            except LostLeaseError:  # such as one that has just ended, and is being given back
                await asyncio.sleep(_TAKE_S)
        raise _keeps_moving(job)

    async def _delete_now(self, job: str) -> None:
        """Deletes a job.

        Raises:
            StatusError: As `delete`.
            LostLeaseError: The job has changed hands meanwhile, or another server has it.
        """
        await self._cleared(job)
        live = self.registry.opened(job) or await self._taken_to_delete(job)
        if live is None:
            await self._delete(await self.registry.row(job, damaged=True))
            return
        try:
            async with self._deciding(live):
                await self._delete(live.row)
        except LostLeaseError:
            self._lost(live)
            raise

    async def _taken_to_delete(self, job: str) -> Job | None:
        """Returns a paused job that is this server's by now; None where none needs to be.

        Raises:
            LostLeaseError: Another server has it.
        """
        if self.replica is None:
            return None
        row = await self.registry.row(job, damaged=True)
        if row.state != JobState.PAUSED or self.registry.fault(row):
            return None
        if (taken := await self.replica.take(job)) is None:
            raise LostLeaseError(f"another server has job {job}")
        return taken

    async def _cleared(self, job: str) -> None:
        """Waits until a job whose end is known has removed the files of its run."""
        live = self.registry.opened(job)
        if live is not None and live.row.is_final and self.queue.is_ending(live):
            await asyncio.wait(self.queue.tasks_of(live))

    async def _delete(self, row: JobRow) -> None:
        live = self._jobs.get(row.id)
        if live is not None and self.queue.is_ending(live):
            raise precondition(f"job {row.id} is about to end: delete it once it has")
        if row.state in (JobState.QUEUED, JobState.RUNNING) and not self.registry.fault(row):
            message = f"job {row.id} is {row.state}: cancel or pause it before you delete it"
            raise precondition(message)
        # Without a lease of its own, as long as nobody has got one since the row was read.
        fence = None if self.replica is None else row.fence
        delete = partial(self._database.delete_job, fence=fence)
        try:
            await thread_pools.DATABASE.run(delete, row.id)
        except NoSuchJobError:  # another call has just deleted it
            raise job_not_found(row.id) from None
        except OSError as error:
            # Files of several servers are elsewhere, and need the lease to be removed.
            if self.replica is not None or not is_full(error):
                raise
            # The files go first, which frees space for the change of the row.
            await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)
            await thread_pools.DATABASE.run(delete, row.id)
        self._jobs.pop(row.id, None)
        if live is not None and live.lease.fence is not None:
            live.lease.is_lost = True
        await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)

    @asynccontextmanager
    async def _deciding(self, job: Job) -> AsyncIterator[None]:
        """Serializes the requests for a job, and keeps it from starting meanwhile."""
        job.requests += 1
        try:
            async with job.deciding:
                job.lease.check(job.id)
                if job.id not in self._jobs and not job.row.is_final:
                    if job.lease.fence is not None:
                        raise LostLeaseError(f"job {job.id} is being given back")
                    raise job_not_found(job.id)  # deleted while this one waited
                yield
        finally:
            job.requests -= 1
            self._leave(job)
            self.queue.schedule()

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


def _keeps_moving(job: str) -> StatusError:
    return unavailable(f"job {job} changes hands again and again: call again in a moment")


def _blobs(data_dir: DataDir) -> JobBlobs:
    # Not imported where the server has files of its own.
    from treadle.server.jobs.job_blobs import JobBlobs

    return JobBlobs(data_dir.jobs)
