"""`BlobDirectory` keeps blobs as files of a directory, which several machines may have mounted."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from treadle.model.atomic_files import leftovers, temporary_path
from treadle.server.failures import BlobsUnavailableError, DamagedBlobError
from treadle.server.storage.blobs.blob_store import SMALL_BYTES, Blob, BlobStore
from treadle.server.storage.files import StoreError, sync

MARKER = "treadle-blobs"
"""The file that the directory has, and an empty one in its place, left by a lost mount, has not."""

_PIECE_BYTES = 1 << 20
_TRIES = 8
"""How often a file is placed whose directory is removed meanwhile, since it had become empty."""

_UNFINISHED_S = 86_400.0
"""Seconds after which an unfinished file must be of a server that was killed."""

_LOST = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
"""The errors of a mounted directory whose server is gone."""


class BlobDirectory(BlobStore):
    """Blobs in a directory: the key is the path of the file.

    Args:
        root: The directory; made if it is missing.

    Raises:
        StoreError: It cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = root.as_uri()
        try:
            root.mkdir(mode=0o770, parents=True, exist_ok=True)
            (root / MARKER).touch(mode=0o660)
        except OSError as error:
            raise StoreError(
                f"--blobs-url {self.name} cannot be used: {error.strerror}; name a folder that "
                "this server may write"
            ) from error

    def create(self, key: str, data: bytes) -> bool:
        """Stores a small blob, unless its key is taken; returns whether it was stored."""

        def write(temporary: Path) -> None:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        try:
            self._place(key, write, os.link)
        except FileExistsError:
            return False
        return True

    def put(self, key: str, path: Path) -> None:
        """Stores a file, and replaces the blob of its key."""
        self._place(key, lambda temporary: _copy(path, temporary), os.replace)

    def copy(self, key: str, new: str) -> None:
        """Stores the content of a blob under another key as well."""
        path = self._root / key
        with self._reaching():
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.put(new, path)

    def read(self, key: str) -> bytes:
        """Returns the content of a small blob."""
        with self._reaching(), (self._root / key).open("rb") as file:
            data = file.read(SMALL_BYTES + 1)
        if len(data) > SMALL_BYTES:
            raise DamagedBlobError(errno.EIO, f"blob {key} in {self.name} is too large")
        return data

    def stream(self, key: str) -> Iterator[bytes | memoryview]:
        """Yields the content of a blob, a piece at a time."""
        with self._reaching(), (self._root / key).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def head(self, key: str) -> Blob | None:
        """Returns a blob; None where no blob has that key."""
        with self._reaching(), suppress(FileNotFoundError, NotADirectoryError):
            found = (self._root / key).stat()
            return Blob(key, found.st_size, found.st_mtime)
        self._check_there()
        return None

    def list(self, prefix: str) -> Iterator[Blob]:
        """Yields the blobs whose keys begin with a prefix."""
        self._check_there()
        for place, folders, names in os.walk(self._root / prefix):
            folders.sort()
            for name in sorted(names):
                path = Path(place, name)
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found = path.stat()
                    if not name.startswith(".") and path != self._root / MARKER:
                        key = path.relative_to(self._root).as_posix()
                        yield Blob(key, found.st_size, found.st_mtime)
            self._remove_unfinished(Path(place))

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes blobs; those that are not there are no error."""
        with self._reaching():
            for key in keys:
                path = self._root / key
                path.unlink(missing_ok=True)
                for folder in path.relative_to(self._root).parents[:-1]:
                    try:
                        (self._root / folder).rmdir()
                    except OSError:  # something else is in it
                        break

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def _place(
        self, key: str, write: Callable[[Path], None], move: Callable[[Path, Path], None]
    ) -> None:
        """Writes a file next to its place, and moves it there."""
        path = self._root / key
        for left in reversed(range(_TRIES)):
            temporary = temporary_path(path)
            self._check_there()
            try:
                path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
                write(temporary)
                move(temporary, path)
                sync(path.parent)
                return
            except FileNotFoundError:
                if not left:
                    raise
            except OSError as error:
                self._raise(error)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _check_there(self) -> None:
        """Checks that the directory is mounted.

        Raises:
            BlobsUnavailableError: It is not.
        """
        try:
            found = (self._root / MARKER).exists()
        except OSError as error:
            self._raise(error)
        if not found:
            raise BlobsUnavailableError(
                f"the folder of the blobs {self.name} is not mounted: its file {MARKER} is missing"
            )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Translates the errors within; a missing directory is no missing blob."""
        try:
            yield
        except FileNotFoundError:
            self._check_there()
            raise
        except OSError as error:
            self._raise(error)

    def _raise(self, error: OSError) -> NoReturn:
        """Raises an error of the directory, or BlobsUnavailableError where its server is gone."""
        if error.errno in _LOST:
            text = f"the blobs {self.name} cannot be reached: {error.strerror}"
            raise BlobsUnavailableError(text) from error
        raise error

    def _remove_unfinished(self, folder: Path) -> None:
        """Removes what killed servers have not finished in a folder."""
        for path in leftovers(folder):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                    path.unlink()


def _copy(path: Path, temporary: Path) -> None:
    """Copies a file to a new one, synced."""
    with path.open("rb") as source, temporary.open("xb") as file:
        shutil.copyfileobj(source, file, _PIECE_BYTES)
        file.flush()
        os.fsync(file.fileno())
