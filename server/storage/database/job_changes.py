"""`change_job` changes the row of a job, if the caller may still do so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from treadle.server.failures import LostLeaseError
from treadle.server.storage.database.change import QUEUED, Change, ChangeKind
from treadle.server.storage.job_state import JobState
from treadle.server.storage.schema import COLUMNS, FIXED, NoSuchJobError

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Statements


def check_fields(names: Iterable[str]) -> None:
    """Checks that a job has fields of these names, which may be changed.

    Raises:
        TypeError: It has no such field, or it may not be changed.
    """
    for name in names:
        if name not in COLUMNS or name in FIXED:
            raise TypeError(f"{name!r} is not a field of a job that may be changed")


def change_job(
    transaction: Statements,
    job: str,
    changes: dict[str, Any],
    fence: int | None,
    *,
    adds_event: bool = False,
) -> int:
    """Changes fields of a job and notifies the servers that wait for that.

    Args:
        transaction: The transaction.
        job: The job's id.
        changes: New values by the names of the fields.
        fence: The fence of the caller's lease; None: it needs no lease.
        adds_event: Whether an event is being added.

    Returns:
        The number of the job's last event, including one that is being added.

    Raises:
        NoSuchJobError: There is no such job.
        LostLeaseError: The job has another fence.
    """
    last = "last_sequence = last_sequence + 1" if adds_event else "last_sequence = last_sequence"
    places = ", ".join([last, *(f"{name} = ?" for name in changes)])
    where = "id = ?" if fence is None else "id = ? AND fence = ?"
    key = (job,) if fence is None else (job, fence)
    rows = transaction.rows(
        f"UPDATE jobs SET {places} WHERE {where} RETURNING last_sequence", *changes.values(), *key
    )
    if not rows:
        raise lost_or_missing(transaction, job)
    [(sequence,)] = rows
    if adds_event or "state" in changes:
        transaction.notify(Change(ChangeKind.JOB, job, sequence))
    if changes.get("state") == JobState.QUEUED:
        transaction.notify(QUEUED)
    if changes.get("request"):
        transaction.notify(Change(ChangeKind.REQUEST, job))
    return int(sequence)


def check_fence(transaction: Statements, job: str, fence: int | None) -> None:
    """Checks that the caller has the lease of a job, until the transaction is over.

    Args:
        transaction: The transaction.
        job: The job's id.
        fence: The fence of the caller's lease; None: it needs no lease.

    Raises:
        NoSuchJobError: There is no such job.
        LostLeaseError: The job has another fence.
    """
    if fence is None:
        return
    # An update locks the row in every engine, so that nobody takes the lease meanwhile.
    if not transaction.run("UPDATE jobs SET fence = fence WHERE id = ? AND fence = ?", job, fence):
        raise lost_or_missing(transaction, job)


def lost_or_missing(transaction: Statements, job: str) -> NoSuchJobError | LostLeaseError:
    """Returns the error of a change for which no row was found."""
    if transaction.rows("SELECT 1 FROM jobs WHERE id = ?", job):
        return LostLeaseError(f"this server has lost the lease of job {job!r}")
    return NoSuchJobError(f"there is no job {job!r}")
