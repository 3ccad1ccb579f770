"""`TrustedFile` is a file that decides who may call: it is read again when it has changed.

A file that others may write is refused. What changes is noticed however the file is replaced: by a
rename, by writing over it, or by the symbolic links that Kubernetes exchanges.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

_SETTLED_NS = 2_000_000_000
"""Nanoseconds after which a change must have changed the times of a file. Before that its content
is compared, since the clock of a file system may be coarse."""


class TrustedFileError(ValueError):
    """A file cannot be used. The message is a clause that follows its name, with the remedy."""


class TrustedFile:
    """A file that nobody else may write.

    Args:
        path: The file; symbolic links are followed each time.
        most_bytes: A larger file is refused.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        """The file."""
        self._most_bytes = most_bytes
        self._seen: tuple[int, ...] | None = None
        self._read_ns = 0
        self._data = b""

    def read(self) -> bytes:
        """Returns the content.

        Raises:
            TrustedFileError: It cannot be read, is no file, is too large, or others may write it.
        """
        self._seen = None
        try:
            # Opening a pipe would wait for somebody who writes to it.
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TrustedFileError(f"cannot be read: {reason}") from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise TrustedFileError("is not a regular file; give one")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise TrustedFileError(f"may be written by others (mode {mode}): run chmod go-w")
            with open(handle, "rb", closefd=False) as file:
                data = file.read(self._most_bytes + 1)
        except OSError as error:
            raise TrustedFileError(f"cannot be read: {error.strerror}") from error
        finally:
            os.close(handle)
        if len(data) > self._most_bytes:
            raise TrustedFileError(f"is larger than {self._most_bytes} bytes; shorten it")
        self._seen = _signature(status)
        self._read_ns = time.time_ns()
        self._data = data
        return data

    def changed(self) -> bytes | None:
        """Returns the new content; None if it is that of the last reading.

        Raises:
            TrustedFileError: As for `read`.
        """
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):
            status = None  # reading it says why
        if status is not None and self._seen == _signature(status):
            newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
            if newest_ns + _SETTLED_NS < self._read_ns:
                return None
        known = self._data
        data = self.read()
        return None if data == known else data

    def is_open_to_others(self) -> bool:
        """Returns whether every user of this machine may read it."""
        try:
            return bool(os.stat(self.path).st_mode & stat.S_IROTH)
        except OSError:
            return False


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """Returns what differs between a file and the one that replaces it."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
