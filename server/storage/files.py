"""`DiskSpace`, `lock`, `link_or_copy` and others handle the files of a data directory."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from treadle.server.failures import NoSpaceError

logger = logging.getLogger(__name__)

_SMALL_BYTES = 4096


_AGAIN_BYTES = 1 << 20


_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)
"""The errors of a file system that cannot link these files."""


class StoreError(Exception):
    """The data directory cannot be used. The message is one sentence."""


class DiskSpace:
    """The space of a disk: code that writes much asks here first, and again while it writes.

    All methods block on the disk, briefly, and may be called from any thread.

    Args:
        path: A directory on it.
        min_free_bytes: Bytes of it to leave free.
        reserved: Returns the bytes that running jobs need to continue.
    """

    def __init__(
        self, path: Path, min_free_bytes: int = 0, reserved: Callable[[], int] = lambda: 0
    ) -> None:
        self._path = path
        self.min_free_bytes = min_free_bytes
        """Bytes of it to leave free."""
        self.reserved = reserved
        """Returns the bytes that running jobs need to continue."""
        self.make_room: Callable[[int], object] = lambda missing: None
        """Called with the bytes that are missing: removes what is only kept to save time."""

    def free(self) -> int:
        """Returns the bytes that are free."""
        return shutil.disk_usage(self._path).free

    def _free_of(self, least: int) -> int:
        """Returns the bytes that are free, which should be so many."""
        free = self.free()
        if free < least:
            self.make_room(least - free)
            free = self.free()
        return free

    def require(self, size: int = 0) -> None:
        """Checks that bytes may be written.

        Args:
            size: How many bytes.

        Raises:
            NoSpaceError: There is no space for them.
            OSError: The disk failed.
        """
        least = self.min_free_bytes + self.reserved()
        free = self._free_of(least + size)
        if free < least + size:
            raise NoSpaceError(size, free, least)

    def require_least(self) -> None:
        """Checks that `min_free_bytes` are free, whatever running jobs need.

        Raises:
            NoSpaceError: They are not free.
            OSError: The disk failed.
        """
        free = self._free_of(self.min_free_bytes)
        if free < self.min_free_bytes:
            raise NoSpaceError(0, free, self.min_free_bytes)

    def has_again(self, size: int) -> bool:
        """Returns whether there is space for bytes, and for some more.

        It asks for more than `require`, so that a job that waited for space can run for a while.

        Args:
            size: How many bytes.

        Raises:
            OSError: The disk failed.
        """
        least = self.min_free_bytes + self.reserved()
        most = least + least // 4 + size + _AGAIN_BYTES
        return self._free_of(most) >= most


class SpareSpace:
    """A file that only takes space, which is released where a full disk prevents a job from ending.

    To record a deletion takes some space itself, and so does a cancellation or a pause. May be used
    from any thread.

    Args:
        path: The file.
        space: The space of its disk.
        size: Its size in bytes.
    """

    def __init__(self, path: Path, space: DiskSpace, size: int = 8 << 20) -> None:
        self._path = path
        self._space = space
        self._size = size

    def fill(self) -> None:
        """Takes the space, if it is not taken and there is enough.

        Raises:
            OSError: The disk failed or is full.
        """
        if os.path.lexists(self._path) or not self._space.has_again(self._size):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(self._path, flags, 0o660)
        try:
            os.posix_fallocate(handle, 0, self._size)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)

    def release(self) -> bool:
        """Releases the space; returns whether it was taken."""
        try:
            self._path.unlink()
        except OSError:
            return False
        logger.warning("the disk is full: the spare space is released")
        return True


@contextmanager
def shared_with_group(root: Path) -> Iterator[None]:
    """Has this process and its children create files for the user alone, or for the group as well.

    The mode of the data directory decides: where its group may write, as in the image, another user
    of the group can run the next server.

    Args:
        root: The data directory, which need not exist.
    """
    try:
        closed = _closed_bits(root)
    except (OSError, ValueError):  # it is made for this user alone, or its error is reported later
        closed = 0o077
    before = os.umask(closed)
    try:
        yield
    finally:
        os.umask(before)


def unusable(root: Path, error: OSError) -> StoreError:
    """Returns the error of a data directory that cannot be used, with a remedy.

    Args:
        root: The directory.
        error: The error of the operating system.
    """
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
    reason = error.strerror or str(error)
    if error.errno == errno.EEXIST:
        reason = "a file that is not a directory, or a link to nothing, has this name"
    remedy = "name another --data-dir"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = _permission_remedy(root, path)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free space on its disk"
    elif error.errno == errno.ELOOP and path != root:
        reason = "a link has this name, and the server does not change files behind links"
        remedy = "replace the link by the directory it leads to, by a move or a mount"
    elif error.errno == errno.EROFS:
        remedy = "mount it writable, or name another --data-dir"
    place = "" if path == root else f": {path}"
    return StoreError(f"the data directory {root} cannot be used{place}: {reason}; {remedy}")


def _permission_remedy(root: Path, path: Path) -> str:
    """Returns who may use a path, and how others get access."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    status = path.lstat()
    user = os.geteuid()
    group = os.getegid()
    mode = stat.S_IMODE(status.st_mode)
    whose = f"{path} belongs to user {status.st_uid}, group {status.st_gid}, mode {mode:04o}"
    ours = f"this server runs as user {user}, group {group}"
    inside = path == root or root in path.parents
    if not inside:
        return f"{whose}; {ours}: name another --data-dir"
    if status.st_gid in (group, *os.getgroups()):
        return f"{whose}; {ours}: run `chmod -R g=u {root}` as user {status.st_uid} or root"
    return f"{whose}; {ours}: run `chown -R {user} {root}` as root, or run as user {status.st_uid}"


def lock(root: Path) -> IO[str]:
    """Locks a data directory until the file returned is closed or the process ends.

    Args:
        root: The directory; it must exist.

    Returns:
        The file that holds the lock.

    Raises:
        StoreError: Another process uses it.
        OSError: The disk failed or is full.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    file = os.fdopen(os.open(root / "lock", flags, 0o660), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
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


def read_small(path: Path) -> str:
    """Returns the text of a small file, without waiting for a pipe in its place.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read, or is not a regular file.
        ValueError: It is not ASCII, or not small.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        data = file.read(_SMALL_BYTES + 1)
    if len(data) > _SMALL_BYTES:
        raise ValueError(f"{path} is too large")
    return data.decode("ascii")


def make_directory(path: Path) -> None:
    """Makes a directory of the data directory, if it is missing, unreadable for other users.

    Args:
        path: The directory.

    Raises:
        OSError: The disk failed or is full; or a file or a link has its name. Links are not
            followed, since the server must not write or delete behind them.
    """
    check_no_link(path)
    path.mkdir(mode=0o770, exist_ok=True)


def check_no_link(path: Path) -> None:
    """Checks that a path is not a link, before something is written there.

    Raises:
        OSError: ELOOP: it is a link.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def check_file(path: Path) -> None:
    """Checks that a path is a regular file or nothing, before it is opened to be written.

    Raises:
        OSError: ELOOP: it is a link; EINVAL: it is a pipe, a device, a socket or a directory.
    """
    check_no_link(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def close_to_others(root: Path, path: Path) -> None:
    """Removes the rights of a directory that `shared_with_group` would not give it, if possible.

    Args:
        root: The data directory, whose mode decides.
        path: A directory in it.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    closed = mode & ~_closed_bits(root)
    if mode != closed:
        with suppress(OSError):  # it belongs to another user, who decides
            path.chmod(closed)


def _closed_bits(root: Path) -> int:
    """Returns the rights that no file of a data directory has."""
    return 0o007 if root.stat().st_mode & stat.S_IWGRP else 0o077


def sync(path: Path) -> None:
    """Makes the bytes of a file, or the names in a directory, outlast a loss of power.

    Args:
        path: The file or directory.

    Raises:
        OSError: The disk failed or is full.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(path: Path, place: Path, space: DiskSpace) -> None:
    """Makes `place` the same file as `path`, or a copy where the file system has no links.

    Both the file and its name outlast a loss of power once this returns.

    Args:
        path: The file; it must be replaced, never written to, from now on.
        place: The new name; must not exist.
        space: The space of its disk.

    Raises:
        NoSpaceError: There is no space for a copy.
        OSError: The disk failed or is full; nothing is left at `place`.
    """
    try:
        _link_or_copy(path, place, space)
        sync(place)
        sync(place.parent)
    except FileExistsError:
        raise
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _link_or_copy(path: Path, place: Path, space: DiskSpace) -> None:
    try:
        os.link(path, place)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        space.require(path.stat().st_size)
        shutil.copyfile(path, place)


def remove(path: Path) -> bool:
    """Removes a file, or a directory with its content, if it exists.

    Args:
        path: The file or directory.

    Returns:
        Whether it is gone. A file that cannot be removed is logged and stays.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            _remove_tree(path)
    except FileNotFoundError:  # another thread has removed it
        return True
    except OSError as error:
        logger.warning("could not be removed and stays: %s", error)
        return False
    return True


def _remove_tree(path: Path) -> None:
    """Removes a directory with its content, without following links.

    Raises:
        OSError: A part of it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except (OSError, RecursionError) as error:
        too_deep = (errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)
        if isinstance(error, OSError) and error.errno not in too_deep:
            raise
        _flatten(path)
        shutil.rmtree(path)


def _flatten(path: Path) -> None:
    """Moves the directories of a tree that is too deep to be walked into its root."""
    waiting = [path]
    while waiting:
        place = waiting.pop()
        with os.scandir(place) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        if place == path:
            waiting += [path / name for name in below]
            continue
        for name in below:
            moved = path / f"moved-{secrets.token_hex(8)}"
            os.rename(place / name, moved)
            waiting.append(moved)
