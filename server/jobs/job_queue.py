"""`JobQueue` decides which jobs wait and which run, and holds the task of each job that does not.

A job that runs holds a slot. A job whose end is being recorded holds none, since that may take
long or wait for disk space.

Callers take turns: a slot goes to the caller that has the fewest jobs running, and among those to
the one whose last start is longest ago. The jobs of one caller run in the order of the queue.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treadle.server.errors import StatusError, exhausted
from treadle.server.storage.job_state import JobState

if TYPE_CHECKING:
    from treadle.server.access.quota_book import QuotaBook
    from treadle.server.jobs.job import Job

RETRY_S = 5.0
"""Seconds after which a caller may find a place in the queue."""


@dataclass(frozen=True)
class JobLimits:
    """How many jobs there may be."""

    slots: int
    """Jobs that may run at once; 0: this server runs none."""
    queue: int
    """Jobs that may wait, those still uploading included."""
    uploads: int
    """Jobs that may upload at once."""
    restarts: int
    """How often in a row a job continues after its process died without a new checkpoint."""


class JobQueue:
    """The jobs of one server that wait, run or are about to end.

    Args:
        jobs: The jobs that are not over by their ids, in the order of the queue; shared.
        limits: How many jobs there may be.
        closing: Done when the server takes no more jobs; holds the error for callers.
        run: Brings a job to its end, or to where it waits again; never raises.
        running_changed: Called with the jobs that hold a slot whenever these may have changed.
        left: Called with a job that neither runs nor is about to end any more.
        quotas: Says how many jobs of a caller may wait and run.
    """

    def __init__(
        self,
        jobs: dict[str, Job],
        limits: JobLimits,
        closing: asyncio.Future[StatusError],
        run: Callable[[Job], Coroutine[Any, Any, None]],
        running_changed: Callable[[list[Job]], None],
        left: Callable[[Job], None],
        quotas: QuotaBook,
    ) -> None:
        self._jobs = jobs
        self._limits = limits
        self._closing = closing
        self._run = run
        self._running_changed = running_changed
        self._left = left
        self._quotas = quotas
        self._starts = itertools.count(1)
        self._last_start: dict[str, int] = {}
        """The number of the last start of each caller that has jobs here."""
        self._is_open = False
        self._uploading = 0
        self._comparing = 0
        """Uploads that are only compared with the corpora of existing jobs."""
        self._running: dict[Job, asyncio.Task[None]] = {}
        """Jobs that hold a slot."""
        self._ending: dict[Job, asyncio.Task[None]] = {}
        """Jobs whose end is being recorded."""

    @property
    def running(self) -> list[Job]:
        """The jobs that hold a slot."""
        return list(self._running)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that wait for a slot, in the order in which they get one."""
        jobs = self._free_jobs()
        # With one slot, the job that runs now is over before the next one begins.
        mine = Counter(job.row.owner for job in self._running if self._limits.slots > 1)
        turns: dict[Job, tuple[int, int]] = {}
        for job in jobs:
            owner = job.row.owner
            turns[job] = (mine[owner], self._last_start.get(owner, 0))
            mine[owner] += 1
        return sorted(jobs, key=lambda job: turns[job])

    def _free_jobs(self) -> list[Job]:
        """Returns the jobs that wait for a slot, the oldest first."""
        busy = self._running.keys() | self._ending.keys()
        jobs = [job for job in self._jobs.values() if job not in busy]
        free = [
            job for job in jobs if job.may_run and not (job.cancelling or job.deciding.locked())
        ]
        # A row that says "running" was left so by an earlier server; the job does not run.
        return [job for job in free if job.row.state in (JobState.QUEUED, JobState.RUNNING)]

    @property
    def running_count(self) -> int:
        """Jobs that hold a slot."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """How many more jobs could run now."""
        if not self._is_open or self._closing.done():
            return 0
        return max(0, self._limits.slots - self.running_count)

    def models(self) -> list[str]:
        """Returns the names of the models that unfinished jobs are to make, one for each job."""
        return [job.row.model for job in self._jobs.values() if not job.row.is_final]

    @property
    def waiting_count(self) -> int:
        """Jobs that wait for a slot or for the rest of their corpus."""
        return self._uploading + len(self.waiting)

    def waiting_of(self, owner: str) -> int:
        """Returns how many jobs of a caller wait or are paused."""
        busy = self._running.keys() | self._ending.keys()
        return sum(job.row.owner == owner and job not in busy for job in self._jobs.values())

    def running_of(self, owner: str) -> int:
        """Returns how many jobs of a caller hold a slot."""
        return sum(job.row.owner == owner for job in self._running)

    def is_running(self, job: Job) -> bool:
        """Returns whether a job holds a slot."""
        return job in self._running

    def is_ending(self, job: Job) -> bool:
        """Returns whether a job's end is being recorded."""
        return job in self._ending

    def tasks(self) -> list[asyncio.Task[None]]:
        """Returns the tasks of the jobs that run or whose end is being recorded."""
        return [*self._running.values(), *self._ending.values()]

    def tasks_of(self, job: Job) -> list[asyncio.Task[None]]:
        """Returns the task of a job, or nothing where it neither runs nor ends."""
        return [tasks[job] for tasks in (self._running, self._ending) if job in tasks]

    def tasks_of_id(self, job: str) -> list[asyncio.Task[None]]:
        """Returns the tasks of all jobs with an id: a job may come back while it still leaves."""
        both = (self._running, self._ending)
        return [task for tasks in both for known, task in tasks.items() if known.id == job]

    @contextmanager
    def admit(self, elsewhere: int = 0) -> Iterator[None]:
        """Holds a place in the queue while a corpus is uploaded.

        Args:
            elsewhere: Jobs that wait and are not in the memory of this server.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: all are taken; UNAVAILABLE: the server is closing.
        """
        self._check_uploads()
        taken = self.running_count + self.waiting_count + elsewhere
        if taken >= self._limits.slots + self._limits.queue:
            message = f"the training queue is full: at most {self._limits.queue} jobs wait"
            raise exhausted(message, RETRY_S)
        self._uploading += 1
        try:
            yield
        finally:
            self._uploading -= 1

    @contextmanager
    def admit_repeated(self) -> Iterator[None]:
        """Holds a place while the corpus of an existing job is uploaded once more.

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
        if self._closing.done():
            raise self._closing.result()
        count = self._uploading + self._comparing
        if count >= self._limits.uploads:
            message = f"{count} corpora are being uploaded, which is as many as the server takes"
            raise exhausted(message, RETRY_S)

    def position(self, job: str) -> int:
        """Returns how many jobs are before one in the queue; 0 where it does not wait."""
        return self.positions().get(job, 0)

    def positions(self) -> dict[str, int]:
        """Returns how many jobs are before each one that waits, by their ids."""
        return {job.id: place for place, job in enumerate(self.waiting)}

    def open(self) -> None:
        """Begins to run jobs."""
        self._is_open = True
        self.schedule()

    def stop(self) -> None:
        """Starts no job any more."""
        self._is_open = False

    def schedule(self) -> None:
        """Starts jobs while there are slots."""
        if not self._is_open or self._closing.done():
            return
        free = self._limits.slots - self.running_count
        for job in self.waiting if free > 0 else ():
            if free <= 0:
                break
            if self._may_run(job.row.owner):
                self._running[job] = asyncio.create_task(self._run_to_end(job))
                self._last_start[job.row.owner] = next(self._starts)
                free -= 1
        self._running_changed(self.running)

    def _may_run(self, owner: str) -> bool:
        """Returns whether the quota of a caller allows one more job to run."""
        limit = self._quotas.quotas_of(owner).jobs_running
        return limit is None or self.running_of(owner) < limit

    def _forget_starts(self) -> None:
        """Forgets the starts of callers without jobs, now and then."""
        if len(self._last_start) > 2 * len(self._jobs) + 100:
            owners = {job.row.owner for job in self._jobs.values()}
            self._last_start = {o: n for o, n in self._last_start.items() if o in owners}

    def move_to_back(self, job: Job) -> None:
        """Makes a job the last one in the queue."""
        self._jobs[job.id] = self._jobs.pop(job.id)

    def free_slot(self, job: Job) -> None:
        """Lets the next job run while the end of this one is recorded."""
        if job in self._running:
            self._ending[job] = self._running.pop(job)
            self.schedule()

    def begin_end(self, job: Job, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins to end a job that does not run.

        Args:
            job: The job.
            end: Records its end; never raises.
        """
        self._ending[job] = asyncio.create_task(self._until_ended(job, end))

    async def _run_to_end(self, job: Job) -> None:
        try:
            await self._run(job)
        finally:
            self._running.pop(job, None)
            self._ending.pop(job, None)
            self._left(job)
            self._forget_starts()
            self.schedule()

    async def _until_ended(self, job: Job, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await end()
        finally:
            del self._ending[job]
            self._left(job)
