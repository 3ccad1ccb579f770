"""`held` keeps the folder of a checkpoint for one run at a time.

Two runs in one folder would each replace the checkpoint of the other.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class HeldFolderError(Exception):
    """Another run has the folder; the message names it and the remedy."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder of a checkpoint, and holds it as long as the block lasts.

    The lock ends with the process. A file system without locks has none.

    Args:
        folder: The folder.

    Raises:
        HeldFolderError: Another process holds it.
        OSError: It cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HeldFolderError(
                    f"another treadle-train uses {folder}: wait until it has ended, or name "
                    "another folder by --checkpoint-dir, and another --output"
                ) from None
        yield
    finally:
        os.close(place)
