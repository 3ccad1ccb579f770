"""`VersionMemory` remembers the versions and aliases of models that several servers share.

What it remembers of a model is read again after a moment, or once another server has changed it.
While the database cannot be reached, it holds for as long as that takes, so that models which are
known can be used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.server.failures import DatabaseUnavailableError

if TYPE_CHECKING:
    from treadle.server.storage.database import Database
    from treadle.server.storage.schema import VersionRow

logger = logging.getLogger(__name__)

_MODELS = 10_000
"""Models that are remembered."""

FRESH_S = 0.5
"""Seconds for which a model is remembered where changes of other servers are not reported."""

_REPORTED_S = 30.0
"""Seconds where they are."""

_RETRY_S = 1.0
"""Seconds after which a database is asked again that could not be reached."""


@dataclass(frozen=True)
class KnownModel:
    """What is known of a model."""

    versions: dict[int, VersionRow]
    """Its versions by their numbers, oldest first."""
    aliases: dict[str, int]
    """The version that each alias leads to."""
    due_s: float
    """When it is to be read again, by `time.monotonic`."""


class VersionMemory:
    """The versions and aliases of models, remembered once read. May be used from any thread.

    Args:
        database: Where they are.
        is_reported: Returns whether `forget` is called at once for what other servers change.
    """

    def __init__(self, database: Database, is_reported: Callable[[], bool] = lambda: False) -> None:
        self._database = database
        self.is_reported = is_reported
        """Returns whether `forget` is called at once for what other servers change."""
        self._lock = threading.Lock()
        self._known: OrderedDict[str, KnownModel] = OrderedDict()
        self._reading: set[str] = set()
        """The models that a thread reads again, while others use what is remembered."""
        self._changes = 0
        self._is_away = False
        """Whether the database could not be reached when it was last asked."""

    def of(self, name: str) -> KnownModel:
        """Returns what is known of a model; it may be a moment old.

        Raises:
            DatabaseUnavailableError: The database cannot be reached, and nothing is remembered.
            DatabaseError: The database failed.
        """
        with self._lock:
            known = self._known.get(name)
            if known is not None:
                self._known.move_to_end(name)
                if time.monotonic() < known.due_s or name in self._reading:
                    return known
                self._reading.add(name)
        try:
            return self.read(name)
        except DatabaseUnavailableError:
            if known is None:
                raise
            with self._lock:
                if not self._is_away:
                    logger.warning("the database cannot be reached; models are used as they were")
                self._is_away = True
                due_s = time.monotonic() + _RETRY_S
                self._known[name] = KnownModel(known.versions, known.aliases, due_s)
            return known
        finally:
            with self._lock:
                self._reading.discard(name)

    def read(self, name: str) -> KnownModel:
        """Returns what the database knows of a model.

        Raises:
            DatabaseError: The database failed, or cannot be reached.
        """
        changes = self._changes
        fresh_s = _REPORTED_S if self.is_reported() else FRESH_S
        due_s = time.monotonic() + fresh_s
        versions = {row.version: row for row in self._database.versions(name)}
        known = KnownModel(versions, self._database.aliases(name) if versions else {}, due_s)
        with self._lock:
            self._is_away = False
            if not versions:  # so that questions for any names do not fill the memory
                self._known.pop(name, None)
            elif changes == self._changes:  # otherwise it may be from before a change
                self._known[name] = known
                self._known.move_to_end(name)
                while len(self._known) > _MODELS:
                    self._known.popitem(last=False)
        return known

    def forget(self, name: str | None = None) -> None:
        """Reads a model again when it is next needed, unless the database cannot be reached then.

        Args:
            name: Its name; None: all models.
        """
        with self._lock:
            self._changes += 1
            for one in [*self._known] if name is None else [name]:
                known = self._known.get(one)
                if known is not None:
                    self._known[one] = KnownModel(known.versions, known.aliases, 0.0)
