"""`open_file` opens a file for reading; `display_path` names it in a sentence."""

from __future__ import annotations

import io
import os

from treadle.client.errors import InputError


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a file for reading, unbuffered.

    Args:
        path: The file.

    Returns:
        The open file, which the caller closes.

    Raises:
        InputError: The file cannot be opened; the message has the reason.
    """
    try:
        return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {display_path(path)}: {reason}") from error


def display_path(path: str | os.PathLike[str]) -> str:
    """Returns a file's name for a sentence; an empty name becomes ''."""
    return path_as_text(path) or "''"


def path_as_text(path: str | os.PathLike[str]) -> str:
    """Returns a file's name as text; bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
