"""One training job that is not over: its row, its events, and who follows it.

Everything about a job is on disk before anybody hears of it: an event has its number for good,
whatever happens to the server, and a follower that comes back sees each of them once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError

from treadle.server.jobs.job_events import EventTail
from treadle.server.messages.enums import job_state
from treadle.server.resources import thread_pools
from treadle.server.storage.job_state import JobState
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.worker_pool import Worker
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import JobRow

_WAITING_BYTES = 1 << 12
"""What the newest events of a job that waits may take: there may be many such jobs."""

CANCELLING = "cancelling on request"
"""The reason that a job's row gives from its cancellation until it has ended."""

PAUSING = "pausing on request"
"""The reason that a running job's row gives from the request to pause until it has paused."""

PAUSED_ON_REQUEST = "paused on request"

_CANCELLING = frozenset({CANCELLING, "cancelled on request; its model is being stored"})
"""CANCELLING as this version and earlier ones write it."""

Result = TypeVar("Result")


class Job:
    """A job that waits, runs or is paused.

    Args:
        database: Where its row and its events are.
        row: What it is at.
    """

    def __init__(self, database: Database, row: JobRow) -> None:
        self.row = _without_large(row)
        """The job's row as it is in the database, but its large fields are empty: see `whole`."""
        self.has_started = bool(row.started)
        """Whether its start was told."""
        self.last_progress = _brief(row.progress)
        """How far it has come as it was told last: the step, and the loss of a validation."""
        self.worker: Worker | None = None
        """The process that trains it, while there is one."""
        self.pausing = PAUSED_ON_REQUEST if row.reason == PAUSING else ""
        """Why it is to pause, as soon as it can; empty where it is not."""
        self.cancelling = row.reason in _CANCELLING
        """True once it was cancelled; also of a job that an earlier server was to cancel."""
        self.overrun = ""
        """Why it is to end though nobody asked for that; empty where it is not."""
        self.deciding = asyncio.Lock()
        """Held while somebody decides what becomes of it."""
        self.space_tries = 0
        """How often it went on by itself since its last checkpoint, because there was space."""
        self.space_try_at = 0.0
        """When it may do so again, by the clock that never jumps."""
        self.crashes = 0
        """Processes that died since the last checkpoint."""
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
        """The reason that its row gives while somebody waits for it to end or to pause."""
        if self.cancelling:
            return CANCELLING
        return PAUSING if self.pausing == PAUSED_ON_REQUEST else ""

    @property
    def leaving(self) -> bool:
        """Whether it needs no process any more."""
        return bool(self.cancelling or self.pausing or self.overrun)

    @property
    def ran_s(self) -> float:
        """How long it has run, all its processes together."""
        since = self._running_since
        return self._ran_before_s + (0.0 if since is None else time.monotonic() - since)

    def time_s(self) -> float:
        """Returns the time of day, or the last one of this job where the clock went back."""
        self._latest_s = max(self._latest_s, time.time())
        return self._latest_s

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time as time in which the job ran."""
        self._running_since = time.monotonic()
        try:
            yield
        finally:
            self._ran_before_s, self._running_since = self.ran_s, None

    async def publish(self, event: pb.JobEvent, **changes: Any) -> None:
        """Stores an event with the next number, together with changes of the row; then tells.

        Raises:
            OSError: The disk is full; nothing was stored.
        """
        await outlast(self._publish(event, changes))

    async def enter(self, state: JobState, reason: str = "", **changes: Any) -> None:
        """Comes into a state, and tells so."""
        event = pb.JobEvent(state=pb.JobStateChange(state=job_state(state), reason=reason))
        changes = {"waits_for_bytes": 0, **changes}
        await self.publish(event, state=state, reason=reason, ran_s=self.ran_s, **changes)

    async def change(self, **changes: Any) -> None:
        """Changes the row without an event; that of a job which is over by then stays as it is."""
        await outlast(self._change(changes))

    async def whole(self) -> JobRow:
        """Returns its row with all fields, from the database; jobs that wait do not keep them."""
        row = await thread_pools.DATABASE.run(self._database.job, self.id)
        return self.row if row is None else row

    def news(self) -> asyncio.Event:
        """Returns what is set at the next event."""
        return self._news

    def tell(self) -> None:
        """Wakes all who follow."""
        self._news.set()
        self._news = asyncio.Event()

    async def _publish(self, event: pb.JobEvent, changes: dict[str, Any]) -> None:
        async with self._writing:
            now = self.time_s()
            event.event_time.FromNanoseconds(round(now * 1e9))
            data = event.SerializeToString()
            write = self._database.append_event
            number = await thread_pools.DATABASE.run(write, self.id, data, now, **changes)
            self._note(last_sequence=number, **changes)
            waits = self.row.state in (JobState.QUEUED, JobState.PAUSED)
            self.tail.add(_numbered(data, self.id, number), _WAITING_BYTES if waits else None)
        self.tell()

    async def _change(self, changes: dict[str, Any]) -> None:
        async with self._writing:
            if self.row.is_final:
                return
            await thread_pools.DATABASE.run(self._database.update_job, self.id, **changes)
            self._note(**changes)

    def _note(self, **changes: Any) -> None:
        """Takes over what was stored."""
        self.has_started |= bool(changes.get("started"))
        if "progress" in changes:
            self.last_progress = _brief(changes["progress"])
        self.row = _without_large(replace(self.row, **changes))


def _without_large(row: JobRow) -> JobRow:
    """Returns a row without what may be megabytes: a spec is as large as a message may be."""
    return replace(row, spec=b"", config="", files="", started=b"", progress=b"")


def _brief(progress: bytes) -> pb.TrainingProgress:
    """Returns what of a `progress` message tells it from an earlier one."""
    whole = pb.TrainingProgress.FromString(progress)
    brief = pb.TrainingProgress(step=whole.step)
    if whole.HasField("valid_loss"):
        brief.valid_loss = whole.valid_loss
    return brief


def queued_event(time_s: float, reason: str = "") -> pb.JobEvent:
    """Returns the first event of a job, which is stored together with its row."""
    event = pb.JobEvent(state=pb.JobStateChange(state=pb.JOB_STATE_QUEUED, reason=reason))
    event.event_time.FromNanoseconds(round(time_s * 1e9))
    return event


async def stored_events(database: Database, job: str, after: int) -> list[pb.JobEvent]:
    """Returns the next events of a job that are stored, after number `after`; none at their end."""
    rows = await thread_pools.EVENTS.run(database.events, job, after)
    return [_numbered(data, job, number) for number, _, data in rows]


def _numbered(data: bytes, job: str, number: int) -> pb.JobEvent:
    """Returns a stored event as it is told."""
    event = _event(data)
    event.sequence = number
    event.job = job
    return event


def _event(data: Any) -> pb.JobEvent:
    """Returns a stored event; one that cannot be read says nothing but its number."""
    try:
        return pb.JobEvent.FromString(data)
    except (DecodeError, TypeError):
        return pb.JobEvent()


async def outlast(work: Coroutine[Any, Any, Result]) -> Result:
    """Does a short piece of work to its end, even where the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
