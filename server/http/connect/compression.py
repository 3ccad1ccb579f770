"""`decompress` and `compress` are gzip with a limit: a small body cannot become a huge message."""

from __future__ import annotations

import zlib

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import StatusError
from treadle.server.http.errors import HttpError, too_large
from treadle.server.resources import thread_pools

GZIP = "gzip"
"""The only compression there is."""

_GZIP_BITS = 31
_LEVEL = 5
_SMALL_BYTES = 1 << 14
"""What is done in the event loop; more is done in a thread."""

_WORTH_BYTES = 1 << 10
"""Replies below this size are not compressed."""


def check_encoding(encoding: str) -> bool:
    """Returns whether a body is compressed.

    Args:
        encoding: The value of its header.

    Raises:
        StatusError: UNIMPLEMENTED: the compression is unknown.
    """
    if encoding in ("", "identity"):
        return False
    if encoding == GZIP:
        return True
    text = f"the compression {encoding[:40]!r} is not supported: use gzip or identity"
    raise HttpError(415, grpc.StatusCode.UNIMPLEMENTED, text, accept_encoding=GZIP)


async def decompress(data: bytes, most_bytes: int) -> bytes:
    """Returns what a compressed body holds.

    Args:
        data: The body.
        most_bytes: Bytes of the largest result.

    Raises:
        StatusError: It is malformed, or the result is larger.
    """
    if len(data) <= _SMALL_BYTES and most_bytes <= _SMALL_BYTES:
        return _decompress(data, most_bytes)
    return await thread_pools.JSON.run(_decompress, data, most_bytes)


def _decompress(data: bytes, most_bytes: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_BITS)
    try:
        result = stream.decompress(data, most_bytes + 1)
    except zlib.error:
        result = b""
    if len(result) > most_bytes:
        raise too_large(most_bytes)
    if not stream.eof or stream.unused_data:
        text = "the request is not gzip, or is incomplete"
        code = grpc.StatusCode.INVALID_ARGUMENT
        raise StatusError(code, text, error_details_pb2.BadRequest())
    return result


def accepts_gzip(header: str) -> bool:
    """Returns whether a client accepts replies in gzip.

    Args:
        header: The value of Accept-Encoding.
    """
    for entry in header.split(","):
        name, _, quality = entry.partition(";")
        if name.strip().lower() == GZIP:
            return quality.strip().replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def compress(data: bytes) -> bytes | None:
    """Returns a reply in gzip; None where that is not worth it."""
    if len(data) < _WORTH_BYTES:
        return None
    if len(data) <= _SMALL_BYTES:
        return _compress(data)
    return await thread_pools.JSON.run(_compress, data)


def _compress(data: bytes) -> bytes:
    stream = zlib.compressobj(_LEVEL, wbits=_GZIP_BITS)
    return stream.compress(data) + stream.flush()
