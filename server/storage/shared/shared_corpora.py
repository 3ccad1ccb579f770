"""`SharedCorpora` stores each corpus once, as a blob that several servers share.

An upload is written and hashed here, and stored when it is complete; until then nobody else sees
it. What an upload stores that becomes no job stays until the retention deletes it, since another
server may have begun to use it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.storage.corpora import Corpora, is_hash
from treadle.server.storage.shared.keys import CORPORA, corpus_key

if TYPE_CHECKING:
    from treadle.server.storage.blobs.blob_cache import BlobCache, HeldBlob
    from treadle.server.storage.blobs.blob_store import BlobStore
    from treadle.server.storage.database import Database
    from treadle.server.storage.files import DiskSpace


class SharedCorpora(Corpora):
    """The corpora of several servers. Its paths are those of the cache of this machine.

    Args:
        root: The data directory of this server.
        tmp: Where corpora are written, on the same disk.
        database: Where their last use is stored.
        space: The space of the disk.
        folder: The folder of the cache in the data directory.
        blobs: Where the corpora are.
        cache: Brings them to this machine.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(
        self,
        root: Path,
        tmp: Path,
        database: Database,
        space: DiskSpace,
        folder: str,
        *,
        blobs: BlobStore,
        cache: BlobCache,
    ) -> None:
        super().__init__(root, tmp, database, space, folder)
        self._blobs = blobs
        self._cache = cache
        self._brought: dict[str, list[HeldBlob]] = {}
        """The files of uploads without a job yet, by their hashes."""

    def open(self, sha256: str) -> int:
        """Returns a handle that reads a corpus, also once it is removed.

        Args:
            sha256: Its hash.

        Raises:
            FileNotFoundError: It is not stored.
            DamagedBlobError: It is damaged.
            BlobsUnavailableError: It has to be fetched, and the store cannot be reached.
            OSError: The disk failed or is full.
        """
        with self._cache.use(corpus_key(sha256), sha256) as path:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)

    def has(self, sha256: str) -> bool:
        """Returns whether the corpus of a hash is stored; False for a text that is not a hash."""
        return is_hash(sha256) and self._blobs.head(corpus_key(sha256)) is not None

    def stored(self) -> Iterator[tuple[str, int]]:
        """Yields hash and size in bytes of every corpus in the store."""
        for blob in self._blobs.list(CORPORA):
            sha256 = blob.key.removeprefix(CORPORA)
            if is_hash(sha256):
                yield sha256, blob.size

    def claim(self, path: Path, sha256: str, size: int, *, held: bool = False) -> None:
        """Makes a complete file the corpus of its hash; drops it where that is stored.

        Args:
            path: The file, on the same disk; it is gone afterwards.
            sha256: Its hash.
            size: Its size in bytes.
            held: Whether its bytes stay here until `release`.

        Raises:
            BlobsUnavailableError: The store cannot be reached.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        brought = self._cache.add(path, sha256, move=True)
        try:
            self._keep_stored(sha256, brought.path)
        except BaseException:
            brought.release()
            raise
        if not held:
            brought.release()
            return
        with self._changing:
            self._uploads[sha256] += 1
            self._brought.setdefault(sha256, []).append(brought)

    def release(self, sha256: str, *, needed: bool) -> None:
        """Ends what `hold`, or `claim` with `held`, began.

        Args:
            sha256: The corpus.
            needed: Whether a job needs it by now. Then it is stored once more if another server
                has removed it meanwhile, since nothing had needed it.

        Raises:
            BlobsUnavailableError: The store cannot be reached.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._changing:
            brought = self._brought.get(sha256)
            mine = brought.pop() if brought else None
            if not brought:
                self._brought.pop(sha256, None)
            self._uploads[sha256] -= 1
            if self._uploads[sha256] <= 0:
                del self._uploads[sha256]
        if mine is None:
            return
        try:
            if needed:
                self._keep_stored(sha256, mine.path)
        finally:
            mine.release()

    def expire(self, sha256: str, before_s: float) -> bool:
        """Removes a corpus that was last used before a time, by any server; see `Corpora.expire`.

        Args:
            sha256: Its hash.
            before_s: The time, in seconds since the epoch.

        Returns:
            Whether the corpus was removed.

        Raises:
            ValueError: It is no SHA-256 in lower-case hexadecimal.
            BlobsUnavailableError: The store cannot be reached; the sweep deletes the blob then.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._changing:
            if sha256 in self._uploads:
                return False
            return self._remove_unused(sha256, before_s)

    def _keep_stored(self, sha256: str, path: Path) -> None:
        """Stores a corpus unless it is stored, and notes that it is used now."""
        key = corpus_key(sha256)
        size = path.stat().st_size
        found = self._blobs.head(key)
        is_whole = found is not None and found.size == size and not self._cache.is_damaged(sha256)
        # Without a row it may be about to be deleted. That it is used is noted at once, so that
        # no other server deletes it then.
        if not is_whole or not self._database.touch_known_corpus(sha256, time.time()):
            self._blobs.put(key, path)
            self._cache.note_repair(sha256)
        self._database.touch_corpus(sha256, size, time.time())

    def _touch(self, sha256: str) -> int | None:
        # Noted at once, so that no other server deletes it then.
        if not is_hash(sha256) or not self._database.touch_known_corpus(sha256, time.time()):
            return None
        if self._cache.is_damaged(sha256):  # a client sends it again then
            return None
        found = self._blobs.head(corpus_key(sha256))
        return None if found is None else found.size

    def _remove(self, sha256: str) -> None:
        self._remove_unused(sha256, None)

    def _remove_unused(self, sha256: str, before_s: float | None) -> bool:
        """Removes a corpus unless it was used since a time; returns whether it did."""
        if not is_hash(sha256):
            raise ValueError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hexadecimal")
        # The row first: a blob without a row is deleted by the sweep.
        if not self._database.forget_corpus(sha256, before_s):
            return False
        self._blobs.delete([corpus_key(sha256)])
        self._cache.forget(sha256)
        return True
