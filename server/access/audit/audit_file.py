"""`AuditFile` appends lines to a file, whole or not at all, and rotates it by its size."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress

logger = logging.getLogger(__name__)

STANDARD_OUTPUT = "-"
"""The name of standard output."""

_STANDARD_OUTPUT = 1


class AuditFile:
    """A file to which lines are appended. Its methods block, and are called from one thread.

    Another program may move it away: the next lines are written to a new file of the same name.

    Args:
        path: Its path; `-` is standard output. What is not a regular file is not rotated.
        most_bytes: Its size, from which another one is begun; 0: this program never begins one.
        files: How many earlier files are kept, as PATH.1, the newest, to PATH.N.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str, most_bytes: int, files: int) -> None:
        self._is_standard_output = path == STANDARD_OUTPUT
        self._most_bytes = most_bytes
        self._files = files
        self._path = path
        if os.path.isfile(path) or not os.path.exists(path):
            self._path = os.path.realpath(path)  # the target of a link is rotated, not the link
        self._rotates = True
        self._open()

    def write(self, lines: bytes) -> None:
        """Appends lines.

        Args:
            lines: Whole lines.

        Raises:
            OSError: They could not be written, and no part of them is in the file.
        """
        if self._regular:
            if self._was_moved():
                self._reopen()
            size = os.fstat(self._descriptor).st_size
            if self._most_bytes and size and size + len(lines) > self._most_bytes:
                self._rotate()
        before = os.fstat(self._descriptor).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            if self._regular:  # half a line would spoil the next one
                with suppress(OSError):
                    os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _open(self, more_flags: int = 0) -> None:
        if self._is_standard_output:
            self._descriptor = os.dup(_STANDARD_OUTPUT)
        else:
            # A pipe without a reader is an error, and not a reason to wait.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK
            self._descriptor = os.open(self._path, flags | more_flags, 0o600)
            os.set_blocking(self._descriptor, True)
        regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._regular = regular and not self._is_standard_output

    def _reopen(self) -> None:
        """Opens the file of this name; the earlier one stays open where that fails."""
        earlier = self._descriptor
        # A link that has taken the place of the file could lead to any other one.
        self._open(os.O_NOFOLLOW)
        os.close(earlier)

    def _was_moved(self) -> bool:
        try:
            there = os.lstat(self._path)
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self._descriptor))

    def _rotate(self) -> None:
        """Renames the file and its predecessors, and begins a new one."""
        try:
            for number in range(self._files - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1")
            self._reopen()
        except OSError as error:  # a file that grows is better than lines that are lost
            if self._rotates:
                logger.error("the audit log %s cannot be rotated: %s", self._path, error)
            self._rotates = False
        else:
            self._rotates = True
