"""What the files of a data directory have in common: the lock, lasting names, whole removal."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


class StoreError(Exception):
    """The data directory cannot be used. The message is one sentence."""


def lock(root: Path) -> IO[str]:
    """Locks a data directory until the file returned is closed or the process ends.

    Args:
        root: The directory; it must exist.

    Raises:
        StoreError: Another process uses it.
        OSError: The disk failed or is full.
    """
    file = (root / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StoreError(
            f"the data directory {root} is in use by another server (process {holder}); "
            "stop it, or name another --data-dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def sync(path: Path) -> None:
    """Makes a file's bytes, or renames and new names in a directory, outlast a loss of power.

    Raises:
        OSError: The disk failed or is full.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> bool:
    """Removes a file, or a directory with all it holds, if it is there.

    Returns:
        Whether it is gone; what cannot be removed is logged and left.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # somebody else was removing it too
        return True
    except OSError as error:
        logger.warning("could not be removed, and is left where it is: %s", error)
        return False
    return True
