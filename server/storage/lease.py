"""`Lease` is the right of a server to run a job and to write what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from treadle.server.failures import LostLeaseError


def _never() -> bool:
    return False


class Lease:
    """The right to one job, which another server may get once it has run out.

    The database refuses every write with a fence that is not the job's any more. So a server that
    stood still, and does not know yet that it has lost a job, changes nothing.

    Args:
        fence: The number of the lease, which grows each time that a job changes hands; None: the
            data directory belongs to this server alone, and so does the job.
        is_closing: Returns whether the server is closing, so that nothing waits for a database
            that cannot be reached.
    """

    def __init__(self, fence: int | None = None, is_closing: Callable[[], bool] = _never) -> None:
        self.fence = fence
        """The number of the lease; None: the job needs none."""
        self.is_lost = False
        """Whether the job is no longer this server's: lost, or given back."""
        self._is_closing = is_closing

    @property
    def is_patient(self) -> bool:
        """Whether a write waits until the database can be reached again."""
        return self.fence is not None and not self.is_lost and not self._is_closing()

    def check(self, job: str) -> None:
        """Checks that the job is this server's as far as is known here.

        Args:
            job: The job's id.

        Raises:
            LostLeaseError: It is not.
        """
        if self.is_lost:
            raise LostLeaseError(f"job {job} is not this server's any more")
