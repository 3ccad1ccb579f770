"""The files of one upload: next to the corpora until it is whole, then among them, or gone.

An upload that comes to nothing removes what it brought, whenever its call is cancelled: every
file is known here before its bytes are. All methods block on the disk and may be called from any
thread.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.server.storage.corpora import Corpora, CorpusWriter


@dataclass(frozen=True)
class UploadedFile:
    """One file of a corpus, stored."""

    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal: its name in the store."""
    name: str
    """What to call it in messages."""
    role: str
    """What it is for: train, valid or test."""
    weight: float
    """How often a pass reads it."""
    size: int
    """Its bytes."""


class UploadFiles:
    """What one upload has brought so far.

    Args:
        corpora: Where the files belong once the upload is whole.
    """

    def __init__(self, corpora: Corpora) -> None:
        self._corpora = corpora
        self._lock = threading.Lock()
        self._writers: list[CorpusWriter] = []
        self._borrowed: list[str] = []
        self._needed = False
        self._closed = False

    def find(self, sha256: str) -> int | None:
        """Returns the bytes of a file that this upload brought before, or that is stored.

        Returns:
            None where there is none of that hash.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        with self._lock:
            for writer in self._writers:
                if writer.sha256 == sha256:
                    return writer.size
            size = self._corpora.borrow(sha256)
            if size is not None:
                self._borrowed.append(sha256)
            if self._closed:
                self._give_back()
            return size

    def writer(self) -> CorpusWriter:
        """Returns what takes a new file.

        Raises:
            OSError: The disk failed or is full.
        """
        with self._lock:
            writer = self._corpora.writer()
            self._writers.append(writer)
            if self._closed:  # the call was cancelled before its thread came here
                self._discard()
            return writer

    def store(self) -> None:
        """Moves the files among the corpora; the upload is whole.

        Raises:
            OSError: The disk failed or is full; then only `close` may follow.
            DatabaseError: The database failed.
        """
        with self._lock:
            while self._writers and not self._closed:
                sha256, _ = self._writers[0].claim(borrowed=True)
                self._borrowed.append(sha256)
                del self._writers[0]

    def keep(self) -> None:
        """Says that a job needs the files from now on."""
        self._needed = True

    def close(self) -> None:
        """Removes what the upload brought, unless it is to be kept.

        Raises:
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        with self._lock:
            self._closed = True
            try:
                self._discard()
            finally:
                self._give_back()

    def _discard(self) -> None:
        with contextlib.ExitStack() as discarding:
            for writer in self._writers:
                discarding.callback(writer.discard)
            self._writers.clear()

    def _give_back(self) -> None:
        with contextlib.ExitStack() as giving:
            for sha256 in self._borrowed:
                giving.callback(self._corpora.give_back, sha256, needed=self._needed)
            self._borrowed.clear()
