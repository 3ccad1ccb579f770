"""`AliasTable` keeps the names of versions of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.server.storage.database.change import Change, ChangeKind

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine


class AliasTable:
    """The aliases of all models.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_alias(self, model: str, alias: str, version: int, *, listed: bool = False) -> bool:
        """Makes an alias lead to a version of a model, and to no other any more.

        Args:
            model: The model.
            alias: The alias.
            version: The version.
            listed: Whether the version must be in the table of versions.

        Returns:
            Whether the alias leads there now; False where the version is not in that table.
        """
        with self._engine.transaction(f"model {model}" if listed else "") as transaction:
            if listed and not transaction.rows(
                "SELECT 1 FROM versions WHERE model = ? AND version = ? AND sha256 <> ''",
                *(model, version),
            ):
                return False
            transaction.run(
                "INSERT INTO aliases VALUES (?, ?, ?) "
                "ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
                *(model, alias, version),
            )
            transaction.notify(Change(ChangeKind.MODEL, model))
        return True

    def delete_alias(self, model: str, alias: str) -> bool:
        """Deletes an alias; returns whether it existed."""

        def delete() -> bool:
            with self._engine.transaction() as transaction:
                statement = "DELETE FROM aliases WHERE model = ? AND alias = ?"
                count = transaction.run(statement, model, alias)
                transaction.notify(Change(ChangeKind.MODEL, model))
            return bool(count)

        return self._engine.urgent(delete)

    def aliases(self, model: str) -> dict[str, int]:
        """Returns the version of each alias of a model, in the order of their names."""
        rows = self._engine.rows(
            "SELECT alias, version FROM aliases WHERE model = ? ORDER BY alias", model
        )
        return {
            alias: version
            for alias, version in rows
            if isinstance(alias, str) and isinstance(version, int)
        }

    def aliased(self, model: str, alias: str) -> int:
        """Returns the version of an alias of a model; 0 where there is no such alias."""
        rows = self._engine.rows(
            "SELECT version FROM aliases WHERE model = ? AND alias = ?", *(model, alias)
        )
        return next((version for (version,) in rows if isinstance(version, int)), 0)

    def aliases_of(self, model: str, version: int, limit: int) -> tuple[list[str], int]:
        """Returns the first aliases of a version, in their order, and how many there are."""
        where = "FROM aliases WHERE model = ? AND version = ?"
        rows = self._engine.rows(
            f"SELECT alias {where} ORDER BY alias LIMIT ?", *(model, version, limit)
        )
        count = len(rows)
        if count == limit:
            [(count,)] = self._engine.rows(f"SELECT count(*) {where}", model, version)
        return [alias for (alias,) in rows if isinstance(alias, str)], count

    def all_aliases(self) -> list[tuple[str, str, int]]:
        """Returns every alias: model, alias and version."""
        return self._engine.rows("SELECT model, alias, version FROM aliases ORDER BY model, alias")

    def forget_aliases(self, model: str, versions: Sequence[int]) -> None:
        """Deletes the aliases of versions of a model."""

        def forget() -> None:
            with self._engine.transaction() as transaction:
                for version in versions:
                    transaction.run(
                        "DELETE FROM aliases WHERE model = ? AND version = ?", model, version
                    )
                transaction.notify(Change(ChangeKind.MODEL, model))

        self._engine.urgent(forget)
