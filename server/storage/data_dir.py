"""Where models, jobs and corpora lie on disk.

::

    DATA_DIR/
      lock                                  held by the one server that uses the directory
      spare                                 takes space that is given up on a full disk
      clock                                 the time known last: see `observed_time`
      treadle.db                            jobs, events, aliases: see `database`
      models/NAME/VERSION/model.safetensors the model; it never changes
      models/NAME/VERSION/model.sha256      its hash, as `sha256sum --check` reads it
      jobs/ID/                              a job's checkpoint and the models that it publishes
      corpora/SHA256                        corpora, each once: see treadle.server.storage.corpora
      tmp/                                  what is being made; emptied at every start

A version is made under `tmp/`, synced, and claimed by renaming its directory: it is there
whole or not at all. A version's number is not given again while the model has others: where
the newest is deleted, its empty directory stays. Whatever else lies in the directory is left
alone. All methods block on the disk: call them from threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

import grpc

from treadle.model.model_file import read_header
from treadle.model.temporary_files import remove_leftovers
from treadle.server.errors import StatusError, aborted, not_found, precondition
from treadle.server.failures import DatabaseError, is_full
from treadle.server.names import is_name
from treadle.server.storage import files, model_version
from treadle.server.storage.corpora import Corpora
from treadle.server.storage.database import Database
from treadle.server.storage.files import DiskSpace, SpareSpace, StoreError
from treadle.server.storage.model_limits import DEFAULT_LIMITS, ModelLimits
from treadle.server.storage.model_version import MODEL_FILE, StoredModel
from treadle.server.storage.models import ModelStore
from treadle.server.storage.observed_time import ObservedTime

logger = logging.getLogger(__name__)

DATABASE_FILE = "treadle.db"
REPAIRED_FILE = "treadle.db.repaired"
"""A database that a repair has made, and is about to put in the place of the damaged one."""

CLAIMS = 20
"""How often one model is claimed whose version is deleted, or taken by hand, meanwhile."""
CLOCK_FILE = "clock"
SPARE_FILE = "spare"


def always_deleted(name: str) -> StatusError:
    """Returns ABORTED: a model was deleted each time that it was stored."""
    return aborted(
        f"model {name!r} was deleted {CLAIMS} times while it was stored; make it again when "
        "nobody deletes it"
    )


class Store(ModelStore):
    """What lies under one data directory, which it locks against other servers.

    Args:
        root: The data directory; made if it is missing.
        min_free_bytes: Bytes of its disk to leave free.
        limits: How many models there may be.

    Raises:
        StoreError: Another server uses the directory, or it cannot be written.
    """

    def __init__(
        self, root: Path, min_free_bytes: int = 0, limits: ModelLimits = DEFAULT_LIMITS
    ) -> None:
        self.space = DiskSpace(root, min_free_bytes)
        """The space of its disk."""
        self._jobs = root / "jobs"
        self._tmp = root / "tmp"
        with contextlib.ExitStack() as opened:
            try:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)  # models hold memorised text
                models = root / "models"
                files.make_directory(models)
                opened.enter_context(files.lock(root))
                files.make_directory(self._jobs)
                if self._tmp.is_symlink() or self._tmp.is_dir():
                    files.remove(self._tmp)
                files.make_directory(self._tmp)
                for place in (models, self._jobs, self._tmp):
                    files.close_to_others(root, place)  # an earlier server may have left them open
                for place in self._jobs.iterdir():  # no process writes there yet
                    if not place.is_symlink():
                        remove_leftovers(place)
                _check_repaired(root)
                database = Database(root / DATABASE_FILE)
                opened.callback(database.close)
                database.check_structure()
                self.spare = database.spare = SpareSpace(root / SPARE_FILE, self.space)
                super().__init__(models, database, limits)
                self.observed_time = ObservedTime(root / CLOCK_FILE, database.newest_s())
                self.corpora = Corpora(root, self._tmp, database, self.space)
                files.sync(root)
            except OSError as error:
                raise files.unusable(root, error) from error
            except DatabaseError as error:
                raise StoreError(str(error)) from error
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Closes the database and lets another server use the directory."""
        self._opened.close()

    @property
    def jobs_root(self) -> Path:
        """The directory of the jobs' directories."""
        return self._jobs

    def job_dir(self, job: str) -> Path:
        """Returns a job's directory; made if it is missing, removed by `discard`.

        Raises:
            ValueError: No job can have that id.
            OSError: The disk failed or is full.
        """
        if not is_name(job):
            raise ValueError(f"{job[:80]!r} is no job's id")
        path = self._jobs / job
        if path.is_symlink() or not path.is_dir():
            files.make_directory(path)
            files.sync(self._jobs)  # a row of the database is about to rely on it
        return path

    def new_draft(self) -> Path:
        """Returns a new directory under `tmp/`, for a version to be made in."""
        draft = self._tmp_name("model")
        draft.mkdir(mode=0o770)
        return draft

    def discard(self, path: Path) -> None:
        """Removes what `new_draft` or `job_dir` returned, if it is still there.

        What cannot be removed is logged and left: under `tmp/` until the next start.
        """
        files.remove(path)

    def discard_job(self, job: str) -> None:
        """Removes a job's directory, if it is there; see `discard`."""
        if is_name(job):
            self.discard(self._jobs / job)

    def next_version(self, name: str) -> int:
        """Returns the number that the next version of a model gets.

        It is above every version there was, and above what unfinished jobs wrote down in `claim`:
        write it down there before another job asks.

        Raises:
            DatabaseError: The database failed.
        """
        pending = self.database.pending_claims(name)
        return max([*model_version.numbers(self._models / name), *pending], default=0) + 1

    def claim(self, name: str, draft: Path, version: int = 0) -> StoredModel:
        """Makes the model in a draft a version of `name`.

        With a version it may be repeated after a crash: a version that is there with the same
        content, or whose draft is gone, is taken as claimed.

        Args:
            name: The model's name, already checked.
            draft: Directory of `new_draft` that holds MODEL_FILE; it is moved away.
            version: What `next_version` returned; 0: a new one.

        Raises:
            LoadError: The draft's file is damaged.
            StatusError: ABORTED: the version is there with other content.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        if version and self._is_claimed(name, draft / MODEL_FILE, version):
            self.discard(draft)
        else:
            read_header(draft / MODEL_FILE)
            files.sync(draft)
            with self._changing:
                version = version or self.next_version(name)
                self._move_in(name, draft, version)
        # Hashed in its place: a large model takes seconds, and is safe by now.
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            model_version.sha256(self._models / name / str(version))
        return self._stat(name, version)

    def claim_file(self, name: str, path: Path, version: int) -> StoredModel:
        """Makes a model's file a version of `name`, without moving it: it is linked or copied.

        It may be repeated after a crash, as `claim`, also where the file is gone since.

        Args:
            name: The model's name, already checked.
            path: The file; it must be replaced, never written to, from now on.
            version: What `next_version` returned.

        Raises:
            As `claim`; FileNotFoundError where neither the file nor the version is there.
        """
        draft = self.new_draft()
        try:
            if not self._is_claimed(name, path, version):
                files.link_or_copy(path, draft / MODEL_FILE, self.space)
            return self.claim(name, draft, version)
        finally:
            self.discard(draft)

    def delete(self, name: str, version: int | None, *, force: bool = False) -> list[int]:
        """Deletes one version of a model, or all of them.

        Args:
            name: The model's name.
            version: The version; None: all of them.
            force: Delete versions that aliases name as well, and these aliases.

        Returns:
            The versions deleted, oldest first.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: an alias names one of the versions, or the
                model is a link, which can only be deleted as a whole.
            DatabaseError: The database failed.
        """
        home = self._models / name
        with self._changing:
            present = self.versions(name)
            gone = [number for number in present if version in (None, number)]
            if not gone:
                raise not_found(name, version or 0)
            if not force:
                self._check_unnamed(name, gone)
            trash = self._tmp_name("deleted")
            keeper = None
            if gone == present:
                os.rename(home, trash)
            else:
                [number] = gone
                self.check_free(name)
                os.rename(home / str(number), trash)
                if number > max(model_version.numbers(home), default=0):
                    keeper = home / str(number)
            self._index.forget(name)
            # First the files, then what is noted: on a full disk that makes room for it.
            noted = keeper is None or _made(keeper)
            files.sync(self._models if gone == present else home)
            self.discard(trash)
            if keeper is not None and not noted:
                keeper.mkdir(mode=0o770)
                files.sync(home)
            self._forget_aliases(name, gone)
        return gone

    def _check_unnamed(self, name: str, gone: list[int]) -> None:
        """Refuses to delete versions that aliases name."""
        named = [
            f"{alias} (version {version})"
            for alias, version in self.database.aliases(name).items()
            if version in gone
        ]
        if named:
            shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
            which = f"the alias {shown} leads" if len(named) == 1 else f"the aliases {shown} lead"
            raise precondition(
                f"{which} to what is to be deleted of model {name!r}: move or delete "
                f"{'it' if len(named) == 1 else 'them'} first, or set force to delete all the same"
            )

    def _forget_aliases(self, name: str, gone: list[int]) -> None:
        try:
            with self._renaming(name):
                self.database.forget_aliases(name, gone)
        except (OSError, DatabaseError) as error:
            # They lead nowhere, which `find` says; `_move_in` keeps them from leading elsewhere.
            logger.warning("aliases of deleted versions of %s are left: %s", name, error)

    def _is_claimed(self, name: str, path: Path, version: int) -> bool:
        """Returns whether a version is there already, as what the file at `path` is or was."""
        stored = self._file(name, version)
        if not stored.is_file():
            return False
        if not path.exists() or path.samefile(stored):
            return True
        if model_version.file_hash(path) == model_version.file_hash(stored):
            return True
        message = f"version {version} of model {name!r} is stored already, with other weights"
        raise StatusError(grpc.StatusCode.ABORTED, message)

    def _move_in(self, name: str, draft: Path, version: int) -> None:
        """Makes a draft a version that is not there, or is an empty directory."""
        if version in self.database.aliases(name).values():  # of an earlier model of this name
            with self._renaming(name):
                self.database.forget_aliases(name, [version])
        home = self._models / name
        self.check_free(name)
        home.mkdir(mode=0o770, exist_ok=True)
        newest = max(model_version.numbers(home), default=0)
        os.rename(draft, home / str(version))
        self._index.forget(name)
        files.sync(home)
        if newest < version:  # where it is an empty directory, it kept its number for long enough
            with contextlib.suppress(OSError):
                (home / str(newest)).rmdir()
        files.sync(self._models)

    def _tmp_name(self, kind: str) -> Path:
        return self._tmp / f"{kind}-{secrets.token_hex(8)}"


def _check_repaired(root: Path) -> None:
    """Checks that no repair of the database was cut off.

    Raises:
        StoreError: One was.
    """
    if (root / REPAIRED_FILE).exists():
        raise StoreError(
            f"a repair of the database in {root} was cut off: run treadle-server --fsck --repair "
            f"--data-dir {root} once more"
        )


def _made(folder: Path) -> bool:
    """Makes a folder; returns whether there was space for it."""
    try:
        folder.mkdir(mode=0o770)
    except OSError as error:
        if not is_full(error):
            raise
        return False
    return True
