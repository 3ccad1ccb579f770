"""`VersionTable` keeps whose job or stream made a version, and which versions all servers share.

A server with a data directory of its own finds its versions there, and keeps only their owners
here. Servers that share an object store find them in the table `versions`. The row of a version
that was deleted stays, without a hash, so that no other version gets its number: a server that was
stopped for a while may still be about to delete its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.server.storage.database.change import Change, ChangeKind
from treadle.server.storage.database.job_changes import change_job, check_fence
from treadle.server.storage.schema import UNFINISHED, VersionRow

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine, Statements

_COLUMNS = "model, version, sha256, size, created_s"
_IS_THERE = "sha256 != ''"
"""The condition that a version was not deleted."""


class VersionTable:
    """The versions of all models.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def reserve_version(self, job: str, model: str, *, fence: int | None = None) -> int:
        """Reserves the next version of a model for a job, in the `claim` of its row.

        It is above every version in the table and above what other unfinished jobs have reserved,
        whichever server runs them. A job that has reserved one already gets another.

        Args:
            job: The job's id.
            model: The name of the model.
            fence: The fence of the lease under which the job runs; None: it has no lease.

        Returns:
            The version.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: The job has another fence.
        """
        with self._engine.transaction(f"model {model}") as transaction:
            version = _next_version(transaction, model)
            change_job(transaction, job, {"claim": version}, fence)
        return version

    def next_version(self, model: str) -> int:
        """Returns the number above every version of a model and above what jobs have reserved."""
        return _next_version(self._engine, model)

    def add_version(
        self, row: VersionRow, *, job: str = "", fence: int | None = None
    ) -> VersionRow:
        """Adds a version, unless there is one of its number.

        Args:
            row: The version.
            job: The id of the job that made it; empty: none did.
            fence: The fence of the lease under which that job runs; None: it has no lease.

        Returns:
            The stored row, which is another one where the number was taken.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: The job has another fence.
        """
        with self._engine.transaction() as transaction:
            check_fence(transaction, job, fence)
            added = transaction.run(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(row.model, row.version, row.sha256, row.size, row.created_s, row.description),
            )
            if added:
                transaction.notify(Change(ChangeKind.MODEL, row.model))
        if added:
            return row
        # Where it was deleted meanwhile, it was there before, so that its number is taken.
        return self.version(row.model, row.version) or VersionRow(row.model, row.version)

    def version(self, model: str, version: int) -> VersionRow | None:
        """Returns a version with its description; None where it does not exist, or not any more."""
        rows = self._engine.rows(
            f"SELECT {_COLUMNS}, description FROM versions "
            f"WHERE model = ? AND version = ? AND {_IS_THERE}",
            *(model, version),
        )
        return next((VersionRow(*row) for row in rows), None)

    def versions(self, model: str | None = None) -> list[VersionRow]:
        """Returns versions without their descriptions, by name and number.

        Args:
            model: The name of their model; None: all models.
        """
        where = "" if model is None else " AND model = ?"
        values = () if model is None else (model,)
        rows = self._engine.rows(
            f"SELECT {_COLUMNS} FROM versions WHERE {_IS_THERE}{where} ORDER BY model, version",
            *values,
        )
        return [VersionRow(*row) for row in rows]

    def newest_versions(self, after: str, limit: int) -> list[VersionRow]:
        """Returns the newest version of each model with its description, by name.

        Args:
            after: The name after which they begin.
            limit: The most models to return.
        """
        columns = ", ".join(f"versions.{name}" for name in (*_COLUMNS.split(", "), "description"))
        rows = self._engine.rows(
            "WITH newest AS (SELECT model, MAX(version) AS version FROM versions "
            f"WHERE {_IS_THERE} AND model > ? GROUP BY model ORDER BY model LIMIT ?) "
            f"SELECT {columns} FROM newest JOIN versions ON versions.model = newest.model "
            "AND versions.version = newest.version ORDER BY versions.model",
            *(after, limit),
        )
        return [VersionRow(*row) for row in rows]

    def count_models(self) -> int:
        """Returns how many models have a version."""
        [(count,)] = self._engine.rows(
            f"SELECT COUNT(DISTINCT model) FROM versions WHERE {_IS_THERE}"
        )
        return int(count)

    def delete_versions(
        self, model: str, versions: Sequence[int], *, unnamed: bool = False
    ) -> bool:
        """Deletes versions of a model with their aliases; their numbers stay taken.

        Args:
            model: The name of the model.
            versions: The versions.
            unnamed: Whether to delete none of them where an alias leads to one.

        Returns:
            Whether they were deleted.
        """
        # One at a time, so that no other server sets an alias to one of them meanwhile.
        with self._engine.transaction(f"model {model}") as transaction:
            if unnamed:
                rows = transaction.rows("SELECT version FROM aliases WHERE model = ?", model)
                if {version for (version,) in rows} & {*versions}:
                    return False
            for version in versions:
                transaction.run(
                    "DELETE FROM aliases WHERE model = ? AND version = ?", model, version
                )
                transaction.run(
                    "UPDATE versions SET sha256 = '', size = 0, description = ? "
                    "WHERE model = ? AND version = ?",
                    *(b"", model, version),
                )
            transaction.notify(Change(ChangeKind.MODEL, model))
        return True

    def set_version_owner(
        self,
        model: str,
        version: int,
        owner: str,
        size: int,
        now_s: float,
        *,
        job: str = "",
        fence: int | None = None,
    ) -> None:
        """Notes whose job or stream makes a version of a model.

        Args:
            model: The name of the model.
            version: The version.
            owner: The owner; empty: no known one, and an earlier one is forgotten.
            size: Bytes of its file.
            now_s: The time, in seconds since the epoch.
            job: The id of the job that makes it; empty: none does.
            fence: The fence of the lease under which that job runs; None: it has no lease.

        Raises:
            NoSuchJobError: There is no such job.
            LostLeaseError: The job has another fence.
        """
        if owner:
            statement = (
                "INSERT INTO version_owners VALUES (?, ?, ?, ?, ?) ON CONFLICT (model, version) "
                "DO UPDATE SET owner = excluded.owner, size = excluded.size, "
                "created_s = excluded.created_s"
            )
            values: tuple[object, ...] = (model, version, owner, size, now_s)
        else:
            statement = "DELETE FROM version_owners WHERE model = ? AND version = ?"
            values = (model, version)

        def note() -> None:
            with self._engine.transaction() as transaction:
                check_fence(transaction, job, fence)
                transaction.run(statement, *values)

        self._engine.urgent(note)

    def version_owners(self) -> list[tuple[str, int, str, float]]:
        """Returns model, version, owner and time of every version with an owner."""
        rows = self._engine.rows(
            "SELECT model, version, owner, created_s FROM version_owners ORDER BY model, version"
        )
        return [row for row in rows if all(map(isinstance, row, (str, int, str, float)))]

    def model_bytes(self, owner: str) -> int:
        """Returns the bytes of all versions of models of an owner."""
        [(size,)] = self._engine.rows("SELECT SUM(size) FROM version_owners WHERE owner = ?", owner)
        return int(size or 0)

    def forget_versions(self, model: str, versions: Sequence[int]) -> None:
        """Deletes the owners of versions of a model."""

        def forget() -> None:
            with self._engine.transaction() as transaction:
                for version in versions:
                    transaction.run(
                        "DELETE FROM version_owners WHERE model = ? AND version = ?",
                        *(model, version),
                    )

        self._engine.urgent(forget)


def _next_version(statements: Statements, model: str) -> int:
    """Returns the number above every version of a model and above what jobs have reserved."""
    [(stored,)] = statements.rows(
        "SELECT COALESCE(MAX(version), 0) FROM versions WHERE model = ?", model
    )
    [(claimed,)] = statements.rows(
        "SELECT COALESCE(MAX(claim), 0) FROM jobs WHERE model = ? AND claim > 0 "
        f"AND version = 0 AND {UNFINISHED}",
        model,
    )
    return max(int(stored), int(claimed)) + 1
