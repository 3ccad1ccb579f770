"""`LeaseKeeper` gets the leases of jobs for one server, renews them and gives them back.

The queue of jobs is the database: whichever server has a slot free takes the next job. A lease that
its server does not renew in time runs out by the clock of the database, and the job continues on
another server from its last checkpoint.

A server that could not reach the database leaves leases that have run out alone for as long as a
lease lasts, counted from when it reached it first: nobody could renew one meanwhile, and their
holders are to do so before others take their jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from treadle.server.failures import DatabaseError, DatabaseUnavailableError
from treadle.server.resources import thread_pools
from treadle.server.telemetry import metrics

if TYPE_CHECKING:
    from treadle.server.jobs.job import Job
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import JobRow

logger = logging.getLogger(__name__)

_RENEWALS = 4
"""How often a lease is renewed while it lasts."""

_LOOK_S = 1.0
"""Seconds after which the queue is looked at even without a message about it."""

_FORGET_S = 86_400.0
"""Seconds after which a server that was killed is forgotten."""

_RETRY_S = 0.5
"""Seconds between two attempts to renew the leases while the database cannot be reached."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Replica:
    """One of several servers that share a database and blobs."""

    id: str
    """Its id, which no other server ever has."""
    address: str
    """Where it says that it listens, for people."""
    lease_s: float
    """Seconds after which a lease that is not renewed runs out."""


class LeaseKeeper:
    """The leases of one server.

    Args:
        database: Where the leases are.
        replica: The server.
        jobs: The jobs that are this server's, by their ids; shared.
        free_slots: Returns how many more jobs could run here.
        running_quota: Returns how many jobs of a caller may run at once, on all servers together;
            None: any number.
        adopt: Takes a job that is to run here.
        lose: Takes leave of a job that is another server's now; nothing is written for it.
        heed: Does what other servers ask for of the jobs that are this server's; it has the
            database asked by `call`.
    """

    def __init__(
        self,
        database: Database,
        replica: Replica,
        jobs: Mapping[str, Job],
        free_slots: Callable[[], int],
        running_quota: Callable[[str], int | None],
        adopt: Callable[[JobRow], Awaitable[None]],
        lose: Callable[[Job], None],
        heed: Callable[[], Awaitable[None]],
    ) -> None:
        self._database = database
        self.replica = replica
        """The server."""
        self._jobs = jobs
        self._free_slots = free_slots
        self._running_quota = running_quota
        self._adopt = adopt
        self._lose = lose
        self._heed = heed
        self._waiting_news = asyncio.Event()
        self._request_news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._shelved: set[str] = set()
        """Jobs that nobody can run."""
        self.is_reached = True
        """Whether the database could be reached the last time."""
        self._reached_since = time.monotonic()

    def start(self) -> None:
        """Begins to renew leases, and to take jobs for which there are slots."""
        self._tasks = [
            asyncio.create_task(self._keep_renewing()),
            asyncio.create_task(self._keep_acquiring()),
            # Not together with the one before: to bring a job here may take long.
            asyncio.create_task(self._keep_heeding()),
        ]

    async def stop(self) -> None:
        """Renews and takes no lease any more, and says that the server has ended."""
        for task in self._tasks:
            task.cancel()
        if not self._tasks:
            return
        await asyncio.wait(self._tasks)
        self._tasks = []
        with suppress(DatabaseError):
            await self.call(self._database.forget_replica, self.replica.id)
            await self.call(self._database.forget_silent_replicas, _FORGET_S)

    def look(self) -> None:
        """Looks for jobs to take and for requests of other servers at once."""
        self._waiting_news.set()
        self._request_news.set()

    async def take(self, job: str) -> JobRow | None:
        """Gets the lease of one job that is not over, to decide a request for it.

        Args:
            job: The job's id.

        Returns:
            Its row with the lease; None: it is another server's, or there is no such job.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        row = await self.call(
            self._database.acquire_job, self.replica.id, job, self.replica.lease_s
        )
        if row is not None:
            metrics.LEASES_ACQUIRED.inc()
        return row

    @property
    def is_patient(self) -> bool:
        """Whether leases that have run out are left to their holders for now."""
        reached_s = time.monotonic() - self._reached_since
        # It may be the next call that reaches the database again.
        return not self.is_reached or reached_s < self.replica.lease_s

    def is_shelved(self, job: str) -> bool:
        """Returns whether a job is one that nobody can run."""
        return job in self._shelved

    def shelve(self, job: str) -> None:
        """Leaves a job that nobody can run where it is; its lease runs out by itself."""
        self._shelved.add(job)

    async def give_back(self, job: Job) -> None:
        """Gives the lease of a job back, after which nothing of it is written here any more.

        Where the database fails, the lease runs out by itself.
        """
        if job.lease.fence is None or job.lease.is_lost:
            return
        job.lease.is_lost = True
        try:
            await self.call(self._database.release, job.id, job.lease.fence)
        except DatabaseError as error:
            logger.info("job %s: its lease runs out by itself: %s", job.id, error)

    async def renew(self) -> None:
        """Renews the leases of all jobs here, and takes leave of those that are lost.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        held = {
            job.id: job for job in self._jobs.values() if job.lease.fence and not job.lease.is_lost
        }
        fences = {job.id: job.lease.fence or 0 for job in held.values()}
        lost: set[str] = set()
        if fences:  # without any, the database would not be asked, and seem to be reached
            lost = await self.call(
                self._database.renew, self.replica.id, fences, self.replica.lease_s
            )
        await self.call(self._database.see_replica, self.replica.id, self.replica.address)
        for name in lost:
            job = held[name]
            # It may have been given back, or have ended, while the database answered.
            if self._jobs.get(name) is job and not job.lease.is_lost and not job.row.is_final:
                logger.warning("job %s: its lease is lost, and it continues elsewhere", name)
                metrics.LEASES_LOST.inc()
                self._lose(job)

    async def _keep_renewing(self) -> None:
        while True:
            pause_s = self.replica.lease_s / _RENEWALS
            try:
                await self.renew()
            except DatabaseUnavailableError:
                pause_s = min(pause_s, _RETRY_S)
            except Exception:  # the leases last a while, and the next attempt may succeed
                logger.exception("leases could not be renewed")
            await asyncio.sleep(pause_s)

    async def _keep_acquiring(self) -> None:
        await self._repeat(self._acquire, self._waiting_news, "no job could be taken")

    async def _keep_heeding(self) -> None:
        await self._repeat(self._heed, self._request_news, "no request could be heeded")

    async def _repeat(
        self, work: Callable[[], Awaitable[None]], news: asyncio.Event, fault: str
    ) -> None:
        """Does work at each message, and at intervals."""
        while True:
            news.clear()
            try:
                await work()
            except DatabaseUnavailableError:
                pass  # reported when it was noticed
            except Exception:  # one job must not keep the others from their turn
                logger.exception(fault)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await news.wait()

    async def _acquire(self) -> None:
        """Takes jobs while there are slots."""
        while self._free_slots() > 0:
            row = await self.call(
                self._database.acquire_next,
                *(self.replica.id, self.replica.lease_s, self._running_quota),
                skipped=[*self._shelved, *self._jobs],
                is_patient=self.is_patient,
            )
            if row is None:
                return
            metrics.LEASES_ACQUIRED.inc()
            await self._adopt(row)

    async def call(
        self,
        work: Callable[Arguments, Result],
        /,
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Runs a method of the database in threads for leases alone, and notes whether it works.

        Args:
            work: The method, which asks the database in any case.
            arguments: Its positional arguments.
            named: Its keyword arguments.

        Returns:
            What it returned.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        try:
            result = await thread_pools.LEASES.run(work, *arguments, **named)
        except DatabaseUnavailableError as error:
            if self.is_reached:
                logger.warning("the database cannot be reached; jobs continue: %s", error)
            self.is_reached = False
            raise
        if not self.is_reached:
            logger.warning("the database can be reached again")
            self._reached_since = time.monotonic()
        self.is_reached = True
        return result
