"""`EventTable` keeps the events of jobs, numbered from 1 in each job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.server.storage.database.job_changes import change_job, check_fields

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine

MAX_INTEGER = (1 << 63) - 1
"""The largest whole number that a database holds."""


class EventTable:
    """The events of all jobs.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append_event(
        self,
        job: str,
        payload: bytes,
        time_s: float,
        /,
        *,
        fence: int | None = None,
        after: int | None = None,
        **changes: Any,
    ) -> int:
        """Adds an event to a job and changes its fields in one transaction.

        After a `DatabaseUnavailableError` it is unknown whether the event was added. The same call
        with the same `after` adds it once.

        Args:
            job: Its id.
            payload: The event, serialized.
            time_s: When it happened, in seconds since the epoch.
            fence: The fence of the lease under which the job runs; None: it has no lease.
            after: The number of the job's last event; None: whatever it is.
            changes: As for `update_job`.

        Returns:
            The event's number, one above the last.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: The job has another fence.
            TypeError: There is no such field, or it may not be changed.
        """
        check_fields(changes)

        def append() -> int:
            with self._engine.transaction() as transaction:
                if after is not None and transaction.rows(
                    "SELECT 1 FROM events WHERE job = ? AND sequence = ? AND payload = ?",
                    *(job, after + 1, payload),
                ):
                    return after + 1
                sequence = change_job(transaction, job, changes, fence, adds_event=True)
                transaction.run(
                    "INSERT INTO events VALUES (?, ?, ?, ?)", job, sequence, time_s, payload
                )
            return sequence

        # A state must not be lost; events about a run can wait for space.
        return self._engine.urgent(append) if "state" in changes else append()

    def events(
        self, job: str, after: int, limit: int = 500, max_bytes: int = 1 << 16
    ) -> list[tuple[int, float, bytes]]:
        """Returns a job's events in order: number, time and payload.

        Args:
            job: Its id.
            after: The number of the last event already known.
            limit: The most events to return.
            max_bytes: Bytes of payloads after which no more events are returned.
        """
        rows = self._engine.some_rows(
            max_bytes,
            "SELECT sequence, time_s, payload FROM events WHERE job = ? AND sequence > ? "
            "ORDER BY sequence LIMIT ?",
            *(job, min(after, MAX_INTEGER), limit),
        )
        return [row for row in rows if isinstance(row[0], int)]
