"""`RequestTable` keeps in the row of a job what other servers ask of the server that has it.

There is one request at a time. A newer one replaces it, except that nothing replaces a request to
cancel the job. Only the request that was heeded is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.server.storage.database.change import Change, ChangeKind
from treadle.server.storage.database.job_changes import check_fence
from treadle.server.storage.schema import UNFINISHED

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine

CANCEL = "cancel"
PAUSE = "pause"
RESUME = "resume"
"""What a server may ask of the server that has a job."""


class RequestTable:
    """The requests for all jobs, each in a column of the job's row.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_request(self, job: str, fence: int, request: str) -> bool:
        """Leaves a request for the server that has a job, and wakes that server.

        Args:
            job: The job's id.
            fence: The fence of that server's lease.
            request: CANCEL, PAUSE or RESUME.

        Returns:
            Whether it was left; if not, the job is being cancelled.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: It is not that server's any more.
            DatabaseError: The database failed, or cannot be reached.
        """
        with self._engine.transaction() as transaction:
            check_fence(transaction, job, fence)
            left = transaction.run(
                "UPDATE jobs SET request = ? WHERE id = ? AND request NOT IN (?, ?)",
                *(request, job, CANCEL, request),
            )
            if left:
                transaction.notify(Change(ChangeKind.REQUEST, job))
            [(stored,)] = transaction.rows("SELECT request FROM jobs WHERE id = ?", job)
        return bool(stored == request)

    def remove_request(self, job: str, fence: int, request: str) -> bool:
        """Removes a request that was heeded, unless there is another one by now.

        Args:
            job: The job's id.
            fence: The fence of the caller's lease; nothing happens if it is lost.
            request: The request.

        Returns:
            Whether it was removed.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        return bool(
            self._engine.run(
                "UPDATE jobs SET request = '' WHERE id = ? AND fence = ? AND request = ?",
                *(job, fence, request),
            )
        )

    def requests(self, replica: str) -> list[tuple[str, str]]:
        """Returns what other servers ask of the jobs of one: the id of the job and the request.

        Args:
            replica: The id of the server that has the jobs.
        """
        return self._engine.rows(
            "SELECT id, request FROM jobs WHERE holder = ? AND request != '' "
            f"AND {UNFINISHED} ORDER BY queued_s, id",
            replica,
        )

    def left_requests(self) -> list[str]:
        """Returns the ids of jobs with a request that no server has a lease to heed."""
        rows = self._engine.rows(
            f"SELECT id FROM jobs WHERE request != '' AND lease_until_s < {self._engine.now} "
            f"AND {UNFINISHED} ORDER BY queued_s, id"
        )
        return [job for (job,) in rows]
