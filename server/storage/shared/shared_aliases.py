"""`SharedAliases` keeps the aliases of models that several servers share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from treadle.server.errors import not_found
from treadle.server.storage.aliases import SHOWN, Aliases

if TYPE_CHECKING:
    from treadle.server.storage.database import Database
    from treadle.server.storage.shared.version_memory import VersionMemory


class SharedAliases(Aliases):
    """The aliases of all models, which any of several servers may change.

    Args:
        database: The database.
        limit: The most aliases of a model.
        memory: What is remembered of each model.
    """

    def __init__(self, database: Database, limit: int, memory: VersionMemory) -> None:
        super().__init__(database, limit)
        self._memory = memory

    def version(self, model: str, alias: str) -> int:
        """Returns the version that an alias leads to; 0 where there is no such alias.

        Raises:
            DatabaseError: The database failed.
        """
        version = self._memory.of(model).aliases.get(alias, 0)
        return version or self._memory.read(model).aliases.get(alias, 0)

    def of_version(self, model: str, version: int) -> tuple[list[str], int]:
        """Returns the first aliases of a version in their order, and how many there are.

        Raises:
            DatabaseError: The database failed.
        """
        aliases = self._memory.of(model).aliases
        found = sorted(alias for alias, number in aliases.items() if number == version)
        return found[:SHOWN], len(found)

    def set(self, model: str, alias: str, version: int) -> None:
        """Makes an alias lead to a version, and to no other one any more.

        Raises:
            StatusError: NOT_FOUND: another server has deleted the version meanwhile.
            DatabaseError: The database failed.
        """
        with self._changing(model):
            if not self._database.set_alias(model, alias, version, listed=True):
                raise not_found(model, version)

    @contextlib.contextmanager
    def _changing(self, model: str) -> Iterator[None]:
        try:
            yield
        finally:
            self._memory.forget(model)
