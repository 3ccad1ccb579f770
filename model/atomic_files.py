"""`write_atomically` writes a file whole or not at all; `remove_leftovers` cleans up after crashes.

A file is written next to its place, as `.NAME.RANDOM.tmp`, and renamed once it is synced. If the
process is killed in between, the temporary file stays. It is never read, and can be removed by the
only process that writes to the folder.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from treadle.model.scratch_files import Require, anything

_PIECE_BYTES = 16 << 20
"""Bytes written between two calls of `Require`."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def temporary_path(path: Path) -> Path:
    """Returns the temporary path of a file that is not complete yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path) -> Iterator[Path]:
    """Yields the incomplete files in a folder; none if the folder does not exist.

    Raises:
        OSError: The folder cannot be read.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
                yield path


def remove_leftovers(folder: Path) -> int:
    """Removes incomplete files that killed processes left in a folder.

    No process may be writing to the folder.

    Returns:
        How many files were removed.

    Raises:
        OSError: The disk failed.
    """
    found = list(leftovers(folder))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def write_atomically(
    path: Path,
    data: bytes | Sequence[bytes | memoryview],
    previous: Path | None = None,
    require: Require = anything,
) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: The file; its folder exists.
        data: The content, whole or in parts.
        previous: The new path of the old file; None: it is replaced. A crash may leave it there
            with no file at `path`.
        require: Called with the number of all bytes before the first is written, and again with
            each part.

    Raises:
        OSError: The file could not be written; the old file is unchanged.
    """
    parts = [memoryview(part) for part in ([data] if isinstance(data, bytes) else data)]
    require(sum(part.nbytes for part in parts))
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            for part in parts:
                for start in range(0, len(part), _PIECE_BYTES):
                    piece = part[start : start + _PIECE_BYTES]
                    require(len(piece))
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
