"""`BlobCache` keeps copies of blobs on this machine: a file for each content, named by its hash.

A blob is fetched when it is first needed, once for all who wait for it. A file is checked by its
hash before it is used; a damaged one is fetched again. Files that were not used for longest go
first, and none that is in use. All methods block and may be called from any thread.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from treadle.model.atomic_files import remove_leftovers
from treadle.server.failures import DamagedBlobError
from treadle.server.storage.blobs.blob_store import BlobStore
from treadle.server.storage.files import DiskSpace, link_or_copy
from treadle.server.storage.model_version import file_hash

logger = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")

_CHECKED_S = 600.0
"""Seconds for which a file counts as undamaged that has not changed since it was hashed."""

Signature = tuple[int, int, int]
"""Inode, time of the last change and size of a file, which differ once it has changed."""


@dataclass
class _Entry:
    """A file of the cache."""

    size: int
    users: int = 0
    """How many use it."""
    signature: Signature | None = None
    """The file when it was last hashed; None: never by this process."""
    checked_s: float = field(default=0.0)
    """When that was, by `time.monotonic`."""


class HeldBlob:
    """A file of the cache that stays until `release`.

    Args:
        cache: The cache.
        sha256: The hash of the file.
        path: The file.
    """

    def __init__(self, cache: BlobCache, sha256: str, path: Path) -> None:
        self._cache: BlobCache | None = cache
        self._sha256 = sha256
        self.path = path
        """The file."""

    def release(self) -> None:
        """Lets the cache remove the file; may be called again."""
        cache = self._cache
        self._cache = None
        if cache is not None:
            cache._release(self._sha256)


class BlobCache:
    """Copies of blobs in a directory of this machine.

    Args:
        root: The directory, which exists; only this object changes it.
        blobs: Where the blobs are.
        space: The space of its disk.
        max_bytes: Bytes up to which files are kept that nobody uses. The one used last is always
            kept.

    Raises:
        OSError: The disk failed.
    """

    def __init__(self, root: Path, blobs: BlobStore, space: DiskSpace, max_bytes: int) -> None:
        self._root = root
        self._blobs = blobs
        self._space = space
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The files, the one used last at the end."""
        self._fetching: dict[str, Future[None]] = {}
        self._damaged: set[str] = set()
        """The hashes of blobs that were damaged when they were fetched last."""
        self._bytes = 0
        remove_leftovers(root)
        found = [(path.stat().st_mtime, path) for path in root.iterdir() if path.is_file()]
        for _, path in sorted(found):
            if _HASH.fullmatch(path.name):
                self._note(path.name, path.stat().st_size)
        self._evict()
        space.make_room = self.make_room

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return self._bytes

    def path(self, sha256: str) -> Path:
        """Returns where the file of a hash is, or would be.

        Raises:
            ValueError: It is not a SHA-256 in lower-case hexadecimal.
        """
        if not _HASH.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hexadecimal")
        return self._root / sha256

    def has(self, sha256: str) -> bool:
        """Returns whether the file of a hash is here, so that `hold` need not wait for the store.

        Args:
            sha256: Its hash.
        """
        with self._lock:
            return sha256 in self._entries and sha256 not in self._fetching

    def is_damaged(self, sha256: str) -> bool:
        """Returns whether the blob of a hash was damaged when it was fetched last.

        Args:
            sha256: Its hash.
        """
        return sha256 in self._damaged

    def note_repair(self, sha256: str) -> None:
        """Notes that the blob of a hash was stored again.

        Args:
            sha256: Its hash.
        """
        self._damaged.discard(sha256)

    def hold(self, key: str, sha256: str) -> HeldBlob:
        """Returns the file of a blob, fetched if need be, which stays until it is released.

        Args:
            key: The blob.
            sha256: The hash of its content.

        Raises:
            FileNotFoundError: There is no such blob.
            DamagedBlobError: The blob is damaged.
            BlobsUnavailableError: It has to be fetched, and the store cannot be reached.
            OSError: The disk failed or is full.
        """
        path = self.path(sha256)
        while True:
            with self._lock:
                entry = self._entries.get(sha256)
                if entry is not None and self._is_checked(path, entry):
                    entry.users += 1
                    self._entries.move_to_end(sha256)
                    return HeldBlob(self, sha256, path)
                running = self._fetching.get(sha256)
                mine = Future[None]()
                if running is None:
                    self._fetching[sha256] = mine
            if running is not None:
                running.result()
                continue
            try:
                self._bring(key, sha256, path)
                mine.set_result(None)
                return HeldBlob(self, sha256, path)
            except BaseException as error:
                mine.set_exception(error)  # for those who wait
                raise
            finally:
                with self._lock:
                    del self._fetching[sha256]

    @contextmanager
    def use(self, key: str, sha256: str) -> Iterator[Path]:
        """Yields the file of a blob, which stays within; see `hold`."""
        held = self.hold(key, sha256)
        try:
            yield held.path
        finally:
            held.release()

    def add(self, path: Path, sha256: str, *, move: bool) -> HeldBlob:
        """Makes a file of this machine the one of its hash, so that it need not be fetched.

        Args:
            path: The file, on the same disk, which nobody changes any more.
            sha256: The hash of its content.
            move: Whether to move it; if not, it is linked or copied.

        Returns:
            The file, which stays until it is released.

        Raises:
            OSError: The disk failed or is full.
        """
        place = self.path(sha256)
        is_new = True
        if move:
            os.replace(path, place)
        else:
            try:
                link_or_copy(path, place, self._space)
            except FileExistsError:  # which may be damaged
                is_new = False
        with self._lock:
            entry = self._note(sha256, place.stat().st_size)
            entry.users += 1
            if is_new:
                entry.signature = _signature(place)
                entry.checked_s = time.monotonic()
        self._evict()
        return HeldBlob(self, sha256, place)

    def forget(self, sha256: str) -> None:
        """Removes the file of a hash, unless it is in use; what has it open can still read it."""
        with self._lock:
            entry = self._entries.get(sha256)
            if entry is not None and not entry.users and sha256 not in self._fetching:
                self._remove(sha256)

    def _is_checked(self, path: Path, entry: _Entry) -> bool:
        """Returns whether a file was hashed lately, and has not changed since then."""
        if entry.signature is None or time.monotonic() - entry.checked_s > _CHECKED_S:
            return False
        try:
            return _signature(path) == entry.signature
        except FileNotFoundError:
            return False

    def _bring(self, key: str, sha256: str, path: Path) -> None:
        """Checks the file of a hash that is here, or fetches its blob; it is in use then."""
        signature = _whole(path, sha256)
        if signature is None:
            self._fetch(key, sha256, path)
            signature = _signature(path)
        with self._lock:
            entry = self._note(sha256, signature[2])
            entry.users += 1
            entry.signature = signature
            entry.checked_s = time.monotonic()
        self._evict()

    def _fetch(self, key: str, sha256: str, path: Path) -> None:
        """Fetches a blob."""
        if path.exists():
            logger.warning("%s in the cache is damaged, and is fetched again", key)
        try:
            self._blobs.fetch(key, path, sha256, self._space.require)
        except DamagedBlobError:
            self._damaged.add(sha256)
            raise
        self._damaged.discard(sha256)

    def _release(self, sha256: str) -> None:
        with self._lock:
            self._entries[sha256].users -= 1
        self._evict()

    def _note(self, sha256: str, size: int) -> _Entry:
        """Returns the entry of a file as the one used last, made if it is missing."""
        entry = self._entries.setdefault(sha256, _Entry(0))
        self._bytes += size - entry.size
        entry.size = size
        self._entries.move_to_end(sha256)
        return entry

    def make_room(self, missing: int) -> None:
        """Removes what was not used for longest, as far as nobody uses it.

        Args:
            missing: The bytes that are needed on the disk.
        """
        self._remove_until(self._bytes - missing, "")

    def _evict(self) -> None:
        """Removes what was not used for longest while all together is too large."""
        with self._lock:
            newest = next(reversed(self._entries), "")
        self._remove_until(self._max_bytes, newest)

    def _remove_until(self, left: int, kept: str) -> None:
        """Removes files until so many bytes are left, except the one of a hash."""
        with self._lock:
            for sha256 in [*self._entries]:
                if self._bytes <= left:
                    break
                entry = self._entries[sha256]
                if not entry.users and sha256 != kept and sha256 not in self._fetching:
                    self._remove(sha256)

    def _remove(self, sha256: str) -> None:
        self._bytes -= self._entries.pop(sha256).size
        with suppress(FileNotFoundError):
            (self._root / sha256).unlink()


def _signature(path: Path) -> Signature:
    """Returns what differs between a file and a changed one."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _whole(path: Path, sha256: str) -> Signature | None:
    """Returns the signature of a file that has a hash; None where there is no such file."""
    try:
        signature = _signature(path)
        return signature if file_hash(path) == sha256 else None
    except FileNotFoundError:
        return None
