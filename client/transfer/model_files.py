"""`save_model` writes a model's file, whole or not at all, and `ModelFile` reads one to send it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import BinaryIO, Protocol

from treadle.client.errors import InputError, InvalidArgumentError, TreadleError
from treadle.client.files.paths import display_path, open_file
from treadle.client.transfer.model_download import DamagedFileError, ModelDownload
from treadle.v1.sequence_pb2 import Model

CHUNK_BYTES = 256 * 1024
"""Bytes in one message of an upload; the contract allows four times as many."""

PART = ".part"
"""The end of the name of a file that has not arrived whole."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes that were transferred, and with all of them; 0 where that is unknown."""


def no_progress(done_bytes: int, total_bytes: int) -> None:
    """Ignores the progress: the default of `on_progress`."""


def save_model(
    download: Callable[[Callable[[], Iterator[bytes]] | None], ModelDownload],
    path: str | os.PathLike[str],
    overwrite: bool,
    on_progress: OnProgress,
) -> Model:
    """Fetches a model into a file.

    Until it is whole, the file has the end `.part`. What an earlier, interrupted download has left
    there is not fetched again, unless it belongs to another version.

    Args:
        download: Begins the download, with what is there already.
        path: The file.
        overwrite: Whether to replace a file.
        on_progress: Called after each piece.

    Returns:
        The version.

    Raises:
        InputError: The file exists, or cannot be written.
        ServerError: The call failed.
    """
    if os.path.isdir(path):
        raise InputError(f"{display_path(path)} is a directory: give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe, which stays one
        return _fetch(download, os.fspath(path), False, on_progress)
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{display_path(path)} exists: set overwrite to replace it", "overwrite")
    path = os.path.realpath(path)  # a link stays, and leads to the new file
    part = path + PART
    has_part = os.path.isfile(part) and os.path.getsize(part) > 0
    try:
        model = _fetch(download, part, has_part, on_progress)
    except (DamagedFileError, InvalidArgumentError):  # a part of another file, or longer than it
        _remove(part)
        if not has_part:
            raise
        model = _fetch(download, part, False, on_progress)
    try:
        os.replace(part, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return model


def _fetch(
    download: Callable[[Callable[[], Iterator[bytes]] | None], ModelDownload],
    part: str,
    goes_on: bool,
    on_progress: OnProgress,
) -> Model:
    """Fetches the rest of a file to the end of what is there of it."""
    fetching = download((lambda: _chunks(part)) if goes_on else None)
    model = fetching.open()
    with closing(fetching), _open_to_write(part, "ab" if goes_on else "wb") as file:
        write_chunks(fetching, file, part, on_progress)
        try:
            if os.path.isfile(part):
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(part, error) from error
    return model


class Writable(Protocol):
    """An open file of bytes."""

    def write(self, data: memoryview, /) -> object:
        """Writes bytes; returns how many."""


def write_chunks(
    download: ModelDownload, file: Writable, name: str, on_progress: OnProgress
) -> None:
    """Writes what a download brings to an open file.

    Args:
        download: The download, which is open.
        file: The file.
        name: Its name in messages.
        on_progress: Called after each piece.

    Raises:
        InputError: The file cannot be written.
        ServerError: The call failed.
    """
    on_progress(download.received, download.model.size_bytes)
    for chunk in download.chunks():
        try:
            _write_all(file, chunk)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(name, error) from error
        on_progress(download.received, download.model.size_bytes)


def _write_all(file: Writable, chunk: bytes) -> None:
    """Writes all bytes; a file without a buffer may take a part of them at once."""
    left = memoryview(chunk)
    while left:
        taken = file.write(left)
        left = left[taken:] if isinstance(taken, int) else left[:0]


class ModelFile:
    """A file that is sent to a server. It is read once before, for its hash.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, or is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self.size_bytes = 0
        """Bytes of the file."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
            self.size_bytes += len(chunk)
        if not self.size_bytes:
            raise InputError(f"{display_path(path)} is empty, and not a model")
        self.sha256 = digest.hexdigest()
        """Its hash."""

    def chunks(self) -> Iterator[bytes]:
        """Yields its bytes.

        Raises:
            InputError: It cannot be read.
        """
        yield from _chunks(self._path)


def _chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open_file(path) as file:
        while True:
            try:
                chunk = file.read(CHUNK_BYTES)
            except OSError as error:
                reason = error.strerror or str(error)
                raise InputError(f"cannot read {display_path(path)}: {reason}") from error
            if not chunk:
                return
            yield chunk


def _open_to_write(path: str, mode: str) -> BinaryIO:
    try:
        return open(path, mode, buffering=0)  # type: ignore[return-value]
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.remove(path)


def _unwritable(path: str | os.PathLike[str], error: Exception) -> TreadleError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot write {display_path(path)}: {reason}")
