"""`SharedModelStore` keeps models that several servers share: rows of a database, and blobs.

A version is claimed, uploaded and then entered into the table `versions`, from which moment it
exists. The claim is a small blob that is created if it is absent; the row decides where two have
claimed one number. A version is deleted in its row first, and its number is not given again. What
a server leaves behind that is killed in between, the sweep deletes: see `orphan_sweep`. Files are
read from the cache of this machine.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.model.errors import LoadError
from treadle.server.errors import damaged, not_found
from treadle.server.failures import BlobsUnavailableError, DamagedBlobError
from treadle.server.storage import model_version
from treadle.server.storage.model_limits import DEFAULT_LIMITS, ModelLimits
from treadle.server.storage.model_version import MODEL_FILE, Description, StoredModel
from treadle.server.storage.models import CLAIMS, ModelStore, taken
from treadle.server.storage.schema import VersionRow
from treadle.server.storage.shared.keys import claim_key, model_key, version_prefix
from treadle.server.storage.shared.shared_aliases import SharedAliases
from treadle.server.storage.shared.stored_description import read_description, written_description
from treadle.server.storage.shared.version_memory import VersionMemory

if TYPE_CHECKING:
    from treadle.server.storage.blobs.blob_cache import BlobCache
    from treadle.server.storage.blobs.blob_store import BlobStore
    from treadle.server.storage.database import Database
    from treadle.server.storage.files import DiskSpace

logger = logging.getLogger(__name__)

_PAGE = 200
"""Models that are read from the database at once."""


class SharedModelStore(ModelStore):
    """The models of several servers, each in versions that never change.

    Args:
        root: The directory of the cache.
        tmp: Where versions are made, on the same disk.
        database: Where versions, aliases and the claims of jobs are.
        space: The space of the disk.
        limits: How many models, versions and aliases there may be.
        blobs: Where the files are.
        cache: Brings files to this machine.
    """

    def __init__(
        self,
        root: Path,
        tmp: Path,
        database: Database,
        space: DiskSpace,
        limits: ModelLimits = DEFAULT_LIMITS,
        *,
        blobs: BlobStore,
        cache: BlobCache,
    ) -> None:
        super().__init__(root, tmp, database, space, limits)
        self._blobs = blobs
        self._cache = cache
        self.memory = VersionMemory(database)
        """What is remembered of each model."""
        self.aliases = SharedAliases(database, limits.aliases, self.memory)

    def check_free(self, name: str) -> None:
        """Does nothing: no file can be in the way of a model."""

    def versions(self, name: str) -> list[int]:
        """Returns a model's versions, oldest first; none where there is no such model.

        Raises:
            DatabaseError: The database failed.
        """
        return [*self.memory.of(name).versions]

    def find_identical(self, name: str, sha256: str) -> StoredModel | None:
        """Returns the newest version of a model whose file has a hash; None without one.

        Raises:
            OSError: The disk failed.
            DatabaseError: The database failed.
            BlobsUnavailableError: The store cannot be reached.
        """
        for row in reversed(self.memory.read(name).versions.values()):
            if row.sha256 != sha256:
                continue
            model = self._stored(row)
            with contextlib.suppress(FileNotFoundError, DamagedBlobError), self.local_file(model):
                return model
        return None

    def is_stored(self, name: str, version: int) -> bool:
        """Returns whether a version of a model exists.

        Raises:
            DatabaseError: The database failed.
        """
        return version in self.memory.read(name).versions

    def newest(
        self, after: str = "", is_shown: Callable[[str], bool] = lambda _: True
    ) -> Iterator[StoredModel]:
        """Yields the newest version of each model, by name.

        Args:
            after: The name after which they begin.
            is_shown: Returns whether to yield the model of a name.

        Raises:
            DatabaseError: The database failed.
        """
        while rows := self._database.newest_versions(after, _PAGE):
            after = rows[-1].model
            for row in rows:
                if is_shown(row.model):
                    model = self._stored(row)
                    description = read_description(row.description, row.sha256)
                    if description is not None:
                        self._remember(model, description)
                    yield model

    def is_local(self, model: StoredModel) -> bool:
        """Returns whether a version's file is on this machine."""
        return self._cache.has(model.path.name)

    @contextlib.contextmanager
    def local_file(self, model: StoredModel) -> Iterator[Path]:
        """Yields the path of a version's file on this machine, where it stays within.

        Raises:
            FileNotFoundError: The version was deleted.
            DamagedBlobError: Its file is damaged.
            BlobsUnavailableError: It has to be fetched, and the store cannot be reached.
            OSError: The disk failed or is full.
        """
        sha256 = model.path.name
        try:
            held = self._cache.hold(model_key(model.name, model.version, sha256), sha256)
        except FileNotFoundError as error:
            row = self.memory.read(model.name).versions.get(model.version)
            if row is None or row.sha256 != sha256:
                raise
            raise DamagedBlobError(errno.EIO, "its file is missing in the store") from error
        try:
            yield held.path
        finally:
            held.release()

    def is_file_of(self, model: StoredModel, handle: int) -> bool:
        """Returns True: the cache has checked the hash of the file."""
        return True

    def next_version(self, name: str) -> int:
        """Returns the number of the next version of a model.

        Raises:
            DatabaseError: The database failed.
        """
        return self._database.next_version(name)

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
        """Makes the model in a draft a version of `name`; see `ModelStore.claim`.

        Returns:
            The version.

        Raises:
            LostLeaseError: The job has another fence.
            LoadError: The draft's file is damaged.
            StatusError: ABORTED: the version exists with other content.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
            BlobsUnavailableError: The store cannot be reached.
        """
        path = draft / MODEL_FILE
        try:
            return self._store(name, path, version, owner, job=job, fence=fence, move=True)
        finally:
            self.discard(draft)

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
        """Makes a model's file a version of `name`; see `ModelStore.claim_file`.

        Returns:
            The version.

        Raises:
            As `claim`; FileNotFoundError where neither the file nor the version is there.
        """
        return self._store(name, path, version, owner, job=job, fence=fence, move=False)

    def delete(self, name: str, version: int | None, *, force: bool = False) -> list[int]:
        """Deletes one version of a model, or all of them.

        Args:
            name: The model's name.
            version: The version; None: all of them.
            force: Whether to delete versions that have aliases, and these aliases.

        Returns:
            The versions deleted, oldest first.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION: an alias leads to one of the versions.
            DatabaseError: The database failed.
        """
        with self._changing:
            present = self.memory.read(name).versions
            gone = {number: row for number, row in present.items() if version in (None, number)}
            if not gone:
                raise not_found(name, version or 0)
            if not force:
                self._check_unnamed(name, [*gone])
            while not self._database.delete_versions(name, [*gone], unnamed=not force):
                self._check_unnamed(name, [*gone])  # another server has just set an alias
            self.memory.forget(name)
            self._forget_records(name, [*gone])
        try:
            for number in gone:
                keys = [blob.key for blob in self._blobs.list(version_prefix(name, number))]
                self._blobs.delete(keys)
        except BlobsUnavailableError as error:
            logger.warning("files of deleted versions of %s are deleted later: %s", name, error)
        for row in gone.values():
            self._cache.forget(row.sha256)
        return [*gone]

    def _is_there(self, name: str) -> bool:
        return bool(self.versions(name))

    def _model_count(self) -> int:
        return self._database.count_models()

    def _newest_of(self, name: str) -> StoredModel:
        versions = self.memory.of(name).versions or self.memory.read(name).versions
        if not versions:
            raise not_found(name)
        return self._stored(versions[max(versions)])

    def _stat(self, name: str, version: int) -> StoredModel:
        row = self.memory.of(name).versions.get(version)
        if row is None:
            row = self.memory.read(name).versions.get(version)
        if row is None:
            raise FileNotFoundError(f"{name}/{version}")
        return self._stored(row)

    def _stored(self, row: VersionRow) -> StoredModel:
        path = self._cache.path(row.sha256)
        return StoredModel(row.model, row.version, path, row.created_s, row.size)

    def _describe(self, model: StoredModel) -> Description:
        row = self._database.version(model.name, model.version)
        sha256 = model.path.name
        if row is None or row.sha256 != sha256:
            raise not_found(model.name, model.version)
        description = read_description(row.description, sha256)
        if description is not None:
            return description
        try:
            with self.local_file(model) as path:
                return model_version.describe_file(path, sha256)
        except LoadError as error:
            raise damaged(model.name, model.version, error) from error
        except FileNotFoundError:
            raise not_found(model.name, model.version) from None

    def _store(
        self,
        name: str,
        path: Path,
        version: int,
        owner: str,
        *,
        job: str,
        fence: int | None,
        move: bool,
    ) -> StoredModel:
        """Makes a file a version; 0: the next one that nobody takes meanwhile."""
        if not path.exists():
            return self._stored_before(name, version, path)
        sha256 = model_version.file_hash(path)
        description = written_description(model_version.describe_file(path, sha256))
        number = version
        for _ in range(CLAIMS):
            number = version or max(number + 1, self._database.next_version(name))
            row = VersionRow(name, number, sha256, path.stat().st_size, time.time(), description)
            stored = self._enter(row, path, owner, job=job, fence=fence)
            if stored is not None:
                self.memory.forget(name)
                with contextlib.suppress(OSError):  # it can be fetched
                    self._cache.add(path, sha256, move=move).release()
                return self._stored(stored)
            if version:
                break
        raise taken(name, number)

    def _stored_before(self, name: str, version: int, path: Path) -> StoredModel:
        """Returns a version that was stored before from a file that is gone."""
        row = self._database.version(name, version)
        if row is None:
            raise FileNotFoundError(str(path))
        return self._stored(row)

    def _enter(
        self, row: VersionRow, path: Path, owner: str, *, job: str, fence: int | None
    ) -> VersionRow | None:
        """Claims, uploads and enters a version; None where another file has its number."""
        known = self._database.version(row.model, row.version)
        if known is not None:  # of an earlier attempt, or somebody else's
            return known if known.sha256 == row.sha256 else None
        if not self._claim_number(row):
            return None
        key = model_key(row.model, row.version, row.sha256)
        self._blobs.put(key, path)
        # The owner first: after a crash a version without one would count for nobody.
        self._database.set_version_owner(
            row.model, row.version, owner, row.size, row.created_s, job=job, fence=fence
        )
        stored = self._database.add_version(row, job=job, fence=fence)
        if stored.sha256 == row.sha256:
            return stored
        self._blobs.delete([key])
        return None

    def _claim_number(self, row: VersionRow) -> bool:
        """Returns whether a version is this file's, which it is from now on if it was nobody's."""
        key = claim_key(row.model, row.version)
        text = f"{row.sha256}  {row.sha256}.safetensors\n"
        if self._blobs.create(key, text.encode()):
            return True
        with contextlib.suppress(FileNotFoundError):  # just deleted
            return self._blobs.read(key) == text.encode()
        return False
