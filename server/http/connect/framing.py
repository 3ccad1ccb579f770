"""`Envelopes` and `Lines` say where in a stream of bytes its messages begin and end.

The Connect protocol puts five bytes before each message: flags and its length. Its last message
says how the call ended. Lines are for `curl` and for shells: one JSON object on each, and where the
call failed, a last one with the member `error`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import StatusError
from treadle.server.http.errors import error_object, too_large

if TYPE_CHECKING:
    from treadle.server.http.request_body import RequestBody
    from treadle.server.resources.memory_budget import Reservation

_PREFIX = struct.Struct(">BI")
_COMPRESSED = 1
_END = 2

_PATIENCE_S = 5.0
"""Seconds for which a message that arrives waits for memory."""

_UNCOUNTED_BYTES = 1 << 16
"""What arrives at once is not counted before there is more of a message."""


class Framing(Protocol):
    """A way to put messages into a stream."""

    content_type: str
    """Of the response."""
    shows_status: bool
    """Whether a call that fails before its first reply has the HTTP status of its error."""

    def read(self, body: RequestBody, most_bytes: int, held: Reservation) -> AsyncIterator[bytes]:
        """Yields the messages of a body.

        Args:
            body: The body.
            most_bytes: Bytes of the largest message.
            held: Grows with a message while it arrives.

        Raises:
            StatusError: A message is too large, incomplete, or malformed.
        """

    def frame(self, data: bytes) -> bytes:
        """Returns a message as a part of the response."""

    def end(self, error: StatusError | None, request_id: str) -> bytes:
        """Returns the end of the response."""


class Envelopes:
    """The streams of the Connect protocol.

    Args:
        codec: The name of the codec of the messages.
        decompress: Returns what a compressed message holds, given the bytes of the largest result;
            None: the messages of the request are not compressed.
    """

    shows_status = False

    def __init__(
        self, codec: str, decompress: Callable[[bytes, int], Awaitable[bytes]] | None
    ) -> None:
        self.content_type = f"application/connect+{codec}"
        self._decompress = decompress

    async def read(
        self, body: RequestBody, most_bytes: int, held: Reservation
    ) -> AsyncIterator[bytes]:
        """Yields the messages of a body."""
        buffer = bytearray()
        async for chunk in body.chunks():
            buffer += chunk
            del chunk
            while len(buffer) >= _PREFIX.size:
                flags, size = _PREFIX.unpack_from(buffer)
                self._check(flags, size, most_bytes)
                if len(buffer) < _PREFIX.size + size:
                    if 2 * size > max(held.size, _UNCOUNTED_BYTES):
                        await held.resize_patiently(2 * size, _PATIENCE_S, len(buffer))
                    break
                data = bytes(memoryview(buffer)[_PREFIX.size : _PREFIX.size + size])
                del buffer[: _PREFIX.size + size]
                if flags and self._decompress is not None:
                    data = await self._decompress(data, most_bytes)
                yield data
                del data
                held.release()
        if buffer:
            raise _malformed("the stream ends within a message")

    def _check(self, flags: int, size: int, most_bytes: int) -> None:
        if flags & ~_COMPRESSED:
            raise _malformed(f"a message of the stream has the flags {flags}, which no request has")
        if flags and self._decompress is None:
            text = "a message of the stream is compressed, and Connect-Content-Encoding is not gzip"
            raise _malformed(text)
        if size > most_bytes:
            raise too_large(most_bytes)

    def frame(self, data: bytes) -> bytes:
        """Returns a message as a part of the response."""
        return _PREFIX.pack(0, len(data)) + data

    def end(self, error: StatusError | None, request_id: str) -> bytes:
        """Returns the end of the response."""
        last: dict[str, Any] = {"metadata": {"x-request-id": [request_id]}}
        if error is not None:
            last["error"] = error_object(error)
        data = json.dumps(last, separators=(",", ":")).encode()
        return _PREFIX.pack(_END, len(data)) + data


class Lines:
    """One JSON object on each line.

    Args:
        is_single: Whether the request is one object, on any number of lines.
    """

    content_type = "application/x-ndjson"
    shows_status = True

    def __init__(self, is_single: bool) -> None:
        self._is_single = is_single

    async def read(
        self, body: RequestBody, most_bytes: int, held: Reservation
    ) -> AsyncIterator[bytes]:
        """Yields the messages of a body."""
        buffer = bytearray()
        async for chunk in body.chunks():
            searched = len(buffer)
            buffer += chunk
            del chunk
            while not self._is_single and (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(memoryview(buffer)[:end])
                del buffer[: end + 1]
                searched = 0
                if line.strip():
                    yield line
                    del line
                    held.release()
            if len(buffer) > most_bytes:
                raise too_large(most_bytes)
            if 2 * len(buffer) > max(held.size, _UNCOUNTED_BYTES):
                await held.resize_patiently(4 * len(buffer), _PATIENCE_S, len(buffer))
        if self._is_single or buffer.strip():
            yield bytes(buffer)

    def frame(self, data: bytes) -> bytes:
        """Returns a message as a part of the response."""
        return data + b"\n"

    def end(self, error: StatusError | None, request_id: str) -> bytes:
        """Returns the end of the response."""
        if error is None:
            return b""
        return json.dumps({"error": error_object(error)}, ensure_ascii=False).encode() + b"\n"


def _malformed(text: str) -> StatusError:
    code = grpc.StatusCode.INVALID_ARGUMENT
    return StatusError(code, text, error_details_pb2.BadRequest())
