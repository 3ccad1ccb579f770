"""`LeaseTable` decides which server runs which job, where several share one database.

A server may work on a job while it has the job's lease. A lease ends at a time of the database's
clock, unless it is renewed before. Each new lease of a job has a fence, a number above all earlier
ones of the job. A write with the fence of an earlier lease fails, so that a server that was stopped
for a while cannot overwrite what its successor has written.
(M. Kleppmann, How to do distributed locking, 2016.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from treadle.server.storage.database.change import QUEUED
from treadle.server.storage.job_state import JobState
from treadle.server.storage.schema import SELECT, UNFINISHED, BacklogRow, JobRow, read_row

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine, Statements

_TO_RUN = f"state IN ('{JobState.QUEUED}', '{JobState.RUNNING}')"
"""The condition that a job is to run: it waits, or its server may have died."""


def _unlimited(owner: str) -> int | None:
    return None


class LeaseTable:
    """The leases of all jobs, which are columns of their rows.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire_next(
        self,
        replica: str,
        lease_s: float,
        most_running: Callable[[str], int | None] = _unlimited,
        skipped: Collection[str] = (),
        *,
        is_patient: bool = False,
    ) -> JobRow | None:
        """Takes the lease of the job that is to run next.

        This is a job that waits or runs and whose lease is free or over. The owner with the fewest
        jobs under a lease comes first, and among those the job that entered the queue first.

        Args:
            replica: The id of the server that is to have the lease.
            lease_s: Seconds after which the lease ends.
            most_running: Returns how many jobs of an owner may run at once; None: any number.
            skipped: The ids of jobs that this server does not take.
            is_patient: Whether to leave leases alone that are over and were not given up, since
                nobody could renew them lately.

        Returns:
            The job with its new fence; None where no job may run.
        """
        now = self._engine.now
        free = "holder = ''" if is_patient else f"lease_until_s < {now}"
        held = "holder != ''" if is_patient else f"lease_until_s >= {now}"
        left_out = f" AND id NOT IN ({', '.join('?' * len(skipped))})" if skipped else ""
        waits = f"{_TO_RUN} AND {free}{left_out}"
        # Most looks find nothing, and need not wait for each other.
        if not self._engine.rows(f"SELECT 1 FROM jobs WHERE {waits} LIMIT 1", *skipped):
            return None
        # One at a time, so that two servers together do not exceed the quota of an owner.
        with self._engine.transaction("acquire") as transaction:
            first = transaction.rows(
                "WITH waiting AS (SELECT id, owner, queued_s, ROW_NUMBER() OVER "
                "(PARTITION BY owner ORDER BY queued_s, id) AS place FROM jobs "
                f"WHERE {waits}), "
                "held AS (SELECT owner, COUNT(*) AS running FROM jobs "
                f"WHERE {_TO_RUN} AND {held} GROUP BY owner) "
                "SELECT waiting.id, waiting.owner, COALESCE(held.running, 0) AS others "
                "FROM waiting LEFT JOIN held ON held.owner = waiting.owner WHERE place = 1 "
                "ORDER BY others, waiting.queued_s, waiting.id",
                *skipped,
            )
            for job, owner, running in first:
                most = most_running(owner)
                if most is None or running < most:
                    return self._take(transaction, replica, job, lease_s)
        return None

    def acquire_job(self, replica: str, job: str, lease_s: float) -> JobRow | None:
        """Takes the lease of a job that is not over, if it is free or over.

        Args:
            replica: The id of the server that is to have the lease.
            job: The job's id.
            lease_s: Seconds after which the lease ends.

        Returns:
            The job with its new fence; None where somebody has its lease, it is over, or there is
            no such job.
        """
        with self._engine.transaction() as transaction:
            return self._take(transaction, replica, job, lease_s)

    def renew(self, replica: str, fences: Mapping[str, int], lease_s: float) -> set[str]:
        """Renews leases. One that is over is renewed as well, if nobody has taken it.

        Args:
            replica: The id of the server that has them.
            fences: The fence of each lease by the id of its job.
            lease_s: Seconds from now after which they end.

        Returns:
            The ids of the jobs whose leases are lost.
        """
        if not fences:
            return set()
        pairs = ", ".join(["(?, ?)"] * len(fences))
        values = [value for pair in fences.items() for value in pair]
        renewed = self._engine.rows(
            f"UPDATE jobs SET lease_until_s = {self._engine.now} + ? "
            f"WHERE holder = ? AND (id, fence) IN (VALUES {pairs}) RETURNING id",
            *(lease_s, replica, *values),
        )
        return {*fences} - {job for (job,) in renewed}

    def release(self, job: str, fence: int) -> None:
        """Gives up a lease, so that another server may take it at once.

        Args:
            job: The job's id.
            fence: The fence of the lease; nothing happens if it is lost.
        """
        with self._engine.transaction() as transaction:
            # With a new fence, so that what the server still writes fails from now on.
            released = transaction.rows(
                "UPDATE jobs SET holder = '', lease_until_s = 0.0, fence = fence + 1 "
                f"WHERE id = ? AND fence = ? RETURNING {_TO_RUN}",
                *(job, fence),
            )
            if any(waits for (waits,) in released):
                transaction.notify(QUEUED)

    def backlog(self) -> list[BacklogRow]:
        """Returns every job that is not over in brief, the one queued first before the others."""
        rows = self._engine.rows(
            "SELECT id, owner, model, state, waits_for_bytes FROM jobs "
            f"WHERE {UNFINISHED} ORDER BY queued_s, id"
        )
        return [BacklogRow(*row) for row in rows]

    def take_duty(self, name: str, replica: str, lease_s: float) -> bool:
        """Takes or keeps a duty that one server at a time has, such as removing old jobs.

        Args:
            name: The name of the duty.
            replica: The id of the server that is to have it.
            lease_s: Seconds from now after which another server may take it.

        Returns:
            Whether the server has the duty now.
        """
        now = self._engine.now
        return bool(
            self._engine.run(
                f"INSERT INTO duties VALUES (?, ?, {now} + ?) ON CONFLICT (name) DO UPDATE "
                "SET holder = excluded.holder, until_s = excluded.until_s "
                f"WHERE duties.holder = excluded.holder OR duties.until_s < {now}",
                *(name, replica, lease_s),
            )
        )

    def _take(
        self, transaction: Statements, replica: str, job: str, lease_s: float
    ) -> JobRow | None:
        now = self._engine.now
        is_taken = transaction.run(
            f"UPDATE jobs SET holder = ?, fence = fence + 1, lease_until_s = {now} + ? "
            f"WHERE id = ? AND lease_until_s < {now} AND {UNFINISHED}",
            *(replica, lease_s, job),
        )
        if not is_taken:
            return None
        # RETURNING would give whole numbers for some times: SQLite stores 1.0 as 1.
        [row] = transaction.rows(f"{SELECT} WHERE id = ?", job)
        return read_row(row)
