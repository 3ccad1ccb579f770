"""`open_blobs` opens the store of a `--blobs-url`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from treadle.server.storage.blobs.blob_store import BlobStore
from treadle.server.storage.blobs.directory import BlobDirectory
from treadle.server.storage.files import StoreError

SCHEMES = ("s3", "gs", "az", "file")
"""The schemes of the URLs of stores."""


def url_fault(url: str) -> str:
    """Returns what is wrong with a URL, as a clause that follows its name; empty: nothing is.

    The clause repeats nothing of the URL, which may hold a key.

    Args:
        url: The URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is no URL: write s3://BUCKET/PREFIX"
    if parts.scheme not in SCHEMES:
        return (
            "must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH"
        )
    # A key with a slash ends the part with the user early, so the path counts as well.
    rest = "" if parts.scheme == "file" else parts.path
    if ":" in parts.netloc or "@" in parts.netloc + rest:
        return "must hold no user and no password: set them as the provider's environment variables"
    if parts.query or parts.fragment:
        return "must end with the path"
    if parts.scheme == "file":
        return (
            ""
            if not parts.netloc and parts.path != "/" and parts.path
            else ("must name a folder: file:///PATH")
        )
    return "" if parts.netloc else f"names no bucket: {parts.scheme}://BUCKET/PREFIX"


def open_blobs(url: str) -> BlobStore:
    """Returns the store of a URL.

    Args:
        url: A URL in which `url_fault` finds nothing.

    Raises:
        StoreError: It cannot be used, or the extra with its package is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return BlobDirectory(Path(unquote(parts.path)))
    try:
        from treadle.server.storage.blobs.object_store import ObjectStore
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("treadle"):
            raise
        raise StoreError(
            f"--blobs-url {url} needs {error.name}, which is not installed: pip install "
            "'.[server,objectstore]' in a checkout of Treadle"
        ) from None
    return ObjectStore(url.rstrip("/"))
