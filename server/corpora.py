"""Corpora on disk, each once: `DATA_DIR/corpora/SHA256` holds the bytes of that hash.

A corpus is written and hashed under `tmp/`, synced, and claimed by renaming it to its hash. The
database knows when each was last wanted; what nobody wants any more is swept away by
`treadle.server.housekeeping`. Files are closed to others, since a corpus may be private; see
`disk.shared_with_group`. All methods block on the disk and may be called from any thread; a writer
is one caller's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from treadle.server.database import Database
from treadle.server.disk import sync

_HASH = re.compile(r"[0-9a-f]{64}")


class Corpora:
    """The corpora of one data directory.

    Args:
        root: The data directory; `corpora/` is made in it.
        tmp: Where corpora are while they are written; on the same disk.
        database: Where their last use is kept.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(self, root: Path, tmp: Path, database: Database) -> None:
        self._home = root / "corpora"
        self._tmp = tmp
        self._database = database
        # What is there changes under this lock only.
        self._changing = threading.Lock()
        self._home.mkdir(mode=0o770, exist_ok=True)

    def writer(self) -> CorpusWriter:
        """Returns a writer of a new corpus.

        Raises:
            OSError: The disk failed or is full.
        """
        return CorpusWriter(self, self._tmp / f"corpus-{secrets.token_hex(8)}")

    def free(self) -> int:
        """Returns the bytes that are free on the disk of the corpora."""
        return shutil.disk_usage(self._home).free

    def path(self, sha256: str) -> Path:
        """Returns where the corpus of a hash is, if it is stored.

        Raises:
            ValueError: It is no SHA-256 in lower-case hexadecimal.
        """
        if not _HASH.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in lower-case hexadecimal")
        return self._home / sha256

    def has(self, sha256: str) -> bool:
        """Returns whether the corpus of a hash is stored; False for what is no hash."""
        return _HASH.fullmatch(sha256) is not None and (self._home / sha256).is_file()

    def want(self, sha256: str) -> int | None:
        """Notes that a corpus is wanted now, so that it stays; returns its bytes.

        Returns:
            None where it is not stored.
        """
        with self._changing:
            if not self.has(sha256):
                return None
            size = self.path(sha256).stat().st_size
            self._database.touch_corpus(sha256, size, time.time())
            return size

    def stored(self) -> Iterator[tuple[str, int]]:
        """Yields hash and bytes of every corpus on disk; other files are left out."""
        with os.scandir(self._home) as entries:
            for entry in entries:
                if _HASH.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        yield entry.name, entry.stat().st_size

    def remove(self, sha256: str) -> None:
        """Removes a corpus, if it is stored. Who has it mapped keeps it until then.

        Raises:
            ValueError: It is no SHA-256 in lower-case hexadecimal.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._changing:
            self._remove(sha256)

    def expire(self, sha256: str, before_s: float) -> bool:
        """Removes a corpus that was last wanted before a time, and returns whether it was.

        Unlike `remove` it looks again under the lock, so that a corpus that is wanted at this
        very moment stays.

        Raises:
            ValueError, OSError, DatabaseError: As `remove`.
        """
        with self._changing:
            used_s = {known: used for known, _, used in self._database.corpora()}.get(sha256)
            if used_s is None or used_s >= before_s:
                return False
            self._remove(sha256)
        return True

    def claim(self, path: Path, sha256: str, size: int) -> None:
        """Makes a whole, synced file the corpus of its hash, or drops it where that is stored.

        Args:
            path: The file, on the same disk; it is gone afterwards.
            sha256: Its hash.
            size: Its bytes.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        with self._changing:
            place = self.path(sha256)
            if place.is_file() and place.stat().st_size == size:
                path.unlink()
            else:  # not there, or cut short by something beyond us
                os.rename(path, place)
                sync(self._home)
            self._database.touch_corpus(sha256, size, time.time())

    def _remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)
        self._database.forget_corpus(sha256)


class CorpusWriter:
    """A corpus that is being written.

    Args:
        corpora: Where it belongs when it is whole.
        path: Its file until then; must not exist.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(self, corpora: Corpora, path: Path) -> None:
        self._corpora = corpora
        self._path = path
        self._hash = hashlib.sha256()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
        # A cancelled call cannot take its write back from a thread: it must not meet a handle
        # that was closed under it and given to another file.
        self._using = threading.Lock()
        self.size = 0
        """Bytes written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes; neither hashing nor writing copies them.

        Raises:
            OSError: The disk failed or is full; then only `discard` may follow.
        """
        with self._using, memoryview(data) as view:
            self._hash.update(view)
            done = 0
            while done < len(view):  # a nearly full disk takes a part
                done += os.write(self._handle, view[done:])
            self.size += done

    def claim(self) -> tuple[str, int]:
        """Stores the corpus; nothing may be written any more.

        Returns:
            Its hash in lower-case hexadecimal, and its bytes.

        Raises:
            OSError: The disk failed or is full; then only `discard` may follow.
            DatabaseError: The database failed.
        """
        with self._using:
            os.fsync(self._handle)
            self._close()
            sha256 = self._hash.hexdigest()
            self._corpora.claim(self._path, sha256, self.size)
        return sha256, self.size

    def discard(self) -> None:
        """Drops what was written, unless it was claimed; may be called again.

        Raises:
            OSError: The disk failed.
        """
        with self._using:
            self._close()
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)
