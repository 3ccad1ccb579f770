"""`ReplicaJobs` says which jobs are this server's where several servers share a database.

A job is taken with its lease, either to run or for one request, and given back once it neither runs
nor ends here. What callers ask of the job of another server is left in its row for that server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from treadle.server.access.request_id import set_request_id
from treadle.server.errors import StatusError, precondition
from treadle.server.failures import DatabaseError, LostLeaseError
from treadle.server.jobs.job import CANCELLING, PAUSED_ON_REQUEST, Job
from treadle.server.jobs.leases.backlog import StoredBacklog
from treadle.server.jobs.leases.lease_keeper import LeaseKeeper, Replica
from treadle.server.resources import thread_pools
from treadle.server.storage.database.request_table import CANCEL, PAUSE
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_state import JobState
from treadle.server.storage.lease import Lease
from treadle.server.storage.schema import NoSuchJobError

if TYPE_CHECKING:
    from treadle.server.jobs.job_blobs import JobBlobs
    from treadle.server.jobs.job_queue import JobQueue
    from treadle.server.jobs.leases.remote_news import RemoteNews
    from treadle.server.jobs.runner import JobRunner
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
"""Seconds that a request waits for the server that has the job."""

_LOOK_S = 0.1
"""Seconds between two looks for its answer."""


class ReplicaJobs:
    """The jobs of one of several servers.

    Args:
        database: Where all jobs are.
        replica: The server.
        jobs: The jobs that are this server's, by their ids; shared.
        queue: Runs them.
        runner: Has processes train them.
        remote: Wakes those who follow jobs of other servers.
        blobs: Brings the files of jobs here.
        running_quota: Returns how many jobs of a caller may run at once; None: any number.
        recover: Continues a job that another server left running.
        answer: Does what another server asked of a job.
        has_space: Returns whether the disk has so many bytes for a job that lacked them.
        is_closing: Returns whether the server is closing.
    """

    def __init__(
        self,
        database: Database,
        replica: Replica,
        jobs: dict[str, Job],
        queue: JobQueue,
        runner: JobRunner,
        remote: RemoteNews,
        blobs: JobBlobs,
        running_quota: Callable[[str], int | None],
        recover: Callable[[Job], Awaitable[None]],
        answer: Callable[[Job, str], Awaitable[object]],
        has_space: Callable[[int], bool],
        is_closing: Callable[[], bool],
    ) -> None:
        self._has_space = has_space
        self._database = database
        self._jobs = jobs
        self._queue = queue
        self._runner = runner
        self._remote = remote
        self.blobs = blobs
        """Brings the files of jobs here."""
        self._recover = recover
        self._answer = answer
        self._is_closing = is_closing
        self._leaving: dict[str, asyncio.Task[None]] = {}
        """Jobs that are being given back."""
        self._answering: dict[str, asyncio.Task[None]] = {}
        """Jobs for which a request of another server is being decided."""
        self._look_at = 0.0
        """When to look for requests to servers that are gone, by `time.monotonic`."""
        self.waiting_count = 0
        """Jobs of all servers that waited when they were last counted, each second."""
        self._space_tries: dict[str, tuple[int, float]] = {}
        """How often jobs that wait for disk space were tried here, and when they may be again."""
        self.keeper = LeaseKeeper(
            database,
            replica,
            jobs,
            free_slots=lambda: queue.free_slots,
            running_quota=running_quota,
            adopt=self._adopt_to_run,
            lose=self.lose,
            heed=self._heed,
        )
        """The leases."""

    async def close(self) -> None:
        """Gives all jobs back that neither run nor end, and then leaves the leases alone."""
        tasks = [*self._answering.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for job in [*self._jobs.values()]:
            self.settle(job)
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        await self.keeper.stop()

    def wake(self, job: str | None = None) -> None:
        """Wakes those who follow a job of another server.

        Args:
            job: The job's id; None: all jobs.
        """
        if job is None:
            self._remote.wake_all()
        else:
            self._remote.wake(job)

    async def backlog(self) -> StoredBacklog:
        """Returns the jobs of all servers that are not over.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        return StoredBacklog(await thread_pools.DATABASE.run(self._database.backlog))

    async def take(self, job: str) -> Job | None:
        """Makes a job this server's until a request for it is decided.

        Args:
            job: The job's id.

        Returns:
            The job; None: another server has it, or there is no such job, or it is over.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        if (leaving := self._leaving.get(job)) is not None:
            await asyncio.wait([leaving])
        row = await self.keeper.take(job)
        return None if row is None else await self._adopt(row, may_run=False)

    async def take_for_space(self) -> list[Job]:
        """Makes a job this server's that waits for as much disk space as there is here, if any."""
        waiting = (await self.backlog()).waiting_for_space()
        for name, size in waiting.items():
            _, try_at = self._space_tries.get(name, (0, 0.0))
            if try_at > time.monotonic():
                continue
            if await thread_pools.DATABASE.run(self._has_space, size):
                found = await self.take(name)
                if found is not None:
                    return [found]
        return []

    async def ask(self, row: JobRow, request: str) -> bool:
        """Asks the server that has a job for something, and waits briefly for its answer.

        Args:
            row: The job.
            request: CANCEL, PAUSE or RESUME.

        Returns:
            Whether the request will be heeded; if not, the job is not that server's any more, or
            was deleted.

        Raises:
            StatusError: FAILED_PRECONDITION: the job is being cancelled.
            DatabaseError: The database failed, or cannot be reached.
        """
        add = self._database.add_request
        try:
            was_left = await thread_pools.DATABASE.run(add, row.id, row.fence, request)
        except (LostLeaseError, NoSuchJobError):
            return False
        if not was_left:
            raise precondition(f"job {row.id} is being cancelled and cannot be {request}d")
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until:
            news = self._remote.of(row.id)
            now = await thread_pools.DATABASE.run(self._database.job, row.id)
            if now is None or now.is_final or not now.request:
                return True
            if not now.holder or now.fence != row.fence:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await news.wait()
        return True

    def settle(self, job: Job) -> None:
        """Gives a job back, once, unless it runs or is about to end here."""
        if job.lease.is_lost or self._queue.is_running(job) or self._queue.is_ending(job):
            return
        if self._jobs.get(job.id) is not job:
            return  # it is being given back
        if job.requests:
            return  # the last of them comes here when it is decided
        self._forget(job)
        if job.row.waits_for_bytes:
            self._space_tries[job.id] = (job.space_tries, job.space_try_at)
        else:
            self._space_tries.pop(job.id, None)
        leaving = asyncio.create_task(self._give_back(job))
        self._leaving[job.id] = leaving

    def lose(self, job: Job) -> None:
        """Takes leave of a job that is another server's: its process ends, nothing is written."""
        was_lost = job.lease.is_lost
        job.lease.is_lost = True
        self._runner.drop(job)
        self._forget(job)
        is_idle = not (self._queue.is_running(job) or self._queue.is_ending(job))
        if is_idle and not was_lost:  # where it is not, its task removes its files
            self._leaving[job.id] = asyncio.create_task(self._clear(job))

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        job.wake_followers()

    async def _clear(self, job: Job) -> None:
        """Removes the files of a job that was lost while it did not run."""
        try:
            await self.blobs.leave(job)
        finally:
            self._end_leaving(job)

    def _end_leaving(self, job: Job) -> None:
        if self._leaving.get(job.id) is asyncio.current_task():
            del self._leaving[job.id]

    async def _give_back(self, job: Job) -> None:
        try:
            await self.blobs.leave(job)
            await self.keeper.give_back(job)
        finally:
            self._end_leaving(job)
        job.trace.close()
        self.keeper.look()

    async def _adopt_to_run(self, row: JobRow) -> None:
        await self._adopt(row, may_run=True)

    async def _adopt(self, row: JobRow, may_run: bool) -> Job | None:
        """Makes a job this server's, whose lease it has just got.

        Returns:
            The job; None: it was lost again, or cannot be used.
        """
        if fault := damage(row):  # it stays listed and can be deleted
            logger.error("job %s is not continued: its record is damaged: %s", row.id, fault)
            self.keeper.shelve(row.id)
            return None
        earlier = self._queue.tasks_of_id(row.id)
        if row.id in self._leaving:
            earlier.append(self._leaving[row.id])
        job = Job(self._database, row, Lease(row.fence, self._is_closing))
        job.may_run = False
        job.space_tries, job.space_try_at = self._space_tries.get(row.id, (0, 0.0))
        self._jobs[row.id] = job
        self._remote.wake(row.id)
        set_request_id(row.call_id, row.owner)
        try:
            if earlier:  # a process of an earlier lease may still be writing its files
                await asyncio.wait(earlier)
            async with job.deciding:
                if row.request:
                    await self._take_over(job, row.request)
                await self._recover(job)
                if row.request:
                    await self._heeded(job, row.request)
        except Exception as error:
            self.lose(job)
            if not isinstance(error, DatabaseError):
                raise
            logger.warning("job %s cannot be taken: %s", row.id, error)
            return None
        finally:
            set_request_id("")
        job.may_run = may_run
        self._queue.schedule()
        if may_run:
            self.settle(job)  # it may have become paused or final at once
        return job

    async def _take_over(self, job: Job, request: str) -> None:
        """Takes over a request that the server before has not heeded."""
        if job.cancelling:
            return
        is_paused = job.row.state == JobState.PAUSED
        if request == CANCEL:
            job.cancelling = True
            await job.change(reason=CANCELLING)
        elif request == PAUSE:
            job.pausing = PAUSED_ON_REQUEST
            if job.row.waits_for_bytes:  # it would continue by itself
                await job.enter(JobState.PAUSED, PAUSED_ON_REQUEST)
        elif is_paused:
            await job.enter(JobState.QUEUED, "resumed", queued_s=job.time_s())
        elif job.pausing:
            await job.change(reason="resumed")
            job.pausing = ""

    async def _heeded(self, job: Job, request: str) -> None:
        """Removes a request, and looks for the one that came meanwhile, if any."""
        remove = self._database.remove_request
        fence = job.lease.fence or 0
        if not await thread_pools.DATABASE.run(remove, job.id, fence, request):
            self.keeper.look()

    async def _heed(self) -> None:
        """Begins to do what other servers ask for of the jobs here."""
        count = self._database.count_jobs
        self.waiting_count = await self.keeper.call(count, [JobState.QUEUED])
        if time.monotonic() >= self._look_at and not self.keeper.is_patient:
            self._look_at = time.monotonic() + self.keeper.replica.lease_s
            for name in await self.keeper.call(self._database.left_requests):
                is_busy = name in self._jobs or name in self._answering
                if not is_busy and not self.keeper.is_shelved(name):
                    self._answering[name] = asyncio.create_task(self._take_up(name))
        if not self._jobs:
            return
        asked = await self.keeper.call(self._database.requests, self.keeper.replica.id)
        for name, request in asked:
            job = self._jobs.get(name)
            if job is not None and name not in self._answering:
                self._answering[name] = asyncio.create_task(self._do(job, request))

    async def _take_up(self, name: str) -> None:
        """Has a job heed a request that its server has not lived to heed."""
        try:
            job = await self.take(name)  # which takes over the request
            if job is not None:
                self.settle(job)
        except DatabaseError as error:
            logger.info("job %s: a request is not heeded yet: %s", name, error)
        except Exception:
            logger.exception("job %s: a request could not be heeded", name)
        finally:
            del self._answering[name]

    async def _do(self, job: Job, request: str) -> None:
        set_request_id(job.row.call_id, job.row.owner)
        job.requests += 1  # it is not given back before the request is removed
        try:
            with suppress(StatusError):  # such as a job that has just ended; the caller sees that
                await self._answer(job, request)
            await self._heeded(job, request)
        except DatabaseError as error:
            logger.info("job %s: a request was not heeded here: %s", job.id, error)
        except Exception:
            logger.exception("job %s: a request could not be heeded", job.id)
        finally:
            del self._answering[job.id]
            job.requests -= 1
            self.settle(job)
