"""`OutgoingFile` and `IncomingFile` carry a file to another machine, piece by piece.

The receiver checks the SHA-256 of the whole, and the file takes its place only then.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from treadle.model.atomic_files import temporary_path
from treadle.model.scratch_files import Require, anything

PIECE_BYTES = 4 << 20
"""Bytes that are sent at once."""


class DamagedTransferError(Exception):
    """A file did not arrive as it was sent. The message is one sentence."""


class OutgoingFile:
    """A file that is read for another machine.

    It stays the same one, even where another takes its place meanwhile.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._digest = hashlib.sha256()
        self.size = os.fstat(self._file.fileno()).st_size
        """Its bytes."""

    def read(self) -> bytes:
        """Returns the next piece; none at the end."""
        piece = self._file.read(PIECE_BYTES)
        self._digest.update(piece)
        return piece

    @property
    def sha256(self) -> str:
        """The SHA-256 of all pieces so far, in hexadecimal."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Reads no more."""
        self._file.close()


class IncomingFile:
    """A file that arrives from another machine.

    It is written next to its place and removed unless it is finished.

    Args:
        path: Its place; the folder exists.
        size: Its bytes.
        require: Called before bytes are written; raises OSError if there is no space.
        previous: The new place of the file that it replaces; None: that one is removed.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(
        self, path: Path, size: int, require: Require = anything, previous: Path | None = None
    ) -> None:
        require(size)
        self._path = path
        self._require = require
        self._previous = previous
        self._digest = hashlib.sha256()
        self._temporary = temporary_path(path)
        self._file = self._temporary.open("xb")

    def write(self, piece: bytes) -> None:
        """Writes the next piece.

        Raises:
            OSError: The disk failed or is full.
        """
        self._require(len(piece))
        self._file.write(piece)
        self._digest.update(piece)

    def finish(self, sha256: str) -> None:
        """Puts the file in its place, once it is on the disk.

        Args:
            sha256: The SHA-256 of what was sent, in hexadecimal.

        Raises:
            DamagedTransferError: It is not what arrived.
            OSError: The disk failed or is full.
        """
        if self._digest.hexdigest() != sha256:
            raise DamagedTransferError(f"{self._path.name} did not arrive as it was sent")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._previous is not None and self._path.exists():
            self._path.replace(self._previous)
        self._temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Removes what arrived, unless the file is in its place."""
        with suppress(OSError):  # a full disk: what it buffers is not needed
            self._file.close()
        self._temporary.unlink(missing_ok=True)
