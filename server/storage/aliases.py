"""`Aliases` keeps which version of a model each alias leads to.

`latest` is not among them: it always leads to the newest version. All methods block on the disk
and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from treadle.server.storage.model_limits import too_many_aliases

if TYPE_CHECKING:
    from treadle.server.storage.database import Database

SHOWN = 100
"""Aliases of a version that are shown."""

_REMEMBERED = 4096
"""Models whose aliases are remembered."""


class Aliases:
    """The aliases of all models, rows of the database that are remembered once read.

    Args:
        database: The database.
        limit: The most aliases of a model.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._lock = threading.Lock()
        self._known: dict[str, dict[int, tuple[list[str], int]]] = {}
        self._changes = 0

    def version(self, model: str, alias: str) -> int:
        """Returns the version that an alias leads to; 0 where there is no such alias.

        Raises:
            DatabaseError: The database failed.
        """
        return self._database.aliased(model, alias)

    def of_model(self, model: str) -> dict[str, int]:
        """Returns the version that each alias of a model leads to, in the order of their names.

        Raises:
            DatabaseError: The database failed.
        """
        return self._database.aliases(model)

    def of_version(self, model: str, version: int) -> tuple[list[str], int]:
        """Returns the first aliases of a version in their order, and how many there are.

        Raises:
            DatabaseError: The database failed.
        """
        known = self._known.get(model, {}).get(version)
        if known is not None:
            return known
        changes = self._changes
        found = self._database.aliases_of(model, version, SHOWN)
        with self._lock:
            if changes == self._changes:  # otherwise it may be from before the change
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known.setdefault(model, {})[version] = found
        return found

    def check_new(self, model: str, alias: str) -> None:
        """Checks that a model may get an alias.

        Raises:
            StatusError: FAILED_PRECONDITION: the model has as many other aliases as it may.
            DatabaseError: The database failed.
        """
        known = self._database.aliases(model)
        if alias not in known and len(known) >= self._limit:
            raise too_many_aliases(model, len(known))

    def set(self, model: str, alias: str, version: int) -> None:
        """Makes an alias lead to a version, and to no other one any more.

        Raises:
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        with self._changing(model):
            self._database.set_alias(model, alias, version)

    def delete(self, model: str, alias: str) -> bool:
        """Deletes an alias; returns whether it was there.

        Returns:
            Whether the alias was there.

        Raises:
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        with self._changing(model):
            return self._database.delete_alias(model, alias)

    def forget(self, model: str, versions: list[int]) -> None:
        """Deletes the aliases of some versions of a model.

        Raises:
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        with self._changing(model):
            self._database.forget_aliases(model, versions)

    @contextlib.contextmanager
    def _changing(self, model: str) -> Iterator[None]:
        """Forgets what is remembered of a model's aliases, after a change of them."""
        try:
            yield
        finally:
            with self._lock:
                self._changes += 1
                self._known.pop(model, None)
