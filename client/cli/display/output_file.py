"""Files that commands write: checked before the work, and written whole or not at all."""

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

_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that end a process, and can be put off."""


def check_output(path: str) -> None:
    """Checks that a file can be written, before it takes time to make what it is to hold.

    Raises:
        InputError: It cannot.
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
    """Writes a file whole: a reader sees the old one or the new one, and nothing else stays.

    Raises:
        InputError: It cannot be written.
    """
    try:
        if _is_special(path):
            # A pipe waits for its reader, maybe for ever: a signal is then the only way out.
            with open(path, "wb") as file:
                file.write(data)
            return
        with _signals_put_off():
            _replace(os.path.realpath(path), data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {display_path(path)}: {reason}") from error


def _replace(path: str, data: bytes) -> None:
    """Puts a new file in the place of an old one, with its permissions."""
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
    """Returns the permissions of a file, or those that a new one gets."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _name_fault(path: str) -> str:
    """Says why no file can have a name, such as that it is too long; empty where one can."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_special(path: str) -> bool:
    """Tells whether a name is that of a device or pipe, such as /dev/null, which is kept."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _folder(path: str) -> str:
    """Returns where a file is written: links are followed."""
    return os.path.dirname(os.path.realpath(path)) or "."


@contextlib.contextmanager
def _signals_put_off() -> Iterator[None]:
    """Puts off signals that end the process until a file is whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    ignored = signal.SIG_IGN
    before = {
        number: signal.signal(number, keep)
        for number in _ENDING
        if signal.getsignal(number) not in (None, ignored)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
