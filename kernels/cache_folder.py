"""`choose_cache_folder` picks the folder of compiled kernels, a temporary one if need be.

The cache holds code that is run, so only a folder that no other user can write is used. If the
user's cache is not such a folder, the process makes a temporary one with a copy of what was
compiled before, and passes its path to child processes in `NUMBA_CACHE_DIR`, so that they do not
compile again. The folder is removed when the process ends. A process that is killed leaves it
behind; the next process that needs such a folder removes it, because its lock is free.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "treadle-kernels-"
_LOCK = "lock"

_made: list[tuple[int, Path]] = []
"""The temporary folders of this process, each with the id of the process that made it."""


@dataclass(frozen=True)
class CacheFolder:
    """The folder of compiled kernels that this process uses."""

    path: Path
    """The folder itself, of one state of the sources and one processor."""
    reason: str = ""
    """Why it is a temporary one; empty where it is not."""


def choose_cache_folder(name: str, base: str = "") -> CacheFolder:
    """Returns a folder that this process can write and other users cannot.

    Args:
        name: the folder's own name, which distinguishes versions and processors.
        base: the folder that holds it; empty: `treadle/kernels` in the user's cache folder.

    Raises:
        OSError: not even a temporary folder can be made.
    """
    home = Path(base) if base else _user_folder()
    reason = _unusable(home / name) if home else "the user has no home folder"
    if home and not reason:
        return CacheFolder(home / name, reason)
    own = _temporary_folder()
    folder = own / name
    folder.mkdir()
    if home and _is_private(home / name):
        _copy(home / name, folder)
    os.environ["NUMBA_CACHE_DIR"] = str(own)
    return CacheFolder(folder, reason)


def remove_temporary_folders() -> None:
    """Removes the temporary folders of this process, as its exit does by itself.

    Needed before `os._exit`, which skips exit handlers.
    """
    for process, folder in _made:
        if process == os.getpid():  # a forked child leaves its parent's alone
            shutil.rmtree(folder, ignore_errors=True)


def _user_folder() -> Path | None:
    """Returns the user's folder for compiled kernels, None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification says to ignore relative paths
        return Path(cache) / "treadle" / "kernels"
    try:
        return Path.home() / ".cache" / "treadle" / "kernels"
    except RuntimeError:  # as in a container under any uid
        return None


def _unusable(folder: Path) -> str:
    """Makes a folder if it is missing, and returns why it cannot be used; empty where it can."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(folder):
            return f"other users can write {folder}"
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror or error})"


def _is_private(folder: Path) -> bool:
    """Returns whether a folder exists and only this user, its group or root can write it."""
    try:
        status = folder.stat()
    except OSError:
        return False
    foreign_group = status.st_gid not in (0, os.getegid())
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid in (0, os.geteuid())
        and not status.st_mode & stat.S_IWOTH
        and not (status.st_mode & stat.S_IWGRP and foreign_group)
    )


def _temporary_folder() -> Path:
    """Makes a folder that is removed when this process ends; removes those that others left."""
    for left in _abandoned(Path(tempfile.gettempdir())):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # only its owner can enter it
    _made.append((os.getpid(), folder))
    if len(_made) == 1:
        atexit.register(remove_temporary_folders)
    # Locked under another name first, so that a visible lock that is free means an ended process.
    locking = folder / f"{_LOCK}.new"
    handle = os.open(locking, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)  # open until the end
    fcntl.flock(handle, fcntl.LOCK_EX)
    locking.rename(folder / _LOCK)
    return folder


def _abandoned(parent: Path) -> Iterator[Path]:
    """Yields the temporary folders of processes of this user that have ended."""
    for folder in sorted(parent.glob(f"{_PREFIX}*")):
        with suppress(OSError):  # gone meanwhile, or not a folder of Treadle
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield folder
            finally:
                os.close(handle)


def _copy(source: Path, target: Path) -> None:
    """Copies the files below a folder; the copies can be written whatever the originals allow."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        with suppress(FileNotFoundError):  # replaced meanwhile by the process that owns it
            if path.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
