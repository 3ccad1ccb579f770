"""`StoredBacklog` counts the jobs of all servers that share a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.server.storage.job_state import JobState

if TYPE_CHECKING:
    from treadle.server.storage.schema import BacklogRow


class StoredBacklog:
    """The jobs that are not over, as the database had them a moment ago.

    It answers what `JobQueue` answers of a server that has all its jobs in memory.

    Args:
        rows: Every job that is not over, the one queued first before the others.
    """

    def __init__(self, rows: Sequence[BacklogRow]) -> None:
        self._rows = rows
        self._running = [row for row in rows if row.state == JobState.RUNNING]
        self._queued = [row for row in rows if row.state == JobState.QUEUED]

    @property
    def running_count(self) -> int:
        """Jobs that run, on any server."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._queued)

    def waiting_of(self, owner: str) -> int:
        """Returns how many jobs of a caller wait or are paused."""
        return sum(row.owner == owner and row.state != JobState.RUNNING for row in self._rows)

    def running_of(self, owner: str) -> int:
        """Returns how many jobs of a caller run."""
        return sum(row.owner == owner for row in self._running)

    def models(self) -> list[str]:
        """Returns the names of the models that the jobs are to make, one for each job."""
        return [row.model for row in self._rows]

    def position(self, job: str) -> int:
        """Returns how many jobs are before one in the queue; 0 where it does not wait."""
        return self.positions().get(job, 0)

    def positions(self) -> dict[str, int]:
        """Returns how many jobs are before each one that waits, by their ids."""
        mine = Counter(row.owner for row in self._running)
        turns: list[tuple[int, int, str]] = []
        for place, row in enumerate(self._queued):
            turns.append((mine[row.owner], place, row.id))
            mine[row.owner] += 1
        return {job: place for place, (_, _, job) in enumerate(sorted(turns))}

    def waiting_for_space(self) -> dict[str, int]:
        """Returns the bytes of disk space that paused jobs wait for, by their ids."""
        return {row.id: row.waits_for_bytes for row in self._rows if row.waits_for_bytes}
