"""`SharedStorage` is the database and the blobs that several servers share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.storage.blobs.blob_cache import BlobCache
from treadle.server.storage.files import StoreError
from treadle.server.storage.shared import keys
from treadle.server.storage.shared.shared_corpora import SharedCorpora
from treadle.server.storage.shared.shared_job_files import SharedJobFiles
from treadle.server.storage.shared.shared_models import SharedModelStore

if TYPE_CHECKING:
    from treadle.server.storage.blobs.blob_store import BlobStore
    from treadle.server.storage.database import Database
    from treadle.server.storage.files import DiskSpace
    from treadle.server.storage.model_limits import ModelLimits


@dataclass(frozen=True)
class SharedStores:
    """What a server reads and writes of the shared storage, through its own data directory."""

    models: SharedModelStore
    """The models."""
    jobs: SharedJobFiles
    """The files of jobs."""
    corpora: SharedCorpora
    """The corpora."""
    cache: BlobCache
    """Copies of blobs on this machine."""


@dataclass(frozen=True)
class SharedStorage:
    """What several servers share, opened. The data directory that gets it closes it."""

    database: Database
    """Jobs, events, aliases, versions and corpora."""
    blobs: BlobStore
    """The files of models, corpora and jobs."""
    cache_bytes: int
    """Bytes up to which copies of blobs are kept on this machine."""
    replica: str
    """The id of this server."""
    orphan_s: float = 3600.0
    """Seconds after which a blob is deleted that belongs to nothing."""
    folder: str = "cache"
    """The folder of the data directory that holds copies of blobs."""

    def check(self) -> None:
        """Checks that the database and the blobs belong together, as far as there are models.

        A server with other blobs would give the others versions whose files they do not find.

        Raises:
            StoreError: The database has versions, and there is a file of none.
            DatabaseError, BlobsUnavailableError: One of them cannot be reached.
        """
        if self.database.versions() and next(iter(self.blobs.list(keys.MODELS)), None) is None:
            raise StoreError(
                f"--blobs-url {self.blobs.name} has none of the models that the database has: give "
                "the --blobs-url of the other servers, or restore the blobs"
            )

    def stores(self, root: Path, tmp: Path, space: DiskSpace, limits: ModelLimits) -> SharedStores:
        """Returns what a server reads and writes.

        Args:
            root: Its data directory, with the folders `jobs` and `cache`.
            tmp: Where it prepares files, on the same disk.
            space: The space of the disk.
            limits: How many models there may be.

        Raises:
            OSError: The disk failed or is full.
        """
        place = root / self.folder
        database = self.database
        blobs = self.blobs
        cache = BlobCache(place, blobs, space, self.cache_bytes)
        return SharedStores(
            SharedModelStore(place, tmp, database, space, limits, blobs=blobs, cache=cache),
            SharedJobFiles(root / "jobs", tmp, blobs, cache, database, space),
            SharedCorpora(root, tmp, database, space, self.folder, blobs=blobs, cache=cache),
            cache,
        )

    def close(self) -> None:
        """Closes the database and the store of the blobs."""
        self.database.close()
        self.blobs.close()
