"""`JobTable` keeps the rows of training jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from treadle.server.failures import DatabaseError, DuplicateRowError
from treadle.server.storage.database.change import QUEUED, Change, ChangeKind
from treadle.server.storage.database.corpus_table import own_corpus
from treadle.server.storage.database.job_changes import change_job, check_fence, check_fields
from treadle.server.storage.job_state import FINAL_STATES, JobState
from treadle.server.storage.schema import COLUMNS, INSERT, SELECT, UNFINISHED, JobRow, read_row

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine, Statements

_TIMES = ("created_s", "queued_s", "started_s", "ended_s")
"""The columns of a job that are times."""

_FINAL = ", ".join(f"'{state}'" for state in FINAL_STATES)
"""The final states of jobs, as a statement lists them."""


class JobTable:
    """The rows of all jobs.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_job(self, row: JobRow, first: bytes = b"") -> JobRow:
        """Adds a job, unless its owner has one with the same request id.

        From now on its corpora belong to its owner as well.

        Args:
            row: The job.
            first: Its first event, serialized, stored in the same transaction; empty: none.

        Returns:
            The stored row, or that of the owner's earlier job with the same request id.

        Raises:
            DuplicateRowError: There is a job with its id.
        """
        try:
            return self._add_job(row, first)
        except DuplicateRowError:
            # Another server may have added one with the same request id at the same moment.
            earlier = self.job_of_request(row.owner, row.request_id)
            if earlier is None:
                raise
            return earlier

    def _add_job(self, row: JobRow, first: bytes) -> JobRow:
        with self._engine.transaction() as transaction:
            earlier = _job_of_request(transaction, row.owner, row.request_id)
            if earlier is not None:
                return earlier
            row = dataclasses.replace(row, last_sequence=1) if first else row
            transaction.run(INSERT, *(getattr(row, name) for name in COLUMNS))
            if first:
                transaction.run(
                    "INSERT INTO events VALUES (?, ?, ?, ?)", row.id, 1, row.created_s, first
                )
            for sha256, size in row.corpus_sizes().items() if row.owner else ():
                own_corpus(transaction, sha256, row.owner, size, row.created_s)
            if row.state == JobState.QUEUED:
                transaction.notify(QUEUED)
        return row

    def job(self, job: str, /) -> JobRow | None:
        """Returns a job; None where there is no job with that id."""
        return next(iter(self._jobs("WHERE id = ?", job)), None)

    def job_of_request(self, owner: str, request_id: str) -> JobRow | None:
        """Returns the job of an owner with a request id; None where no job has it.

        Args:
            owner: The owner.
            request_id: The request id; no job has an empty one.
        """
        return _job_of_request(self._engine, owner, request_id)

    def jobs(
        self,
        states: Sequence[str] = (),
        model: str = "",
        after: tuple[float, str] | None = None,
        limit: int = 100,
        owner: str | None = None,
    ) -> list[JobRow]:
        """Returns jobs, the newest first.

        Args:
            states: Their states; none: all.
            model: The name of their model; empty: any.
            after: The place of the last job of the previous page, which may be deleted by now;
                None: the first page.
            limit: The most jobs to return.
            owner: Their owner; None: any; empty: no job.
        """
        terms = ["1 = 1"]
        values = list[object]()
        if owner is not None:
            terms.append("owner = ? AND owner != ''")
            values.append(owner)
        if states:
            terms.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        if model:
            terms.append("model = ?")
            values.append(model)
        if after is not None:
            terms.append("(created_s, id) < (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(terms)} ORDER BY created_s DESC, id DESC LIMIT ?"
        return self._jobs(where, *values, limit)

    def count_jobs(self, states: Sequence[str], owner: str | None = None) -> int:
        """Returns how many jobs are in some states.

        Args:
            states: The states.
            owner: The owner of the jobs; None: any.
        """
        where = f"state IN ({', '.join('?' * len(states))})"
        values = list[object](states)
        if owner is not None:
            where += " AND owner = ?"
            values.append(owner)
        [(count,)] = self._engine.rows(f"SELECT COUNT(*) FROM jobs WHERE {where}", *values)
        return int(count)

    def pending_claims(self, model: str) -> list[int]:
        """Returns the versions of a model that unfinished jobs are about to claim."""
        rows = self._engine.rows(
            "SELECT claim FROM jobs WHERE model = ? AND claim > 0 AND version = 0 "
            f"AND {UNFINISHED}",
            model,
        )
        return [claim for (claim,) in rows if isinstance(claim, int)]

    def update_job(self, job: str, /, *, fence: int | None = None, **changes: Any) -> None:
        """Changes fields of a job.

        Args:
            job: Its id.
            fence: The fence of the lease under which the job runs; None: it has no lease.
            changes: New values by the names of `JobRow`'s fields, except id, last_sequence and
                those of the lease.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: The job has another fence.
            TypeError: There is no such field, or it may not be changed.
        """
        check_fields(changes)

        def update() -> None:
            with self._engine.transaction() as transaction:
                change_job(transaction, job, changes, fence)

        self._engine.urgent(update)

    def delete_job(self, job: str, *, fence: int | None = None) -> None:
        """Deletes a job and its events, if it exists.

        Args:
            job: Its id.
            fence: The fence of the lease of the caller; None: it has no lease.

        Raises:
            LostLeaseError: The job has another fence.
        """

        def delete() -> None:
            with self._engine.transaction() as transaction:
                check_fence(transaction, job, fence)
                if transaction.run("DELETE FROM jobs WHERE id = ?", job):
                    transaction.notify(Change(ChangeKind.JOB, job))

        self._engine.urgent(delete)

    def over_before(self, before_s: float, limit: int) -> list[str]:
        """Returns the ids of jobs that were over before a time, the oldest first.

        Args:
            before_s: The time, in seconds since the epoch.
            limit: The most ids.
        """
        # A damaged time makes no job old.
        over_s = f"{self._engine.greatest}(created_s, queued_s, COALESCE(ended_s, 0))"
        rows = self._engine.rows(
            f"SELECT id FROM jobs WHERE state IN ({_FINAL}) "
            f"AND {over_s} < ? ORDER BY {over_s}, id LIMIT ?",
            *(before_s, limit),
        )
        return [str(job) for (job,) in rows]

    def newest_s(self) -> float:
        """Returns the newest stored time, in seconds since the epoch; 0 if there are no rows."""
        times = [
            *(f"SELECT MAX({name}) FROM jobs" for name in _TIMES),
            "SELECT MAX(used_s) FROM corpora",
            "SELECT MAX(events.time_s) FROM events JOIN jobs "
            "ON events.job = jobs.id AND events.sequence = jobs.last_sequence",
        ]
        found = [row[0] for statement in times for row in self._engine.rows(statement)]
        return max((float(time_s) for time_s in found if isinstance(time_s, float)), default=0.0)

    def corpora_in_use(self) -> set[str]:
        """Returns the hashes of the corpora of unfinished jobs."""
        return {sha256 for sha256, _ in self.owned_corpora_in_use()}

    def owned_corpora_in_use(self) -> set[tuple[str, str]]:
        """Returns the hashes of the corpora of unfinished jobs, each with the owner of the job.

        A job whose list of corpora cannot be read cannot continue, so it keeps none.
        """
        found = set[tuple[str, str]]()
        for row in self._jobs(f"WHERE {UNFINISHED}"):
            with suppress(DatabaseError):
                found.update((sha256, row.owner) for sha256 in row.corpora())
        return found

    def _jobs(self, where: str, *values: object) -> list[JobRow]:
        return [read_row(row) for row in self._engine.rows(f"{SELECT} {where}", *values)]


def _job_of_request(statements: Statements, owner: str, request_id: str) -> JobRow | None:
    if not request_id:
        return None
    where = "WHERE request_id = ? AND request_id != '' AND owner = ?"
    rows = statements.rows(f"{SELECT} {where}", request_id, owner)
    return next((read_row(row) for row in rows), None)
