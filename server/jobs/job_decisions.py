"""`JobDecisions` decides what callers ask of a job: to cancel, pause, resume or delete it.

The requests for one job are decided one after the other. Where several servers share a database, a
request is decided by the server that has the job: a job that nobody has is taken for that, and a
request for the job of another server is left in the database for that server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.server.errors import StatusError, exhausted, job_not_found, precondition, unavailable
from treadle.server.failures import LostLeaseError, is_full
from treadle.server.jobs.job import CANCELLING, PAUSED_ON_REQUEST, PAUSING, Job, outlast
from treadle.server.jobs.job_queue import RETRY_S
from treadle.server.jobs.registry import check_open
from treadle.server.resources import thread_pools
from treadle.server.storage.database.request_table import CANCEL, PAUSE, RESUME
from treadle.server.storage.job_state import JobState
from treadle.server.storage.schema import NoSuchJobError

if TYPE_CHECKING:
    from treadle.server.jobs.job_queue import JobQueue
    from treadle.server.jobs.leases.replica_jobs import ReplicaJobs
    from treadle.server.jobs.registry import JobRegistry
    from treadle.server.jobs.runner import JobRunner
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_ANSWER_S = 0.3
"""Seconds that the reply to a request waits for its effect; most jobs are quicker."""

_TAKE_TRIES = 10
"""How often a request is tried for a job that changes hands meanwhile."""

_TAKE_S = 0.1
"""Seconds between two tries to take a job that another server has for a moment."""


class JobDecisions:
    """The decisions on requests for the jobs of one server.

    Args:
        data_dir: Where jobs are stored.
        registry: Looks jobs up.
        queue: The jobs that wait, run or are about to end.
        runner: Has processes train jobs.
        replica: Which jobs are this server's; None: all are.
        begin_cancel: Begins to end a cancelled job that does not run.
        leave: Called with a job once a request for it is decided.
        check_trains: Raises a StatusError where nobody runs jobs.
    """

    def __init__(
        self,
        data_dir: DataDir,
        registry: JobRegistry,
        queue: JobQueue,
        runner: JobRunner,
        replica: ReplicaJobs | None,
        begin_cancel: Callable[[Job], None],
        leave: Callable[[Job], None],
        check_trains: Callable[[], None],
    ) -> None:
        self._data_dir = data_dir
        self._database = data_dir.database
        self._registry = registry
        self._jobs = registry.live
        self._queue = queue
        self._runner = runner
        self._replica = replica
        self._begin_cancel = begin_cancel
        self._leave = leave
        self._check_trains = check_trains

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
        return await self._decide(job, CANCEL, self._cancel)

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
        return await self._decide(job, PAUSE, self._pause, "paused")

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
        return await self._decide(job, RESUME, self._resume, "resumed")

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

    async def answer(self, job: Job, request: str) -> None:
        """Does what another server asked of a job here.

        Args:
            job: The job.
            request: CANCEL, PAUSE or RESUME.

        Raises:
            StatusError: As `cancel`, `pause` and `resume`.
            LostLeaseError: The job is not this server's any more.
        """
        if request == CANCEL:
            await outlast(self._cancel(job))
        elif request == PAUSE:
            await outlast(self._pause(job))
        else:
            await outlast(self._resume(job))

    @asynccontextmanager
    async def deciding(self, job: Job) -> AsyncIterator[None]:
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
            self._queue.schedule()

    async def queue_again(self, job: Job, reason: str) -> None:
        """Puts a paused job at the end of the queue."""
        await job.enter(JobState.QUEUED, reason, queued_s=job.time_s())
        job.pausing = ""
        self._queue.move_to_back(job)

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
        live = self._registry.opened(job)
        if self._replica is None:
            return live or await self._registry.row(job)
        row = await self._registry.row(job)  # nothing is begun where the database is not there
        for _ in range(_TAKE_TRIES):
            live = self._registry.opened(job)
            if live is not None or row.is_final:
                return live or row
            taken = await self._replica.take(job)
            if taken is not None:
                return taken
            row = await self._registry.row(job)
            if not row.is_final and row.holder and await self._replica.ask(row, request):
                return await self._registry.row(job)
        raise _keeps_moving(job)

    def _lost(self, job: Job) -> None:
        """Takes leave of a job for which the database has refused a write."""
        # One that is being given back is no longer here, and its lease is still to be released.
        if self._replica is not None and self._jobs.get(job.id) is job:
            self._replica.lose(job)

    async def _cancel(self, job: Job) -> JobRow:
        full = None
        async with self.deciding(job):
            if not job.row.is_final:
                job.cancelling = True
                full = await self._record_request(job, CANCELLING)
                if self._queue.is_running(job):
                    self._runner.stop(job, "cancelled")
                # It may have become final meanwhile.
                elif not self._queue.is_ending(job) and not job.row.is_final:
                    self._begin_cancel(job)
        await self._wait_briefly(job)
        if full is not None and not job.row.is_final:
            raise full
        return job.row

    async def _pause(self, job: Job) -> JobRow:
        full = None
        async with self.deciding(job):
            if job.cancelling and not job.row.is_final:
                raise precondition(f"job {job.id} is being cancelled and cannot be paused")
            if self._queue.is_running(job):
                self._runner.pause(job, PAUSED_ON_REQUEST)
                full = await self._record_request(job, PAUSING)
            elif job.row.state == JobState.QUEUED or job.row.waits_for_bytes:
                await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
            elif self._queue.is_ending(job):  # if it is to be queued again, it pauses instead
                job.pausing = job.pausing or PAUSED_ON_REQUEST
        await self._wait_briefly(job)
        if job.row.is_final:
            state = job.row.state
            raise precondition(f"job {job.id} is {state}: it ended before it could be paused")
        if full is not None and job.row.state != JobState.PAUSED:
            raise full
        return job.row

    async def _resume(self, job: Job) -> JobRow:
        async with self.deciding(job):
            if job.cancelling:
                raise precondition(f"job {job.id} is being cancelled and cannot be resumed")
            if job.row.state == JobState.PAUSED:
                self._check_trains()
                await self.queue_again(job, "resumed")
            elif job.pausing:
                await job.change(reason="resumed")
                job.pausing = ""
        return job.row

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
        tasks = self._queue.tasks_of(job)
        if tasks:
            await asyncio.wait(tasks, timeout=_ANSWER_S)

    async def _delete_now(self, job: str) -> None:
        """Deletes a job.

        Raises:
            StatusError: As `delete`.
            LostLeaseError: The job has changed hands meanwhile, or another server has it.
        """
        await self._cleared(job)
        live = self._registry.opened(job) or await self._taken_to_delete(job)
        if live is None:
            await self._delete(await self._registry.row(job, damaged=True))
            return
        try:
            async with self.deciding(live):
                await self._delete(live.row)
        except LostLeaseError:
            self._lost(live)
            raise

    async def _taken_to_delete(self, job: str) -> Job | None:
        """Returns a paused job that is this server's by now; None where none needs to be.

        Raises:
            LostLeaseError: Another server has it.
        """
        if self._replica is None:
            return None
        row = await self._registry.row(job, damaged=True)
        if row.state != JobState.PAUSED or self._registry.fault(row):
            return None
        if (taken := await self._replica.take(job)) is None:
            raise LostLeaseError(f"another server has job {job}")
        return taken

    async def _cleared(self, job: str) -> None:
        """Waits until a job whose end is known has removed the files of its run."""
        live = self._registry.opened(job)
        if live is not None and live.row.is_final and self._queue.is_ending(live):
            await asyncio.wait(self._queue.tasks_of(live))

    async def _delete(self, row: JobRow) -> None:
        live = self._jobs.get(row.id)
        if live is not None and self._queue.is_ending(live):
            raise precondition(f"job {row.id} is about to end: delete it once it has")
        if row.state in (JobState.QUEUED, JobState.RUNNING) and not self._registry.fault(row):
            message = f"job {row.id} is {row.state}: cancel or pause it before you delete it"
            raise precondition(message)
        # Without a lease of its own, as long as nobody has got one since the row was read.
        fence = None if self._replica is None else row.fence
        delete = partial(self._database.delete_job, fence=fence)
        try:
            await thread_pools.DATABASE.run(delete, row.id)
        except NoSuchJobError:  # another call has just deleted it
            raise job_not_found(row.id) from None
        except OSError as error:
            # Files of several servers are elsewhere, and need the lease to be removed.
            if self._replica is not None or not is_full(error):
                raise
            # The files go first, which frees space for the change of the row.
            await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)
            await thread_pools.DATABASE.run(delete, row.id)
        self._jobs.pop(row.id, None)
        if live is not None and live.lease.fence is not None:
            live.lease.is_lost = True
        await thread_pools.STORE.run(self._data_dir.jobs.remove, row.id)


def _keeps_moving(job: str) -> StatusError:
    return unavailable(f"job {job} changes hands again and again: call again in a moment")
