"""`Corpora` stores each corpus once: `DATA_DIR/corpora/SHA256` holds the bytes of that hash.

A corpus is written and hashed under `tmp/`, synced, and claimed by renaming it to its hash. The
files of an upload are claimed once the upload is complete (see `UploadFiles`). An upload that
breaks off, or a server that is killed meanwhile, leaves nothing. The database knows when each
corpus was last used, and `treadle.server.storage.retention` deletes the unused ones. Other users
cannot read the files, since a corpus may be private; see `files.shared_with_group`. All methods
block on the disk and may be called from any thread; a writer belongs to one caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.resources.hashed_file import HashedFile
from treadle.server.storage.files import DiskSpace, close_to_others, make_directory, sync

if TYPE_CHECKING:
    from treadle.server.storage.database import Database

_HASH = re.compile(r"[0-9a-f]{64}")


def is_hash(text: str) -> bool:
    """Returns whether a text is a SHA-256 in lower-case hexadecimal."""
    return _HASH.fullmatch(text) is not None


class Corpora:
    """The corpora of one data directory.

    Args:
        root: The data directory; `corpora/` is made in it.
        tmp: Where corpora are written, on the same disk.
        database: Where their last use is stored.
        space: The space of their disk.
        folder: The folder of the data directory in which they are.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(
        self,
        root: Path,
        tmp: Path,
        database: Database,
        space: DiskSpace,
        folder: str = "corpora",
    ) -> None:
        self._home = root / folder
        self._tmp = tmp
        self._database = database
        self._space = space
        self._uploads: Counter[str] = Counter()
        """The number of uploads without a job yet that need a corpus, by its hash."""
        self._new: set[str] = set()
        """Hashes of corpora that only such uploads have brought."""
        # The stored corpora change under this lock only.
        self._changing = threading.Lock()
        make_directory(self._home)
        close_to_others(root, self._home)

    def writer(self) -> CorpusWriter:
        """Returns a writer of a new corpus.

        Raises:
            OSError: The disk failed or is full.
        """
        self._space.require()
        return CorpusWriter(self, self._tmp / f"corpus-{secrets.token_hex(8)}", self._space)

    def path(self, sha256: str) -> Path:
        """Returns the path of the corpus of a hash, stored or not.

        Args:
            sha256: The hash.

        Raises:
            ValueError: It is not a SHA-256 in lower-case hexadecimal.
        """
        if not is_hash(sha256):
            raise ValueError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hexadecimal")
        return self._home / sha256

    def open(self, sha256: str) -> int:
        """Returns a handle that reads a corpus, also once it is removed.

        Args:
            sha256: Its hash.

        Raises:
            FileNotFoundError: It is not stored.
            OSError: The disk failed.
        """
        return os.open(self.path(sha256), os.O_RDONLY | os.O_NOFOLLOW)

    def has(self, sha256: str) -> bool:
        """Returns whether the corpus of a hash is stored; False for a text that is not a hash."""
        return is_hash(sha256) and (self._home / sha256).is_file()

    def touch(self, sha256: str) -> int | None:
        """Notes that a corpus is used now, so that it stays.

        Args:
            sha256: Its hash.

        Returns:
            Its size in bytes; None where it is not stored.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        with self._changing:
            return self._touch(sha256)

    def hold(self, sha256: str, owner: str | None = None) -> int | None:
        """Does the same as `touch`, and keeps the corpus until `release`.

        Args:
            sha256: Its hash.
            owner: The owner to whom it must belong; None: nobody in particular.

        Returns:
            Its size in bytes; None where it is not stored, or not one of the owner.
        """
        if owner is not None and not self._database.owns_corpus(owner, sha256):
            return None
        with self._changing:
            size = self._touch(sha256)
            if size is not None:
                self._uploads[sha256] += 1
            return size

    def release(self, sha256: str, *, needed: bool) -> None:
        """Ends what `hold`, or `claim` with `held`, began.

        Args:
            sha256: The corpus.
            needed: Whether a job needs it by now. If not, and only uploads that failed have
                brought it, it is removed.

        Raises:
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._changing:
            self._uploads[sha256] -= 1
            last = self._uploads[sha256] <= 0
            if last:
                del self._uploads[sha256]
            if needed:
                self._new.discard(sha256)
            if last and sha256 in self._new:
                self._new.discard(sha256)
                self._remove(sha256)

    def stored(self) -> Iterator[tuple[str, int]]:
        """Yields hash and size in bytes of every corpus on disk; other files are left out."""
        with os.scandir(self._home) as entries:
            for entry in entries:
                if is_hash(entry.name) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        yield entry.name, entry.stat().st_size

    def remove(self, sha256: str) -> None:
        """Removes a corpus, if it is stored. A process that has it mapped can still read it.

        Raises:
            ValueError: It is no SHA-256 in lower-case hexadecimal.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._changing:
            self._remove(sha256)

    def expire(self, sha256: str, before_s: float) -> bool:
        """Removes a corpus that was last used before a time; returns whether it did.

        Unlike `remove` it checks again under the lock, so that a corpus that comes into use at this
        moment stays.

        Args:
            sha256: Its hash.
            before_s: The time, in seconds since the epoch.

        Returns:
            Whether the corpus was removed.

        Raises:
            ValueError, OSError, DatabaseError: As `remove`.
        """
        with self._changing:
            if sha256 in self._uploads:
                return False
            used_s = {known: used for known, _, used in self._database.corpora()}.get(sha256)
            if used_s is None or used_s >= before_s:
                return False
            self._remove(sha256)
        return True

    def claim(self, path: Path, sha256: str, size: int, *, held: bool = False) -> None:
        """Makes a complete, synced file the corpus of its hash; drops it where that is stored.

        Args:
            path: The file, on the same disk; it is gone afterwards.
            sha256: Its hash.
            size: Its size in bytes.
            held: Whether it is kept until `release`, which may remove it again.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        with self._changing:
            place = self.path(sha256)
            new = held and not place.exists()
            try:
                if place.is_file() and place.stat().st_size == size:
                    path.unlink()
                else:  # missing, or cut short from outside
                    os.rename(path, place)
                sync(self._home)  # also of an earlier claim, whose sync may have failed
                self._database.touch_corpus(sha256, size, time.time())
            except BaseException:
                if new:
                    place.unlink(missing_ok=True)
                raise
            if new:
                self._new.add(sha256)
            if held:
                self._uploads[sha256] += 1

    def _touch(self, sha256: str) -> int | None:
        if not self.has(sha256):
            return None
        size = self.path(sha256).stat().st_size
        self._database.touch_corpus(sha256, size, time.time())
        return size

    def _remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)
        self._database.forget_corpus(sha256)


class CorpusWriter(HashedFile):
    """A corpus that is being written.

    Args:
        corpora: Takes the corpus when it is complete.
        path: Its file until then; must not exist.
        space: The space of its disk.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(self, corpora: Corpora, path: Path, space: DiskSpace) -> None:
        super().__init__(path, space.require)
        self._corpora = corpora

    def claim(self, *, held: bool = False) -> tuple[str, int]:
        """Stores the corpus, whether it was finished or not.

        Args:
            held: See `Corpora.claim`.

        Returns:
            As `finish`.

        Raises:
            OSError: The disk failed or is full; then only `discard` may follow.
            DatabaseError: The database failed.
        """
        if not self.sha256:
            self.finish()
        with self.using:
            self._corpora.claim(self.path, self.sha256, self.size, held=held)
        return self.sha256, self.size
