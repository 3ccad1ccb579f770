"""`Job` is one training job that is not over: its row, its events and those who follow it.

An event is stored before it is sent to anyone. It keeps its number whatever happens to the server,
so a follower that reconnects sees each event once. Where several servers share the database, each
write carries the fence of the job's lease, and waits while the database cannot be reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError

from treadle.server.failures import DatabaseUnavailableError
from treadle.server.jobs.job_events import EventTail
from treadle.server.messages.enums import job_state
from treadle.server.resources import thread_pools
from treadle.server.storage.job_state import JobState
from treadle.server.storage.lease import Lease
from treadle.server.telemetry import metrics
from treadle.server.telemetry.job_trace import JobTrace
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.executors.executor import Worker
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import JobRow

_RETRY_S = 0.5
"""Seconds between two attempts to reach the database."""

_WAITING_BYTES = 1 << 12
"""Bytes of the newest events that are kept of a job that waits: there may be many such jobs."""

CANCELLING = "cancelling on request"
"""The reason in a job's row from the request to cancel it until it has ended."""

PAUSING = "pausing on request"
"""The reason in a running job's row from the request to pause it until it has paused."""

PAUSED_ON_REQUEST = "paused on request"

_CANCELLING = frozenset({CANCELLING, "cancelled on request; its model is being stored"})
"""CANCELLING as this and earlier versions write it."""

Result = TypeVar("Result")


class Job:
    """A job that waits, runs or is paused.

    Args:
        database: Where its row and its events are stored.
        row: Its row.
        lease: The right to run it; None: it needs none.
    """

    def __init__(self, database: Database, row: JobRow, lease: Lease | None = None) -> None:
        self.lease = lease or Lease()
        """The right to run it."""
        self.may_run = True
        """Whether it is to run here as soon as there is a slot."""
        self.row = _without_large(row)
        """The job's row as stored, without its large fields; `whole` has them."""
        self.has_started = bool(row.started)
        """Whether its `started` event was published."""
        self.last_progress = _brief(row.progress)
        """The progress that was published last: its step, and the loss of a validation."""
        self.worker: Worker | None = None
        """The process that trains it; None without one."""
        self.pausing = PAUSED_ON_REQUEST if row.reason == PAUSING else ""
        """Why it is to pause as soon as possible; empty: it is not to pause."""
        self.cancelling = row.reason in _CANCELLING
        """Whether it is being cancelled, also on a request to an earlier server."""
        self.overrun = ""
        """Why it is to end without a request, such as a time limit; empty: it is not to end."""
        self.deciding = asyncio.Lock()
        """Held while a request for the job is being decided."""
        self.requests = 0
        """How many requests are being decided or wait for that."""
        self.space_tries = 0
        """How often it continued for new disk space since its last checkpoint."""
        self.space_try_at = 0.0
        """When it may do so again, by `time.monotonic`."""
        self.crashes = 0
        """How many of its processes died by themselves since the last checkpoint."""
        self.losses = 0
        """How many of its processes died with their machines since the last checkpoint."""
        self.trace = JobTrace(row.id, row.call_id, row.state)
        """Its trace, within this server."""
        self._latest_s = max(row.created_s, row.queued_s, row.started_s or 0.0)
        self._running_since: float | None = None
        self._ran_before_s = row.ran_s
        self._database = database
        self._writing = asyncio.Lock()
        self._news = asyncio.Event()
        self.tail = EventTail()
        """Its newest events."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.row.id

    @property
    def request_reason(self) -> str:
        """The reason in its row while a request to cancel or to pause it is open; else empty."""
        if self.cancelling:
            return CANCELLING
        return PAUSING if self.pausing == PAUSED_ON_REQUEST else ""

    @property
    def leaving(self) -> bool:
        """Whether it needs no further process."""
        return bool(self.cancelling or self.pausing or self.overrun)

    @property
    def ran_s(self) -> float:
        """Seconds that it has run, in all its processes together."""
        since = self._running_since
        return self._ran_before_s + (0.0 if since is None else time.monotonic() - since)

    def time_s(self) -> float:
        """Returns the time of day, in seconds since the epoch; it never goes back for a job."""
        self._latest_s = max(self._latest_s, time.time())
        return self._latest_s

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time within as time in which the job ran."""
        self._running_since = time.monotonic()
        try:
            yield
        finally:
            self._ran_before_s = self.ran_s
            self._running_since = None

    async def publish(self, event: pb.JobEvent, **changes: Any) -> None:
        """Stores an event under the next number, with changes of the row, and wakes followers.

        Args:
            event: The event; its number, job and time are set here.
            changes: New values of the row by the names of its fields.

        Raises:
            OSError: The disk is full; nothing was stored.
            LostLeaseError: The job is not this server's any more; nothing was stored.
        """
        await outlast(self._publish(event, changes))

    async def enter(self, state: JobState, reason: str = "", **changes: Any) -> None:
        """Enters a state and publishes that; arguments as for `publish`."""
        event = pb.JobEvent(state=pb.JobStateChange(state=job_state(state), reason=reason))
        changes = {"waits_for_bytes": 0, **changes}
        await self.publish(event, state=state, reason=reason, ran_s=self.ran_s, **changes)

    async def change(self, **changes: Any) -> None:
        """Changes the row without an event, unless the job is final by then."""
        await outlast(self._change(changes))

    async def reserve_version(self) -> int:
        """Reserves the next version of its model, among the jobs of all servers.

        Returns:
            The version, which its row has in `claim`.

        Raises:
            LostLeaseError: The job is not this server's any more.
        """
        reserve = partial(
            self._database.reserve_version, self.id, self.row.model, fence=self.lease.fence
        )
        version = await self._patiently(lambda: thread_pools.DATABASE.run(reserve))
        self._note(claim=version)
        return version

    async def whole(self) -> JobRow:
        """Returns its row with all fields, read from the database."""
        row = await thread_pools.DATABASE.run(self._database.job, self.id)
        return self.row if row is None else row

    async def whole_later(self) -> JobRow:
        """Returns its row as `whole`, as soon as the database can be reached.

        Raises:
            LostLeaseError: The job is not this server's any more.
        """
        row = await self._patiently(self.whole)
        self.lease.check(self.id)  # it may be lost since it was asked for
        return row

    def news(self) -> asyncio.Event:
        """Returns an asyncio event that is set at the next event of the job."""
        return self._news

    def wake_followers(self) -> None:
        """Wakes all who wait for `news`."""
        self._news.set()
        self._news = asyncio.Event()

    async def _publish(self, event: pb.JobEvent, changes: dict[str, Any]) -> None:
        async with self._writing:
            now = self.time_s()
            event.event_time.FromNanoseconds(round(now * 1e9))
            data = event.SerializeToString()
            number = await self._store(data, now, changes)
            self._note(last_sequence=number, **changes)
            if "state" in changes:
                self.trace.enter(self.row.state, is_final=self.row.is_final)
                if self.row.is_final:
                    metrics.JOBS_ENDED.labels(self.row.state).inc()
            waits = self.row.state in (JobState.QUEUED, JobState.PAUSED)
            self.tail.add(_numbered(data, self.id, number), _WAITING_BYTES if waits else None)
        self.wake_followers()

    async def _change(self, changes: dict[str, Any]) -> None:
        async with self._writing:
            if self.row.is_final:
                return
            write = partial(self._database.update_job, self.id, fence=self.lease.fence, **changes)
            # Repeated where its answer was lost, which changes nothing.
            await self._patiently(lambda: thread_pools.DATABASE.run(write))
            self._note(**changes)

    async def _store(self, data: bytes, now: float, changes: dict[str, Any]) -> int:
        """Stores an event and returns its number; once, even where the answer to that is lost."""
        fence = self.lease.fence
        after = None if fence is None else self.row.last_sequence
        write = partial(
            self._database.append_event,
            *(self.id, data, now),
            fence=fence,
            after=after,
            **changes,
        )
        return await self._patiently(lambda: thread_pools.DATABASE.run(write))

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Returns what work on the database returns; it is tried again while that is out of reach.

        Raises:
            DatabaseUnavailableError: It cannot be reached, and the server is closing.
            LostLeaseError: The job is not this server's any more.
        """
        while True:
            self.lease.check(self.id)
            try:
                return await work()
            except DatabaseUnavailableError:
                if not self.lease.is_patient:
                    raise
            await asyncio.sleep(_RETRY_S)

    def _note(self, **changes: Any) -> None:
        """Applies changes that were stored to the row in memory."""
        self.has_started |= bool(changes.get("started"))
        if "progress" in changes:
            self.last_progress = _brief(changes["progress"])
        self.row = _without_large(replace(self.row, **changes))


def _without_large(row: JobRow) -> JobRow:
    """Returns a row without the fields that may take megabytes."""
    return replace(row, spec=b"", config="", files="", started=b"", progress=b"")


def _brief(progress: bytes) -> pb.TrainingProgress:
    """Returns the part of a `progress` message that shows whether another one is newer."""
    whole = pb.TrainingProgress.FromString(progress)
    brief = pb.TrainingProgress(step=whole.step)
    if whole.HasField("valid_loss"):
        brief.valid_loss = whole.valid_loss
    return brief


def queued_event(time_s: float, reason: str = "") -> pb.JobEvent:
    """Returns the first event of a job, which is stored together with its row.

    Args:
        time_s: When the job was made, in seconds since the epoch.
        reason: Why it waits; may be empty.
    """
    event = pb.JobEvent(state=pb.JobStateChange(state=pb.JOB_STATE_QUEUED, reason=reason))
    event.event_time.FromNanoseconds(round(time_s * 1e9))
    return event


async def stored_events(database: Database, job: str, after: int) -> list[pb.JobEvent]:
    """Returns the next stored events of a job after number `after`; none at their end."""
    rows = await thread_pools.EVENTS.run(database.events, job, after)
    return [_numbered(data, job, number) for number, _, data in rows]


def _numbered(data: bytes, job: str, number: int) -> pb.JobEvent:
    """Returns a stored event with its number and job."""
    event = _event(data)
    event.sequence = number
    event.job = job
    return event


def _event(data: Any) -> pb.JobEvent:
    """Returns a stored event; an empty one where it cannot be read."""
    try:
        return pb.JobEvent.FromString(data)
    except (DecodeError, TypeError):
        return pb.JobEvent()


async def outlast(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a short coroutine to its end, even where the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
