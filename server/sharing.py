"""`Sharing` is a server's part in what it shares with other servers: a database, and a blob store.

It opens both, and has the rest of the server take note of what the other servers change.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from typing import TYPE_CHECKING, cast

from treadle.server.config import MalformedSettingError
from treadle.server.failures import DatabaseUnavailableError
from treadle.server.jobs.leases.lease_keeper import Replica
from treadle.server.resources import thread_pools
from treadle.server.storage.blobs.opening import open_blobs, url_fault
from treadle.server.storage.database.change import Change, ChangeKind
from treadle.server.storage.database.change_feed import ChangeFeed
from treadle.server.storage.database.postgresql.opening import open_database

if TYPE_CHECKING:
    from treadle.server.config import ServerConfig
    from treadle.server.inference.model_cache import ModelCache
    from treadle.server.jobs.manager import JobManager
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.shared.shared_models import SharedModelStore

logger = logging.getLogger(__name__)

_HOST_CHARACTERS = 40


class Sharing:
    """One of several servers.

    Args:
        config: Its settings.

    Raises:
        SettingError: The URL of the store is malformed.
        StoreError: The store cannot be used, or its extra is not installed.
        DatabaseError: The database cannot be used or reached, or its extra is not installed.
    """

    def __init__(self, config: ServerConfig) -> None:
        if fault := url_fault(config.blobs_url):
            # The URL itself is not repeated: it may hold a key.
            raise MalformedSettingError("blobs_url", fault)
        # Another one for each start, so that nothing of an earlier process passes for ours.
        host = re.sub("[^a-z0-9-]+", "-", socket.gethostname().lower())[:_HOST_CHARACTERS]
        name = f"{host}-{secrets.token_hex(4)}"
        self.replica = Replica(name, config.address, config.lease_s)
        """This server."""
        try:
            self.database = open_database(config.database_url)
            """The database, opened; the data directory closes it."""
        except DatabaseUnavailableError as error:
            raise DatabaseUnavailableError(
                f"{error}: start it, or correct --database-url"
            ) from error
        try:
            self.blobs = open_blobs(config.blobs_url)
            """The store, opened; the data directory closes it."""
        except BaseException:
            self.database.close()
            raise

    async def follow(self, data_dir: DataDir, models: ModelCache, jobs: JobManager) -> None:
        """Takes note of what other servers change, until it is cancelled.

        Args:
            data_dir: Its data directory, over the storage.
            models: The models in memory.
            jobs: The jobs.
        """
        store = cast("SharedModelStore", data_dir.models)
        notes = _Notes(store, models, jobs)
        feed = ChangeFeed(self.database)
        feed.subscribe(notes.take)
        store.memory.is_reported = lambda: feed.is_listening
        await feed.run()


class _Notes:
    """Takes note of changes.

    Args:
        store: The stored models.
        models: Those in memory.
        jobs: The jobs.
    """

    def __init__(self, store: SharedModelStore, models: ModelCache, jobs: JobManager) -> None:
        assert jobs.replica is not None
        self._store = store
        self._models = models
        self._replica = jobs.replica
        self._suspect: set[str] = set()
        """The models in memory of which versions may be deleted."""
        self._dropping: asyncio.Task[None] | None = None
        self._is_failing = False

    def take(self, change: Change) -> None:
        """Takes note of a change."""
        match change.kind:
            case ChangeKind.JOB:
                self._replica.wake(change.name)
            case ChangeKind.QUEUE | ChangeKind.REQUEST:
                self._replica.keeper.look()
            case ChangeKind.MODEL:
                self._take_model(change.name)
            case ChangeKind.ANYTHING:
                self._replica.wake()
                self._replica.keeper.look()
                self._take_model(None)

    def _take_model(self, name: str | None) -> None:
        self._store.memory.forget(name)
        self._suspect.update(model for model in self._models.loaded() if name in (None, model))
        if self._suspect and (self._dropping is None or self._dropping.done()):
            self._dropping = asyncio.create_task(self._drop())

    async def _drop(self) -> None:
        """Drops the versions from memory that are deleted.

        One model at a time, so that calls which need the database do not wait behind all of them.
        """
        while self._suspect:
            model = self._suspect.pop()
            versions = self._models.loaded().get(model, [])
            try:
                known = await thread_pools.DATABASE.run(self._store.versions, model)
            except Exception as error:  # the next change, or the next second, brings it here again
                if not self._is_failing:
                    logger.warning("deleted models stay in memory for now: %s", error)
                self._is_failing = True
                self._suspect.clear()
                return
            self._is_failing = False
            self._models.forget(model, [version for version in versions if version not in known])
