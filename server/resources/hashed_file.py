"""`HashedFile` is a file that is written piece by piece, and hashed meanwhile."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path


class HashedFile:
    """A new file that is being written. All methods may be called from any thread.

    Args:
        path: The file; must not exist.
        require: Called with the number of bytes before they are written; an error of it ends that.

    Raises:
        OSError: The disk failed or is full.
    """

    def __init__(self, path: Path, require: Callable[[int], None]) -> None:
        self.path = path
        """The file."""
        self._require = require
        self._hash = hashlib.sha256()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
        # A cancelled call cannot stop a write in a thread, and that write must not meet a handle
        # that was closed meanwhile and belongs to another file now.
        self.using = threading.Lock()
        """Held while the file is used."""
        self.size = 0
        """Bytes written so far."""
        self.sha256 = ""
        """The hash of all of them, in lower-case hexadecimal; empty before `finish`."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes; neither hashing nor writing copies them.

        Raises:
            OSError: The disk failed or is full; then only `discard` may follow.
        """
        with self.using, memoryview(data) as view:
            self._require(len(view))
            self._hash.update(view)
            done = 0
            while done < len(view):  # a nearly full disk takes only a part
                done += os.write(self._handle, view[done:])
            self.size += done

    def finish(self) -> tuple[str, int]:
        """Ends the file, which stays where it is; nothing may be written any more.

        Returns:
            Its hash in lower-case hexadecimal, and its size in bytes.

        Raises:
            OSError: The disk failed or is full; then only `discard` may follow.
        """
        with self.using:
            os.fsync(self._handle)
            self._close()
            self.sha256 = self._hash.hexdigest()
        return self.sha256, self.size

    def discard(self) -> None:
        """Drops what was written, unless it was moved away; may be called again.

        Raises:
            OSError: The disk failed.
        """
        with self.using:
            self._close()
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._handle >= 0:
            handle = self._handle
            self._handle = -1
            os.close(handle)
