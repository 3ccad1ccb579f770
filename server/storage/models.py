"""`ModelStore` stores, finds, describes and deletes versions of models.

A version is made under `tmp/`, synced, and claimed by renaming its directory: it exists whole or
not at all. A version number is not reused while the model has other versions: where the newest one
is deleted, its empty directory stays. All methods block on the disk: call them from threads.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from treadle.model.errors import LoadError
from treadle.model.model_file import read_header
from treadle.server.errors import (
    StatusError,
    aborted,
    damaged,
    not_found,
    precondition,
    shorten,
    unknown_alias,
)
from treadle.server.failures import DatabaseError, is_full, is_out_of_files
from treadle.server.names import LATEST, check_alias, is_name, split
from treadle.server.storage import files, model_version
from treadle.server.storage.aliases import Aliases
from treadle.server.storage.model_limits import (
    DEFAULT_LIMITS,
    ModelLimits,
    too_many_models,
    too_many_versions,
)
from treadle.server.storage.model_version import MODEL_FILE, Description, StoredModel
from treadle.server.storage.version_index import VersionIndex

if TYPE_CHECKING:
    from treadle.server.storage.database import Database
    from treadle.server.storage.files import DiskSpace

logger = logging.getLogger(__name__)

_REMEMBERED = 4096


CLAIMS = 20
"""How often the claim of one model is tried where its version is deleted, or taken, meanwhile."""


class ModelStore:
    """The models of one data directory, each in versions that never change.

    Args:
        root: The directory of the models' directories.
        tmp: Where versions are made, on the same disk.
        database: Where aliases and the claims of jobs are.
        space: The space of the disk.
        limits: How many models, versions and aliases there may be.
    """

    def __init__(
        self,
        root: Path,
        tmp: Path,
        database: Database,
        space: DiskSpace,
        limits: ModelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._models = root
        self._tmp = tmp
        self._database = database
        self.space = space
        """The space of the disk."""
        self._limits = limits
        self.aliases = Aliases(database, limits.aliases)
        """The aliases of all models."""
        # Versions and aliases change under this lock only.
        self._changing = threading.Lock()
        self._described: OrderedDict[StoredModel, Description] = OrderedDict()
        self._index = VersionIndex(root)

    def check_free(self, name: str) -> None:
        """Checks that versions of a model can be stored, before one is trained.

        Raises:
            StatusError: FAILED_PRECONDITION.
        """
        home = self._models / name
        if home.is_symlink():
            message = f"the server cannot change model {name!r}: a link has the name of its folder"
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)
        if home.exists() and not home.is_dir():
            message = f"the server cannot store model {name!r}: a file has the name of its folder"
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)

    def check_new(self, name: str, alias: str = "", coming: Sequence[str] = ()) -> None:
        """Checks that a model may get one more version, and that version an alias.

        Args:
            name: The name of the model.
            alias: The alias; empty: none.
            coming: The names of the models of which unfinished jobs will store a version each.

        Raises:
            StatusError: FAILED_PRECONDITION.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        self.check_free(name)
        ahead = coming.count(name)
        count = len(self.versions(name))
        if count + ahead >= self._limits.versions:
            raise too_many_versions(name, count, ahead)
        if not count and not ahead:
            models = self._model_count()
            new = sum(not self._is_there(other) for other in {*coming, name})
            if not self._is_there(name) and models + new > self._limits.models:
                raise too_many_models(models)
        if alias:
            self.aliases.check_new(name, alias)

    def versions(self, name: str) -> list[int]:
        """Returns a model's versions, oldest first; none where there is no such model."""
        return [*self._index.numbers(name)]

    def find(self, name: str, version: int = 0) -> StoredModel:
        """Returns one version of a model, by default the newest.

        Args:
            name: NAME or NAME@ALIAS.
            version: Its version; 0: the one of the alias, or the newest.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for an alias and a version; DATA_LOSS for a
                file that cannot be looked at.
            DatabaseError: The database failed.
        """
        name, alias = split(name, version)
        if alias and not is_name(name):  # so far only the form of NAME@ALIAS was checked
            raise not_found(shorten(name, 100))
        if alias and alias != LATEST:
            version = self.aliases.version(name, alias)
            if version < 1:
                raise unknown_alias(name, alias) if self.versions(name) else not_found(name)
        if not version:
            return self._newest_of(name)
        try:
            return self._stat(name, version)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(name, version) from None
        except OSError as error:
            if is_out_of_files(error):  # the file itself may be whole
                raise
            fault = LoadError(error.strerror or "the disk failed")
            raise damaged(name, version, fault) from error

    def find_identical(self, name: str, sha256: str) -> StoredModel | None:
        """Returns the newest version of a model whose file has a hash; None without one.

        The file is read again, so that a damaged one is not taken for what it should be.

        Args:
            name: The name of the model.
            sha256: The hash, in lower-case hexadecimal.

        Raises:
            OSError: The disk failed.
        """
        for version in reversed(self.versions(name)):
            home = self._models / name / str(version)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
                if model_version.sha256(home) != sha256:
                    continue
                if model_version.file_hash(home / MODEL_FILE) == sha256:
                    return self._stat(name, version)
        return None

    def _newest_of(self, name: str) -> StoredModel:
        for _ in range(2):
            version = max(self._index.numbers(name), default=0)
            if not version:
                break
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return self._stat(name, version)
            self._index.forget(name)  # its file was removed by hand
        raise not_found(name)

    def set_alias(self, name: str, alias: str, version: int = 0) -> StoredModel:
        """Makes an alias lead to a version, and to no other version any more.

        Args:
            name: The name of the model.
            alias: The alias.
            version: The version; 0: the newest.

        Returns:
            The version.

        Returns:
            The version that has the alias now.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for what cannot be an alias;
                FAILED_PRECONDITION where the model has too many.
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        check_alias(alias)
        with self._changing:
            model = self.find(name, version)
            self.aliases.check_new(model.name, alias)
            self.aliases.set(model.name, alias, model.version)
        return model

    def bytes_of(self, owner: str) -> int:
        """Returns the bytes of the stored versions that an owner's jobs and streams made."""
        return self._database.model_bytes(owner)

    def is_stored(self, name: str, version: int) -> bool:
        """Returns whether a version of a model is on disk."""
        return self._file(name, version).is_file()

    def _is_there(self, name: str) -> bool:
        return (self._models / name).exists()

    def _model_count(self) -> int:
        return len(os.listdir(self._models))

    def delete_alias(self, name: str, alias: str) -> None:
        """Deletes an alias of a model; its version stays.

        Raises:
            StatusError: NOT_FOUND.
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        if not self.aliases.delete(name, alias):
            raise unknown_alias(name, alias) if self.versions(name) else not_found(name)

    def describe(self, model: StoredModel) -> Description:
        """Returns the description of a version; remembered, since versions never change.

        Raises:
            StatusError: DATA_LOSS where the file is damaged; NOT_FOUND where it is gone.
        """
        description = self._described.get(model)
        if description is None:
            description = self._describe(model)
            self._remember(model, description)
        return description

    def _describe(self, model: StoredModel) -> Description:
        return model_version.describe(model)

    def _remember(self, model: StoredModel, description: Description) -> None:
        self._described[model] = description
        while len(self._described) > _REMEMBERED:
            self._described.popitem(last=False)

    def newest(
        self, after: str = "", is_shown: Callable[[str], bool] = lambda _: True
    ) -> Iterator[StoredModel]:
        """Yields the newest version of each model, by name.

        Models that cannot be read are included; `describe` raises their error.

        Args:
            after: The name after which they begin.
            is_shown: Returns whether to yield the model of a name; others are not looked up.
        """
        names = sorted(name for name in os.listdir(self._models) if name > after)
        for name in filter(is_shown, filter(is_name, names)):
            try:
                yield self.find(name)
            except StatusError:  # it has no version, or was just deleted
                continue
            except OSError as error:
                if is_out_of_files(error):
                    raise
                # Its directory cannot be read, so its versions are unknown.
                logger.warning("a model cannot be read: %s", error)
                yield StoredModel(name, 0, self._file(name, 0), 0.0, 0)

    def is_local(self, model: StoredModel) -> bool:
        """Returns whether `local_file` need not wait for another machine.

        Args:
            model: The version.
        """
        return True

    @contextlib.contextmanager
    def local_file(self, model: StoredModel) -> Iterator[Path]:
        """Yields the path of a version's file on this machine, where it stays within.

        Args:
            model: The version.

        Yields:
            The path. The file is missing where the version was deleted.
        """
        yield model.path

    def is_file_of(self, model: StoredModel, handle: int) -> bool:
        """Returns whether an open file is that of a version, and its name still leads to it.

        Args:
            model: The version.
            handle: The file, which `local_file` led to.
        """
        found = os.fstat(handle)
        if (found.st_mtime, found.st_size) != (model.created_s, model.size_bytes):
            return False
        try:
            named = os.stat(model.path)
        except FileNotFoundError:  # deleted meanwhile, but described before
            return True
        return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)

    def _file(self, name: str, version: int) -> Path:
        return self._models / name / str(version) / MODEL_FILE

    def _stat(self, name: str, version: int) -> StoredModel:
        """Returns a version.

        Raises:
            FileNotFoundError: It has no file, or a pipe, a directory or the like in its place.
        """
        path = self._file(name, version)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return StoredModel(name, version, path, found.st_mtime, found.st_size)

    def new_draft(self) -> Path:
        """Returns a new directory under `tmp/` in which a version is made."""
        draft = self._tmp_name("model")
        draft.mkdir(mode=0o770)
        return draft

    def discard(self, path: Path) -> None:
        """Removes a directory that `new_draft` returned, if it still exists.

        A file that cannot be removed is logged and stays until the next start.
        """
        files.remove(path)

    def next_version(self, name: str) -> int:
        """Returns the number of the next version of a model.

        It is above every existing version and above every number that an unfinished job has in
        `claim`. The caller must store it there before another job asks.

        Args:
            name: The name of the model.

        Raises:
            DatabaseError: The database failed.
        """
        pending = self._database.pending_claims(name)
        return max([*model_version.numbers(self._models / name), *pending], default=0) + 1

    def claim(
        self,
        name: str,
        draft: Path,
        version: int = 0,
        owner: str = "",
        *,
        job: str = "",
        fence: int | None = None,
    ) -> StoredModel:
        """Makes the model in a draft a version of `name`.

        With a version the call may be repeated after a crash: an existing version with the same
        content, or whose draft is gone, counts as claimed.

        Args:
            name: The model's name, already checked.
            draft: Directory of `new_draft` that holds MODEL_FILE; it is moved away.
            version: What `next_version` returned; 0: a new one.
            owner: The caller whose job or stream made it; empty: no known one.
            job: The id of the job that made it; empty: none did.
            fence: The fence of the lease under which that job runs; None: it has no lease, and only
                this server stores versions.

        Returns:
            The version.

        Raises:
            LostLeaseError: The job has another fence.
            LoadError: The draft's file is damaged.
            StatusError: ABORTED: the version exists with other content.
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
                # The row first: after a crash a version without an owner would count for nobody.
                size = (draft / MODEL_FILE).stat().st_size
                self._database.set_version_owner(name, version, owner, size, time.time())
                self._move_in(name, draft, version)
        # Hashed in its final place, where it is safe: a large model takes seconds.
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            model_version.sha256(self._models / name / str(version))
        return self._stat(name, version)

    def claim_file(
        self,
        name: str,
        path: Path,
        version: int,
        owner: str = "",
        *,
        job: str = "",
        fence: int | None = None,
    ) -> StoredModel:
        """Makes a model's file a version of `name` by a link or a copy.

        The call may be repeated after a crash, as `claim`, also where the file is gone meanwhile.

        Args:
            name: The model's name, already checked.
            path: The file; it must be replaced, never written to, from now on.
            version: What `next_version` returned.
            owner: As for `claim`.
            job: As for `claim`.
            fence: As for `claim`.

        Returns:
            The version.

        Raises:
            As `claim`; FileNotFoundError where neither the file nor the version is there.
        """
        draft = self.new_draft()
        try:
            if not self._is_claimed(name, path, version):
                files.link_or_copy(path, draft / MODEL_FILE, self.space)
            return self.claim(name, draft, version, owner, job=job, fence=fence)
        finally:
            self.discard(draft)

    def delete(self, name: str, version: int | None, *, force: bool = False) -> list[int]:
        """Deletes one version of a model, or all of them.

        Args:
            name: The model's name.
            version: The version; None: all of them.
            force: Whether to delete versions that have aliases, and these aliases.

        Returns:
            The versions deleted, oldest first.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: an alias leads to one of the versions, or
                the model is a link, which can only be deleted as a whole.
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
            # First the files, then the records: on a full disk that frees space for them.
            is_kept = keeper is None or _made(keeper)
            files.sync(self._models if gone == present else home)
            self.discard(trash)
            if keeper is not None and not is_kept:
                keeper.mkdir(mode=0o770)
                files.sync(home)
            self._forget_records(name, gone)
        return gone

    def _check_unnamed(self, name: str, gone: list[int]) -> None:
        """Checks that no alias leads to versions that are to be deleted."""
        named = [
            f"{alias} points to version {version}"
            for alias, version in self.aliases.of_model(name).items()
            if version in gone
        ]
        if named:
            shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
            noun = "alias" if len(named) == 1 else "aliases"
            raise precondition(
                f"{noun} {shown} of model {name!r}: move or remove the {noun} first, or set force"
            )

    def _forget_records(self, name: str, gone: list[int]) -> None:
        """Deletes aliases and owners of versions that are gone."""
        # `find` reports that aliases lead nowhere, and `_move_in` deletes them for a new version.
        # The retention forgets owners.
        forgetting = {"aliases": self.aliases.forget, "owners": self._database.forget_versions}
        for what, forget in forgetting.items():
            try:
                forget(name, gone)
            except (OSError, DatabaseError) as error:
                logger.warning("%s of deleted versions of %s remain: %s", what, name, error)

    def _is_claimed(self, name: str, path: Path, version: int) -> bool:
        """Returns whether a version exists already and is the file at `path`, or was."""
        stored = self._file(name, version)
        if not stored.is_file():
            return False
        if not path.exists() or path.samefile(stored):
            return True
        if model_version.file_hash(path) == model_version.file_hash(stored):
            return True
        raise taken(name, version)

    def _move_in(self, name: str, draft: Path, version: int) -> None:
        """Makes a draft a version that does not exist or is an empty directory."""
        if (
            version in self.aliases.of_model(name).values()
        ):  # an alias of an earlier model of this name
            self.aliases.forget(name, [version])
        home = self._models / name
        self.check_free(name)
        home.mkdir(mode=0o770, exist_ok=True)
        newest = max(model_version.numbers(home), default=0)
        os.rename(draft, home / str(version))
        self._index.forget(name)
        files.sync(home)
        if newest < version:  # an empty directory is not needed any more to keep its number
            with contextlib.suppress(OSError):
                (home / str(newest)).rmdir()
        files.sync(self._models)

    def _tmp_name(self, kind: str) -> Path:
        return self._tmp / f"{kind}-{secrets.token_hex(8)}"


def taken(name: str, version: int) -> StatusError:
    """Returns ABORTED for a version that exists with other content."""
    message = f"version {version} of model {name!r} is stored already with other weights"
    return StatusError(grpc.StatusCode.ABORTED, message)


def always_deleted(name: str) -> StatusError:
    """Returns ABORTED for a model that was deleted each time that it was stored."""
    return aborted(
        f"model {name!r} was deleted {CLAIMS} times while it was stored: repeat the "
        "request when no other client deletes it"
    )


def _made(folder: Path) -> bool:
    """Makes a directory; returns whether there was space for it."""
    try:
        folder.mkdir(mode=0o770)
    except OSError as error:
        if not is_full(error):
            raise
        return False
    return True
