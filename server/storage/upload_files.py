"""`UploadFiles` holds the files of one upload until it is complete, and stores or removes them.

An upload that fails removes its files, whenever its call is cancelled: each file is known here
before it has any bytes. All methods block on the disk and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.server.storage.corpora import Corpora, CorpusWriter


@dataclass(frozen=True)
class UploadedFile:
    """One file of a corpus, stored."""

    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal; its name among the corpora."""
    name: str
    """Its name in messages."""
    role: str
    """Its role: train, valid or test."""
    weight: float
    """How often an epoch reads it."""
    size: int
    """Its size in bytes."""


class CountedWriter:
    """Writes a file of an upload, and counts its bytes before.

    Args:
        writer: The writer.
        count: Called with the number of bytes of each write.
    """

    def __init__(self, writer: CorpusWriter, count: Callable[[int], None]) -> None:
        self._writer = writer
        self._count = count

    def write(self, data: bytes) -> None:
        """Takes the next bytes; see `CorpusWriter.write`."""
        self._count(len(data))
        self._writer.write(data)

    def finish(self) -> tuple[str, int]:
        """Ends the file; returns its SHA-256 and its size in bytes."""
        return self._writer.finish()


class UploadFiles:
    """The files of one upload so far.

    Args:
        corpora: Takes the files once the upload is complete.
        count: Called with the number of new bytes before they are written, and with the negative
            sum of all in the end; an error of it ends the upload.
        owner: The owner of the stored files that it may name; None: it may name all.
    """

    def __init__(
        self,
        corpora: Corpora,
        count: Callable[[int], None] = lambda size: None,
        owner: str | None = None,
    ) -> None:
        self._corpora = corpora
        self._count = count
        self._counted = 0
        self._owner = owner
        self._lock = threading.Lock()
        self._writers: list[CorpusWriter] = []
        self._held: list[str] = []
        self._needed = False
        self._closed = False

    def find(self, sha256: str) -> int | None:
        """Finds a file that this upload brought before, or that is stored for its owner.

        Args:
            sha256: Its hash.

        Returns:
            Its size in bytes; None where there is no file with that hash.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        with self._lock:
            for writer in self._writers:
                if writer.sha256 == sha256:
                    return writer.size
            size = self._corpora.hold(sha256, self._owner)
            if size is not None:
                self._held.append(sha256)
            if self._closed:
                self._release_all()
            return size

    def writer(self) -> CountedWriter:
        """Returns a writer of a new file.

        Raises:
            OSError: The disk failed or is full.
        """
        with self._lock:
            writer = self._corpora.writer()
            self._writers.append(writer)
            if self._closed:  # the call was cancelled before its thread got here
                self._discard()
            return CountedWriter(writer, self._count_bytes)

    def _count_bytes(self, size: int) -> None:
        with self._lock:
            if self._closed:
                return
            self._counted += size
        self._count(size)

    def store(self) -> None:
        """Makes the files corpora; the upload is complete.

        Raises:
            OSError: The disk failed or is full; then only `close` may follow.
            DatabaseError: The database failed.
        """
        with self._lock:
            while self._writers and not self._closed:
                sha256, _ = self._writers[0].claim(held=True)
                self._held.append(sha256)
                del self._writers[0]

    def keep(self) -> None:
        """Notes that a job needs the files from now on."""
        self._needed = True

    def close(self) -> None:
        """Removes the files of the upload, unless a job needs them.

        Raises:
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._lock:
            if not self._closed:
                self._count(-self._counted)
            self._closed = True
            try:
                self._discard()
            finally:
                self._release_all()

    def _discard(self) -> None:
        with contextlib.ExitStack() as discarding:
            for writer in self._writers:
                discarding.callback(writer.discard)
            self._writers.clear()

    def _release_all(self) -> None:
        with contextlib.ExitStack() as giving:
            for sha256 in self._held:
                giving.callback(self._corpora.release, sha256, needed=self._needed)
            self._held.clear()
