"""`JobSimulation` plays jobs, leases and failing machines, event by event.

The rules are the server's: a machine with a free slot looks at the queue at intervals and at the
news of a job, takes the job that was queued first and whose lease is free or over, renews its
lease at intervals, and writes checkpoints and the end of a job with the fence of its lease. The
database refuses a write with an earlier fence. A machine that fails forgets all it had; one that
stands still continues later and believes that its job is still its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]

_TINY_S = 1e-9
"""Times that differ by less are the same."""


@dataclass
class JobRow:
    """A job as the database has it."""

    number: int
    """Its place in the order of arrival."""
    work_s: float
    """Seconds of work that it needs."""
    queued_s: float
    """When it arrived."""
    saved_s: float = 0.0
    """Seconds of work in its last checkpoint."""
    fence: int = 0
    """The number of its last lease."""
    lease_until_s: float = -math.inf
    """When that lease ends."""
    started_s: float = math.nan
    """When it was first taken."""
    ended_s: float = math.nan
    """When it ended."""
    ends: int = 0
    """How often an end was written."""


@dataclass
class Record:
    """What happened in a simulation."""

    waits_s: list[float] = field(default_factory=list)
    """Of each job, from its arrival until it was first taken."""
    stretches_s: list[float] = field(default_factory=list)
    """Of each job, from when it was first taken to its end."""
    works_s: list[float] = field(default_factory=list)
    """Of each job that ended, the work that it needed."""
    takeovers_s: list[float] = field(default_factory=list)
    """Of each failure under a job, the time until another machine took it."""
    losses_s: list[float] = field(default_factory=list)
    """Of each failure under a job, the work since its last checkpoint."""
    renewals: int = 0
    """Statements that renewed a lease."""
    running_s: float = 0.0
    """Seconds of all machines together in which they held a job."""
    refused_writes: int = 0
    """Writes that the database refused for their fence."""
    stale_writes: int = 0
    """Writes of machines that had lost the lease, and that the database took: none with fencing."""


class StandstillError(Exception):
    """The cause of an interruption: the machine stands still for a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class JobSettings:
    """What is simulated."""

    machines: int
    """Machines with one slot each."""
    jobs: int
    """Jobs that arrive; the simulation ends when all have ended."""
    job_s: float
    """Mean seconds of work, which are distributed exponentially."""
    arrivals_per_s: Callable[[float], float]
    """Jobs a second that arrive, by the time."""
    most_arrivals_per_s: float
    """The largest value of that."""
    lifetime_s: float = math.inf
    """Mean seconds until a machine fails, distributed exponentially."""
    repair_s: float = 60.0
    """Seconds until it is back."""
    pause_interval_s: float = math.inf
    """Mean seconds until a machine stands still."""
    pause_s: float = 0.0
    """For how long it does."""
    lease_s: float = 10.0
    """Seconds after which a lease ends that is not renewed."""
    renewal_interval_s: float = 2.5
    """Seconds between two renewals."""
    look_interval_s: float = 1.0
    """Seconds between two looks at the queue of a machine with its slot free."""
    checkpoint_interval_s: float = 10.0
    """Seconds between two checkpoints."""
    fencing: bool = True
    """Whether the database compares fences; without, for tests, it takes every write."""
    seed: int = 0
    """Of the random numbers."""


class JobSimulation:
    """A fleet that runs jobs.

    Args:
        settings: What is simulated.
    """

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self.record = Record()
        self.rows: list[JobRow] = []
        """Every job that has arrived."""
        self._open: dict[int, JobRow] = {}
        self._random = random.Random(settings.seed)
        self._clock = simpy.Environment()
        self._news = self._clock.event()
        self._all_ended = self._clock.event()
        self._failed_s: dict[int, float] = {}

    def run(self) -> Record:
        """Plays until every job has ended; returns what happened."""
        self._clock.process(self._arrive())
        for _ in range(self.settings.machines):
            machine = self._clock.process(self._machine())
            if math.isfinite(self.settings.lifetime_s):
                self._clock.process(self._fail(machine))
            if math.isfinite(self.settings.pause_interval_s):
                self._clock.process(self._pause(machine))
        self._clock.run(until=self._all_ended)
        return self.record

    # The world.

    def _arrive(self) -> Steps:
        """Lets jobs arrive: a Poisson process whose rate changes, by thinning (Lewis, 1979)."""
        settings = self.settings
        while len(self.rows) < settings.jobs:
            yield self._clock.timeout(self._random.expovariate(settings.most_arrivals_per_s))
            rate = settings.arrivals_per_s(self._clock.now)
            if self._random.random() * settings.most_arrivals_per_s > rate:
                continue
            work_s = self._random.expovariate(1 / settings.job_s)
            row = JobRow(len(self.rows), work_s, self._clock.now)
            self.rows.append(row)
            self._open[row.number] = row
            self._tell()

    def _fail(self, machine: simpy.Process) -> Steps:
        while True:
            yield self._clock.timeout(self._random.expovariate(1 / self.settings.lifetime_s))
            machine.interrupt(None)
            yield self._clock.timeout(self.settings.repair_s)

    def _pause(self, machine: simpy.Process) -> Steps:
        while True:
            yield self._clock.timeout(self._random.expovariate(1 / self.settings.pause_interval_s))
            machine.interrupt(StandstillError(self.settings.pause_s))
            yield self._clock.timeout(self.settings.pause_s)

    # A machine.

    def _machine(self) -> Steps:
        """Takes one job after the other; an interruption without a cause is a failure."""
        while True:
            try:
                yield from self._work()
            except simpy.Interrupt as interruption:
                if isinstance(interruption.cause, StandstillError):
                    yield from self._stand_still(interruption.cause.seconds)
                else:
                    yield from self._stand_still(self.settings.repair_s)

    def _stand_still(self, seconds: float) -> Steps:
        """Waits; further interruptions meanwhile change nothing."""
        end_s = self._clock.now + seconds
        while self._clock.now < end_s - _TINY_S:
            try:
                yield self._clock.timeout(end_s - self._clock.now)
            except simpy.Interrupt:
                continue

    def _work(self) -> Steps:
        # Machines did not start together, so that neither do their looks.
        yield self._clock.timeout(self._random.uniform(0, self.settings.look_interval_s))
        while True:
            row = self._acquire()
            if row is not None:
                yield from self._run(row, row.fence)
                continue
            look = self._clock.timeout(self.settings.look_interval_s)
            yield self._clock.any_of([look, self._news])

    def _run(self, row: JobRow, fence: int) -> Steps:
        """Runs a job until it ends, or until the database refuses a write."""
        settings = self.settings
        began_s = self._clock.now
        done_s = row.saved_s
        renewal_s = began_s + settings.renewal_interval_s
        checkpoint_s = began_s + settings.checkpoint_interval_s
        try:
            while True:
                end_s = self._clock.now + row.work_s - done_s
                pause_s = min(renewal_s, checkpoint_s, end_s) - self._clock.now
                since_s = self._clock.now
                try:
                    yield self._clock.timeout(max(0.0, pause_s))
                except simpy.Interrupt as interruption:
                    done_s += self._clock.now - since_s
                    if not isinstance(interruption.cause, StandstillError):
                        self._note_failure(row, fence, done_s)
                        raise
                    yield from self._stand_still_or_fail(
                        interruption.cause.seconds, row, fence, done_s
                    )
                    continue
                done_s += self._clock.now - since_s
                now = self._clock.now + _TINY_S
                if done_s >= row.work_s - _TINY_S:
                    if self._write(row, fence):
                        self._end(row)
                    return
                if now >= checkpoint_s:
                    if not self._write(row, fence):
                        return
                    row.saved_s = done_s
                    checkpoint_s = self._clock.now + settings.checkpoint_interval_s
                if now >= renewal_s:
                    if not self._renew(row, fence):
                        return
                    renewal_s = self._clock.now + settings.renewal_interval_s
        finally:
            self.record.running_s += self._clock.now - began_s

    def _stand_still_or_fail(self, seconds: float, row: JobRow, fence: int, done_s: float) -> Steps:
        end_s = self._clock.now + seconds
        while self._clock.now < end_s - _TINY_S:
            try:
                yield self._clock.timeout(end_s - self._clock.now)
            except simpy.Interrupt as interruption:
                if not isinstance(interruption.cause, StandstillError):
                    self._note_failure(row, fence, done_s)
                    raise

    def _note_failure(self, row: JobRow, fence: int, done_s: float) -> None:
        if row.fence == fence:
            self.record.losses_s.append(done_s - row.saved_s)
            self._failed_s[row.number] = self._clock.now

    # The database.

    def _tell(self) -> None:
        """Wakes every machine that has a slot free."""
        self._news.succeed()
        self._news = self._clock.event()

    def _acquire(self) -> JobRow | None:
        now = self._clock.now
        for row in self._open.values():  # in the order of arrival
            if row.lease_until_s < now:
                break
        else:
            return None
        row.fence += 1
        row.lease_until_s = now + self.settings.lease_s
        if math.isnan(row.started_s):
            row.started_s = now
            self.record.waits_s.append(now - row.queued_s)
        failed_s = self._failed_s.pop(row.number, None)
        if failed_s is not None:
            self.record.takeovers_s.append(now - failed_s)
        return row

    def _renew(self, row: JobRow, fence: int) -> bool:
        self.record.renewals += 1
        if row.fence != fence or row.ends:
            return False
        row.lease_until_s = self._clock.now + self.settings.lease_s
        return True

    def _write(self, row: JobRow, fence: int) -> bool:
        """Returns whether the database takes a write under a lease."""
        if row.fence == fence and not row.ends:
            return True
        if self.settings.fencing:
            self.record.refused_writes += 1
            return False
        self.record.stale_writes += 1
        return True

    def _end(self, row: JobRow) -> None:
        row.ends += 1
        row.ended_s = self._clock.now
        self._open.pop(row.number, None)
        self.record.stretches_s.append(row.ended_s - row.started_s)
        self.record.works_s.append(row.work_s)
        everything = len(self.rows) == self.settings.jobs and not self._open
        if everything and not self._all_ended.triggered:
            self._all_ended.succeed()
