"""`write_output` writes a file as a whole or not at all; `check_output` checks it before."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType

from treadle.client.errors import InputError
from treadle.client.files.paths import display_path

_ENDING_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that end a process and can be delayed."""


def check_output(path: str) -> None:
    """Checks that a file can be written, before its content is made.

    Raises:
        InputError: It cannot be written.
    """
    if not path:
        raise InputError("cannot write a file whose name is empty: name one")
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        reason = "it is a folder: name a file"
    elif not os.path.isdir(folder):
        reason = f"there is no folder {display_path(folder)}: make it first"
    elif os.path.exists(path) and not os.access(path, os.W_OK):
        reason = "it may not be written by you: choose another name"
    elif not _is_special(path) and not os.access(_folder(path), os.W_OK | os.X_OK):
        reason = f"the folder {display_path(folder)} may not be written by you: choose another one"
    else:
        reason = _name_fault(path)
    if reason:
        raise InputError(f"cannot write {display_path(path)}: {reason}")


def write_output(path: str, data: bytes) -> None:
    """Writes a file whole: a reader sees the old one or the new one, and no other file remains.

    Raises:
        InputError: It cannot be written.
    """
    try:
        if _is_special(path):
            # A pipe waits for its reader, maybe for ever; only a signal can end that.
            with open(path, "wb") as file:
                file.write(data)
            return
        with _signals_delayed():
            _replace(os.path.realpath(path), data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {display_path(path)}: {reason}") from error


def _replace(path: str, data: bytes) -> None:
    """Replaces an old file by a new one with its permissions."""
    folder, name = os.path.split(path)
    descriptor, part = tempfile.mkstemp(prefix=f".{name[:40]}.", suffix=".part", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(part, _mode(path))
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _mode(path: str) -> int:
    """Returns the permissions of a file, or those of a new one."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _name_fault(path: str) -> str:
    """Returns why no file can have a name, such as its length; empty where one can."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_special(path: str) -> bool:
    """Returns whether a name is that of a device or pipe, such as /dev/null."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _folder(path: str) -> str:
    """Returns the folder that a file is written to: links are followed."""
    return os.path.dirname(os.path.realpath(path)) or "."


@contextlib.contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delays signals that end the process until a file is whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)

    ignored = signal.SIG_IGN
    before = {
        number: signal.signal(number, keep)
        for number in _ENDING_SIGNALS
        if signal.getsignal(number) not in (None, ignored)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)
