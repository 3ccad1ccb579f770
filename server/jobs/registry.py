"""`JobRegistry` looks up, lists and watches jobs.

Jobs that are not over are in memory; all jobs are in the database. Where several servers share the
database, only the jobs that belong to this one are in memory. A job that is not open to the
current caller is looked up, and missing, like one that does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc

from treadle.server.access.audit.audited_call import audit_hidden
from treadle.server.access.caller import current_caller
from treadle.server.errors import (
    StatusError,
    aborted,
    from_packed,
    job_damaged,
    job_not_found,
    precondition,
    unavailable,
)
from treadle.server.jobs.job import Job, stored_events
from treadle.server.resources import thread_pools
from treadle.server.resources.loop_throttle import LoopThrottle
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_state import JobState

if TYPE_CHECKING:
    from treadle.server.jobs.leases.remote_news import RemoteNews
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import JobRow
    from treadle.v1 import sequence_pb2 as pb

_MOMENT_S = 0.02

_LOOK_S = 5.0
"""Seconds after which the followers of a job of another server look for its news by themselves."""

_AT_ONCE = 8
"""Events that are sent to watchers in one round of the event loop."""

_LAST_EVENTS_S = 5.0
"""Seconds that a watcher of a closing server waits for the last events of running jobs."""


class JobRegistry:
    """Every job of one server.

    Args:
        database: Where jobs are stored.
        closing: Done when the server is closing; holds the error for callers.
        tasks: Returns the tasks of the jobs that run.
        remote: Wakes those who follow jobs of other servers; None: there are none.
    """

    def __init__(
        self,
        database: Database,
        closing: asyncio.Future[StatusError],
        tasks: Callable[[], Collection[asyncio.Task[None]]],
        remote: RemoteNews | None = None,
    ) -> None:
        self._database = database
        self._closing = closing
        self._tasks = tasks
        self._remote = remote
        self.live: dict[str, Job] = {}
        """Jobs that are not over and this server's, in the order of the queue."""
        self._throttle = LoopThrottle(_AT_ONCE)
        closing.add_done_callback(self._wake_watchers)

    def opened(self, job: str) -> Job | None:
        """Returns a job that is not over and is open to the current caller; None for others."""
        live = self.live.get(job)
        return live if live is not None and current_caller().owns(live.row.owner) else None

    async def watch(self, job: str, after: int = 0) -> AsyncIterator[pb.JobEvent]:
        """Yields the events of a job, old ones first, until it is final or paused.

        Args:
            job: Its id.
            after: Number of the last event already known.

        Raises:
            StatusError: NOT_FOUND; what the job ended with; ABORTED where it is paused;
                UNAVAILABLE where the server is closing; DATA_LOSS where its row or its last
                events are damaged.
        """
        known: Job | None = None
        missed = 0
        if self.opened(job) is None:
            await self.row(job, damaged=True)
        while True:
            live = self.opened(job)
            news = self._news_of(job, live)
            if live is not None:
                known = live
            elif known is not None and not known.row.is_final:
                known = None  # it was deleted, or is another server's now
            # The last events of a final job are still in `known`.
            async for event in self._events(job, known, after):
                yield event
                after = event.sequence
            is_known = known is not None and (job in self.live or known.row.is_final)
            row = known.row if known is not None and is_known else await self.row(job)
            if row.last_sequence > after:
                if missed == row.last_sequence:
                    raise job_damaged(job, f"its events after number {after:,} are missing")
                missed = row.last_sequence
                continue
            if live is None or not live.cancelling:  # a paused one is about to end
                _raise_end(row)
            if row.state == JobState.SUCCEEDED or (row.state == JobState.CANCELLED and row.version):
                return
            if self._closing.done():
                reason = self._closing.result().message
                raise unavailable(f"{reason}; {self._how_to_go_on(job)}")
            if news is None:  # it is just being added or forgotten
                await asyncio.sleep(_MOMENT_S)
            else:
                await self._wait_for(news, live)
                if (
                    live is not None and self._closing.done() and self._tasks()
                ):  # time for their last events
                    await asyncio.wait(self._tasks(), timeout=_LAST_EVENTS_S)

    def _news_of(self, job: str, live: Job | None) -> asyncio.Event | None:
        """Returns what is set at the next event of a job; None: nothing is."""
        if live is not None:
            return live.news()
        return None if self._remote is None else self._remote.of(job)

    async def _wait_for(self, news: asyncio.Event, live: Job | None) -> None:
        if live is not None:
            await news.wait()
            return
        with suppress(TimeoutError):  # a message of the database may be lost
            async with asyncio.timeout(_LOOK_S):
                await news.wait()

    def _how_to_go_on(self, job: str) -> str:
        """Returns what becomes of a job while this server is closing."""
        if self._remote is None:
            return f"job {job} continues when it has started again"
        return f"job {job} continues on another replica, where you can follow it"

    async def _events(self, job: str, known: Job | None, after: int) -> AsyncIterator[pb.JobEvent]:
        """Yields the events that a job has so far; the newest ones come from memory."""
        while True:
            events = None if known is None else known.tail.after(after)
            if events is None:
                events = await stored_events(self._database, job, after)
            if not events:
                return
            for event in events:
                await self._throttle.wait_turn()
                yield event
                after = event.sequence

    def _wake_watchers(self, _: object) -> None:
        for job in [*self.live.values()]:
            job.wake_followers()
        if self._remote is not None:
            self._remote.wake_all()

    async def row(self, job: str, *, damaged: bool = False) -> JobRow:
        """Returns a job's row.

        Args:
            job: Its id.
            damaged: Whether to return a damaged row, too.

        Raises:
            StatusError: NOT_FOUND; DATA_LOSS where the row is damaged.
        """
        live = self.opened(job)
        if live is not None:
            return await live.whole()
        row = await thread_pools.DATABASE.run(self._database.job, job)
        if row is None or not current_caller().owns(row.owner):
            if not current_caller().is_admin:
                audit_hidden()
            raise job_not_found(job)
        if not damaged and (fault := damage(row)):
            raise job_damaged(job, fault)
        return row

    def fault(self, row: JobRow) -> str:
        """Returns the damage of a row that prevents its job from running; empty: none."""
        if row.id in self.live or (row.is_final and not row.damage):
            return ""
        return damage(row)

    async def page(
        self, states: Sequence[str], model: str, after: tuple[float, str] | None, limit: int
    ) -> list[JobRow]:
        """Returns rows of the current caller's jobs, the newest first; of an admin those of all.

        Args:
            states: The states of the jobs; none: all states.
            model: The name of their model; empty: all models.
            after: The place of the job after which the page begins; None: the first page.
            limit: The most rows.
        """
        caller = current_caller()
        owner = None if caller.is_admin else caller.name
        rows = await thread_pools.LISTS.run(self._database.jobs, states, model, after, limit, owner)
        return [self._newest(row) for row in rows]

    def _newest(self, row: JobRow) -> JobRow:
        """Returns a stored row as it is in memory, where its large fields are not kept."""
        live = self.live.get(row.id)
        if live is None:
            return row
        return replace(live.row, spec=row.spec, started=row.started, progress=row.progress)

    async def earlier(self, owner: str, request_id: str) -> JobRow | None:
        """Returns the job of an owner that has a request id; None: none has, or it is empty.

        Raises:
            StatusError: DATA_LOSS where its row is damaged.
        """
        if not request_id:
            return None
        row = await thread_pools.DATABASE.run(self._database.job_of_request, owner, request_id)
        if row is not None and (fault := damage(row)):
            raise job_damaged(row.id, fault)
        return row

    async def unknown(self, job: str) -> bool:
        """Returns whether there is no job with an id."""
        return (
            job not in self.live
            and await thread_pools.DATABASE.run(self._database.job, job) is None
        )


def check_open(row: JobRow, done: str) -> None:
    """Checks that a job is not over.

    Args:
        row: The job.
        done: What is to be done with it, such as "paused".

    Raises:
        StatusError: FAILED_PRECONDITION: it is final.
    """
    if row.is_final:
        verb = "was" if row.state == JobState.CANCELLED else "has"
        raise precondition(f"job {row.id} {verb} {row.state} and cannot be {done}")


def _raise_end(row: JobRow) -> None:
    """Raises the error that ends a watch of a job that has no model or is paused."""
    if row.state == JobState.FAILED:
        raise from_packed(row.error, row.reason)
    if row.state == JobState.CANCELLED and not row.version:
        message = f"job {row.id} was cancelled before it had trained"
        raise StatusError(grpc.StatusCode.CANCELLED, message)
    if row.state == JobState.PAUSED:
        how = "it continues by itself once there is space" if row.waits_for_bytes else "resume it"
        raise aborted(f"job {row.id} is paused: {row.reason}; {how}")
