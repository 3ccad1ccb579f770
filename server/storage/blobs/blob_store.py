"""`BlobStore` keeps files that several servers share, each under a key such as `corpora/SHA256`.

A blob is there whole or not at all. All methods block, for a bounded time, and may be called from
any thread. Each of them may raise BlobsUnavailableError: the store cannot be reached.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from treadle.model.atomic_files import temporary_path
from treadle.server.failures import BlobsUnavailableError, DamagedBlobError

SMALL_BYTES = 1 << 16
"""Bytes of the largest blob that is read whole into memory."""

_TRIES = 2
"""How often a blob is fetched that arrives damaged, since the transfer may be at fault."""

_SLOW_S = 60.0
"""Seconds after which a blob that comes too slowly is given up."""
_SLOW_BYTES_PER_S = 1 << 16
"""Bytes that come in a second, on average, unless it is too slow."""


@dataclass(frozen=True)
class Blob:
    """A blob that is stored."""

    key: str
    """Its key."""
    size: int
    """Its size in bytes."""
    modified_s: float
    """When it was written, in seconds since the epoch, by the clock of the store."""


def nothing_required(size: int) -> None:
    """Requires no space: what `fetch` calls where nobody counts it.

    Args:
        size: Bytes that are about to be written.
    """


class BlobStore(ABC):
    """Files under keys, which several servers share."""

    name: str
    """What messages call it: its URL, in which there is no secret."""

    exclusive = True
    """Whether `create` lets one of several callers win who create a blob at the same time. Some
    object stores ignore the condition; there `create` looks first, and two may win."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Stores a small blob, unless its key is taken.

        A call that is repeated within, after a lost reply, may find its own blob: compare the
        content where that matters.

        Args:
            key: Its key.
            data: Its content.

        Returns:
            Whether it was stored.
        """

    @abstractmethod
    def put(self, key: str, path: Path) -> None:
        """Stores a file, and replaces the blob of its key.

        Args:
            key: The key.
            path: The file, which nobody changes meanwhile.

        Raises:
            OSError: The file cannot be read, or the store is full.
        """

    @abstractmethod
    def copy(self, key: str, new: str) -> None:
        """Stores the content of a blob under another key as well, without bringing it here.

        Args:
            key: Its key.
            new: The other key, whose blob is replaced.

        Raises:
            FileNotFoundError: There is no such blob.
        """

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Returns the content of a small blob.

        Raises:
            FileNotFoundError: There is no such blob.
            DamagedBlobError: It is larger than SMALL_BYTES.
        """

    @abstractmethod
    def stream(self, key: str) -> Iterator[bytes | memoryview]:
        """Yields the content of a blob, a piece at a time.

        Raises:
            FileNotFoundError: There is no such blob.
        """

    @abstractmethod
    def head(self, key: str) -> Blob | None:
        """Returns a blob; None where no blob has that key."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Blob]:
        """Yields the blobs whose keys begin with a prefix, which ends with a slash or is empty."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Deletes blobs; those that are not there are no error."""

    @abstractmethod
    def close(self) -> None:
        """Gives up what the store holds open."""

    def fetch(
        self,
        key: str,
        place: Path,
        sha256: str,
        require: Callable[[int], None] = nothing_required,
    ) -> None:
        """Brings a blob to a file of this machine, whole and undamaged or not at all.

        Args:
            key: Its key.
            place: The file, which is replaced.
            sha256: The hash that its content must have, in lower-case hexadecimal.
            require: Called with the number of bytes before they are written; an error of it ends
                that.

        Raises:
            FileNotFoundError: There is no such blob.
            DamagedBlobError: Its content has another hash, also when fetched again.
            OSError: The disk of this machine failed or is full.
        """
        for _ in range(_TRIES):
            temporary = temporary_path(place)
            try:
                if self._download(key, temporary, require) == sha256:
                    os.replace(temporary, place)
                    return
            finally:
                temporary.unlink(missing_ok=True)
        raise DamagedBlobError(
            errno.EIO,
            f"blob {key} in {self.name} is damaged: its content does not have the SHA-256 {sha256}",
        )

    def _download(self, key: str, place: Path, require: Callable[[int], None]) -> str:
        """Writes a blob to a new file; returns the hash of what was written."""
        hashed = hashlib.sha256()
        begun_s = time.monotonic()
        received = 0
        with place.open("xb") as file:
            for piece in self.stream(key):
                received += len(piece)
                taken_s = time.monotonic() - begun_s
                if taken_s > _SLOW_S and received < taken_s * _SLOW_BYTES_PER_S:
                    raise BlobsUnavailableError(
                        f"the blobs {self.name} come too slowly: {received:,} bytes in "
                        f"{taken_s:.0f} s"
                    )
                require(len(piece))
                hashed.update(piece)
                file.write(piece)
        return hashed.hexdigest()
