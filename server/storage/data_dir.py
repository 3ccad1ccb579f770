"""`DataDir` opens a data directory and holds its models, jobs, corpora and database.

::

    DATA_DIR/
      lock                                  held by the one server that uses the directory
      spare                                 space to give up on a full disk
      clock                                 the last known time: see `trusted_clock`
      treadle.db                            jobs, events, aliases: see `database`
      models/NAME/VERSION/model.safetensors the model; it never changes
      models/NAME/VERSION/model.sha256      its hash, as `sha256sum --check` reads it
      jobs/ID/                              a job's checkpoint and the models that it publishes
      corpora/SHA256                        corpora, each once: see treadle.server.storage.corpora
      tmp/                                  files being written; emptied at every start

Where several servers share a database and a store of blobs, what counts is there, and the directory
of each is only its workspace, which may be lost::

    DATA_DIR/
      lock, clock, tmp/                     as above
      jobs/ID/                              the files of jobs that run here; emptied at every start
      cache/SHA256                          copies of models and corpora: see `blob_cache`

Other files in the directory are left alone. All methods block on the disk: call them from threads.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.model.atomic_files import remove_leftovers
from treadle.server.failures import BlobsUnavailableError, DatabaseError
from treadle.server.storage import files
from treadle.server.storage.corpora import Corpora
from treadle.server.storage.database import Database
from treadle.server.storage.database.sqlite_engine import SqliteEngine
from treadle.server.storage.files import DiskSpace, SpareSpace, StoreError
from treadle.server.storage.job_files import JobFiles
from treadle.server.storage.model_limits import DEFAULT_LIMITS, ModelLimits
from treadle.server.storage.models import ModelStore
from treadle.server.storage.trusted_clock import TrustedClock

if TYPE_CHECKING:
    from treadle.server.storage.shared.shared_storage import SharedStorage

logger = logging.getLogger(__name__)

_CACHE = "cache"
"""The folder that a workspace has, and no other data directory."""
DATABASE_FILE = "treadle.db"
REPAIRED_FILE = "treadle.db.repaired"
"""A database that a repair has made, before it replaces the damaged one."""

CLOCK_FILE = "clock"
SPARE_FILE = "spare"


class DataDir:
    """One data directory, which is locked against other servers until `close`.

    Args:
        root: The data directory; made if it is missing.
        min_free_bytes: Bytes of its disk to leave free.
        limits: How many models there may be.
        shared: What this server shares with others; None: it has a database and files of its own.

    Raises:
        StoreError: Another server uses the directory, or it cannot be written.
    """

    def __init__(
        self,
        root: Path,
        min_free_bytes: int = 0,
        limits: ModelLimits = DEFAULT_LIMITS,
        shared: SharedStorage | None = None,
    ) -> None:
        self.space = DiskSpace(root, min_free_bytes)
        """The space of its disk."""
        self.shared = shared
        """What this server shares with others; None: nothing."""
        self.spare: SpareSpace | None = None
        """Space to give up on a full disk; None: none is kept, since the database is elsewhere."""
        jobs = root / "jobs"
        tmp = root / "tmp"
        models = root / ("models" if shared is None else shared.folder)
        with contextlib.ExitStack() as opened:
            if shared is not None:
                opened.callback(shared.close)
            try:
                root.mkdir(
                    mode=0o700, parents=True, exist_ok=True
                )  # models contain text of their corpora
                if shared is None:
                    _check_own(root)
                else:
                    _check_workspace(root)
                    shared.check()
                files.make_directory(models)
                opened.enter_context(files.lock(root))
                files.make_directory(jobs)
                if tmp.is_symlink() or tmp.is_dir():
                    files.remove(tmp)
                files.make_directory(tmp)
                for place in (models, jobs, tmp):
                    files.close_to_others(
                        root, place
                    )  # an earlier server may have left them readable
                if shared is None:
                    self._open_own(root, limits, opened)
                else:
                    self._open_shared(root, limits, shared)
                self.trusted_clock = TrustedClock(root / CLOCK_FILE, self.database.newest_s())
                """The time of day."""
                files.sync(root)
            except OSError as error:
                raise files.unusable(root, error) from error
            except (BlobsUnavailableError, DatabaseError) as error:
                raise StoreError(str(error)) from error
            self._opened = opened.pop_all()

    def _open_own(self, root: Path, limits: ModelLimits, opened: contextlib.ExitStack) -> None:
        """Opens what is in the directory, and nowhere else."""
        tmp = root / "tmp"
        jobs = root / "jobs"
        for place in jobs.iterdir():  # no process writes there yet
            if not place.is_symlink():
                remove_leftovers(place)
        _check_repaired(root)
        engine = SqliteEngine(root / DATABASE_FILE)
        database = Database(engine)
        opened.callback(database.close)
        database.check_structure()
        self.spare = SpareSpace(root / SPARE_FILE, self.space)
        engine.spare = self.spare
        self.database = database
        """Jobs, events, aliases and corpora."""
        self.models = ModelStore(root / "models", tmp, database, self.space, limits)
        """The models."""
        self.jobs = JobFiles(jobs)
        """The directories of jobs."""
        self.corpora = Corpora(root, tmp, database, self.space)
        """The corpora."""

    def _open_shared(self, root: Path, limits: ModelLimits, shared: SharedStorage) -> None:
        """Opens what this server shares with others."""
        stores = shared.stores(root, root / "tmp", self.space, limits)
        self.database = shared.database
        self.models = stores.models
        self.jobs = stores.jobs
        self.corpora = stores.corpora

    def close(self) -> None:
        """Closes the database and lets another server use the directory."""
        self._opened.close()


def _check_repaired(root: Path) -> None:
    """Checks that no repair of the database was interrupted.

    Raises:
        StoreError: One was interrupted.
    """
    if (root / REPAIRED_FILE).exists():
        raise StoreError(
            f"a repair of the database in {root} was interrupted: run treadle-server --fsck "
            f"--repair --data-dir {root} once more"
        )


def _check_own(root: Path) -> None:
    """Checks that a directory may have the data of a server that shares none.

    Raises:
        StoreError: It is the workspace of another kind of server, which could use it no more.
    """
    if (root / _CACHE).is_dir() and not (root / DATABASE_FILE).exists():
        raise StoreError(
            f"the data directory {root} is the workspace of a server with --database-url: give "
            "--database-url and --blobs-url, or name another --data-dir"
        )


def _check_workspace(root: Path) -> None:
    """Checks that a directory may be the workspace of a server that shares its data with others.

    Raises:
        StoreError: It holds the data of a server that shares none.
    """
    if (root / DATABASE_FILE).exists():
        raise StoreError(
            f"the data directory {root} holds the data of a server without --database-url: name "
            "another --data-dir, which then is workspace alone"
        )
