"""`ObjectStore` keeps blobs in S3, Google Cloud Storage or Azure Blob Storage, by obstore.

Credentials come from the environment, under the names that the tools of each provider read, such as
AWS_ACCESS_KEY_ID, or from the machine's own identity. A request that fails in a way that may pass
is repeated for some seconds. Then BlobsUnavailableError says so.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from treadle.server.failures import BlobsUnavailableError, DamagedBlobError
from treadle.server.storage.blobs.blob_store import SMALL_BYTES, Blob, BlobStore
from treadle.server.storage.files import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as RemoteStore

logger = logging.getLogger(__name__)

_CONNECT_S = 3.0
"""Seconds in which a connection must be made."""
_CALL_S = 15.0
"""Seconds that a request without much data may take."""
_SILENT_S = 30.0
"""Seconds within which a part must be taken, or more of a blob must come."""
_RETRY_S = 10.0
"""Seconds after its begin from which a request is not repeated any more."""
_RETRIES = 4

_PART_BYTES = 8 << 20
"""Bytes of a part of a large file; a smaller file is one request."""
_PARTS = 4
"""Parts that are sent at once."""
_PIECE_BYTES = 1 << 18
_DELETED = 500
"""Blobs that one request deletes."""

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""The variables that name another server than the provider's."""

_MISSING = (NotFoundError, FileNotFoundError)
"""What obstore raises for a blob that is not there, which depends on the request."""
_REFUSED = (PermissionDeniedError, UnauthenticatedError)


class ObjectStore(BlobStore):
    """Blobs in a bucket of an object store.

    Args:
        url: Its URL, such as s3://BUCKET/PREFIX.

    Raises:
        StoreError: It cannot be reached, or refuses this server.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        _check_endpoint(url)
        try:
            # Two clients, since a limit of time holds for all requests of one.
            self._calls = _client(url, {"timeout": timedelta(seconds=_CALL_S)})
            self._transfers = _client(
                url, {"read_timeout": timedelta(seconds=_SILENT_S), "timeout": timedelta(days=1)}
            )
        except (BaseError, ValueError) as error:
            raise StoreError(f"--blobs-url {url} cannot be used: {_reason(error)}") from error
        self._check()

    def create(self, key: str, data: bytes) -> bool:
        """Stores a small blob, unless its key is taken; returns whether it was stored."""
        if not self.exclusive and self.head(key) is not None:
            return False
        with self._reaching(key):
            try:
                obstore.put(self._calls, key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def put(self, key: str, path: Path) -> None:
        """Stores a file, and replaces the blob of its key."""
        with self._reaching(key):
            obstore.put(self._transfers, key, path, chunk_size=_PART_BYTES, max_concurrency=_PARTS)

    def copy(self, key: str, new: str) -> None:
        """Stores the content of a blob under another key as well."""
        with self._reaching(key):
            obstore.copy(self._transfers, key, new)

    def read(self, key: str) -> bytes:
        """Returns the content of a small blob."""
        with self._reaching(key):
            found = obstore.get(self._calls, key)
            if found.meta["size"] > SMALL_BYTES:
                raise DamagedBlobError(errno.EIO, f"blob {key} in {self.name} is too large")
            return bytes(found.bytes())

    def stream(self, key: str) -> Iterator[bytes | memoryview]:
        """Yields the content of a blob, a piece at a time."""
        with self._reaching(key):
            for piece in obstore.get(self._transfers, key).stream(min_chunk_size=_PIECE_BYTES):
                yield memoryview(piece)

    def head(self, key: str) -> Blob | None:
        """Returns a blob; None where no blob has that key."""
        with suppress(FileNotFoundError), self._reaching(key):
            found = obstore.head(self._calls, key)
            return Blob(key, found["size"], found["last_modified"].timestamp())
        return None

    def list(self, prefix: str) -> Iterator[Blob]:
        """Yields the blobs whose keys begin with a prefix."""
        with self._reaching(prefix):
            for page in obstore.list(self._calls, prefix.rstrip("/") or None):
                for found in page:
                    modified_s = found["last_modified"].timestamp()
                    yield Blob(found["path"], found["size"], modified_s)

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes blobs; those that are not there are no error."""
        waiting = iter(keys)
        while batch := [*islice(waiting, _DELETED)]:
            with self._reaching(batch[0]):
                try:
                    obstore.delete(self._calls, batch)
                except _MISSING:  # one of them; the others may be left
                    for key in batch:
                        with suppress(*_MISSING):
                            obstore.delete(self._calls, key)

    def close(self) -> None:
        """Does nothing: connections end with the process."""

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        """Translates the errors of obstore."""
        try:
            yield
        except _MISSING as error:
            path = f"{self.name}/{key}"
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        except _REFUSED as error:
            raise BlobsUnavailableError(
                f"the blobs {self.name} refuse this server: {_reason(error)}"
            ) from error
        except BaseError as error:
            raise BlobsUnavailableError(
                f"the blobs {self.name} cannot be reached: {_reason(error)}"
            ) from error

    def _check(self) -> None:
        """Checks that the store takes blobs, and whether it creates them exclusively.

        Raises:
            StoreError: It takes none.
        """
        key = f"probes/{secrets.token_hex(8)}"
        try:
            self.create(key, b"")
            self.exclusive = not self.create(key, b"")
            self.delete([key])
        except FileNotFoundError:
            raise StoreError(
                f"--blobs-url {self.name} cannot be used: there is no such bucket or container; "
                "make it first, or name another"
            ) from None
        except BlobsUnavailableError as error:
            remedy = ""
            if isinstance(error.__cause__, _REFUSED):
                remedy = "; give credentials in the environment that may read and write there"
            raise StoreError(f"--blobs-url cannot be used: {error}{remedy}") from error
        if not self.exclusive:
            logger.warning(
                "%s ignores If-None-Match: the database alone decides who gets a version", self.name
            )


def _client(url: str, limits: ClientConfig) -> RemoteStore:
    """Returns a client of a store.

    Raises:
        BaseError, ValueError: The URL or a variable cannot be used.
    """
    client: ClientConfig = {"connect_timeout": timedelta(seconds=_CONNECT_S), **limits}
    for name in _ENDPOINTS.get(url.partition(":")[0], ()):
        if os.environ.get(name, "").lower().startswith("http:"):  # as the user chose
            client["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=_RETRY_S),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    found: RemoteStore = from_url(url, client_options=client, retry_config=retry)
    return found


def _check_endpoint(url: str) -> None:
    """Checks the variables that name another server: obstore panics at what is no URL.

    Raises:
        StoreError: One has no URL. The message does not repeat it, since it may hold a key.
    """
    for name in _ENDPOINTS.get(url.partition(":")[0], ()):
        value = os.environ.get(name, "")
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_url = False
        if value and (not is_url or re.search(r"\s", value)):
            raise StoreError(
                f"the variable {name} is no URL: write http://HOST:PORT, or https://HOST:PORT"
            )


def _reason(error: Exception) -> str:
    """Returns the first line of an error of obstore; details for its developers follow it."""
    line = str(error).partition("\n")[0]
    return line.partition(": <?xml")[0].strip().rstrip(".")
