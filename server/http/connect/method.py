"""`ConnectMethod` answers the HTTP requests for one method of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from treadle.server.errors import StatusError, invalid
from treadle.server.http.caller_origin import REQUEST_ID, origin_of
from treadle.server.http.connect.codec import CODECS, JSON, Codec
from treadle.server.http.connect.compression import (
    GZIP,
    accepts_gzip,
    check_encoding,
    compress,
    decompress,
)
from treadle.server.http.connect.framing import Envelopes, Framing, Lines
from treadle.server.http.errors import HttpError, error_response
from treadle.server.http.request_body import Bodies, RequestBody

if TYPE_CHECKING:
    from treadle.server.rpc.in_process import InProcessService

_Code = grpc.StatusCode

_CONNECT = "application/connect+"
_PLAIN = "application/"
_LINES = ("application/x-ndjson", "application/jsonl")

_MOST_TIMEOUT_DIGITS = 10

_ARRIVING = "requests that arrive"


class ConnectMethod:
    """An ASGI app for one method.

    Args:
        service: The RPCs.
        method: The descriptor of the method.
        bodies: Reads the bodies of requests.
    """

    def __init__(self, service: InProcessService, method: MethodDescriptor, bodies: Bodies) -> None:
        self._service = service
        self._method = method
        self._bodies = bodies
        self._is_stream = method.client_streaming or method.server_streaming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        body = RequestBody(scope, receive)
        try:
            if scope["method"] != "POST":
                text = f"call {self._method.name} with POST, not {scope['method']}"
                raise HttpError(405, _Code.UNIMPLEMENTED, text, allow="POST")
            _check_version(headers)
            timeout_s = _timeout_s(headers)
            content_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if self._is_stream:
                framing, codec = self._framing(content_type, headers)
                await self._stream(scope, body, send, framing, codec, timeout_s)
                return
            codec = self._codec(content_type)
            response = await self._unary(scope, body, headers, codec, timeout_s)
        except StatusError as error:
            response = error_response(body.fault or error)
        if response is not None:
            await response(scope, receive, send)

    def _codec(self, content_type: str) -> Codec:
        """Returns the codec of a method with one request and one reply."""
        codec = CODECS.get(content_type.removeprefix(_PLAIN))
        if codec is None:
            raise self._wrong_type("application/json or application/proto")
        return codec

    def _framing(self, content_type: str, headers: dict[bytes, str]) -> tuple[Framing, Codec]:
        """Returns the framing and the codec of a method with streams."""
        if content_type == "application/json" and not self._method.client_streaming:
            return Lines(is_single=True), JSON
        if content_type in _LINES:
            return Lines(is_single=False), JSON
        codec = CODECS.get(content_type.removeprefix(_CONNECT))
        if codec is None or not content_type.startswith(_CONNECT):
            one = "application/x-ndjson" if self._method.client_streaming else "application/json"
            raise self._wrong_type(f"application/connect+json, application/connect+proto or {one}")
        is_gzip = check_encoding(headers.get(b"connect-content-encoding", ""))
        return Envelopes(codec.name, decompress if is_gzip else None), codec

    def _wrong_type(self, allowed: str) -> HttpError:
        text = f"the Content-Type of {self._method.name} must be {allowed}"
        accepted = allowed.replace(" or ", ", ")
        return HttpError(415, _Code.UNIMPLEMENTED, text, accept_post=accepted)

    async def _unary(
        self,
        scope: Scope,
        body: RequestBody,
        headers: dict[bytes, str],
        codec: Codec,
        timeout_s: float | None,
    ) -> Response | None:
        """Returns the response to a call with one reply; None where the client has left."""
        is_gzip = check_encoding(headers.get(b"content-encoding", ""))
        async with (
            body.while_connected(),
            _deadline(timeout_s),
            aclosing(self._request(body, codec, is_gzip)) as requests,
        ):
            reply: Any = await self._service.unary(self._method.name, requests, origin_of(scope))
            data = await codec.serialize(reply)
            del reply
            shown = {"content-type": f"{_PLAIN}{codec.name}", "vary": "accept-encoding"}
            if accepts_gzip(headers.get(b"accept-encoding", "")):
                compressed = await compress(data)
                if compressed is not None:
                    data = compressed
                    shown["content-encoding"] = GZIP
            return Response(data, headers=shown)
        return None

    async def _request(
        self, body: RequestBody, codec: Codec, is_gzip: bool
    ) -> AsyncGenerator[Message, None]:
        """Yields the request of a call, which is read once the caller may make the call."""
        with body.noting_faults(), self._bodies.budget.reserve(0, _ARRIVING) as held:
            data = await self._bodies.read(body, held)
            if is_gzip:
                data = await decompress(data, self._bodies.most_bytes)
            message = await codec.parse(data, self._method.input_type)
            del data
            yield message

    async def _requests(
        self, body: RequestBody, framing: Framing, codec: Codec
    ) -> AsyncGenerator[Message, None]:
        """Yields the requests of a stream."""
        with body.noting_faults(), self._bodies.budget.reserve(0, _ARRIVING) as held:
            messages = framing.read(body, self._bodies.most_bytes, held)
            if not self._method.client_streaming:
                only = await self._only(messages)
                if only is not None:
                    yield await codec.parse(only, self._method.input_type)
                return
            async for data in messages:
                message = await codec.parse(data, self._method.input_type)
                del data
                yield message
                del message

    async def _only(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """Returns the message of a body that may have one; None where it has none.

        The body is read to its end, since the rest of it would hide that the client leaves.

        Raises:
            StatusError: UNIMPLEMENTED: it has more than one.
        """
        found: bytes | None = None
        async for data in messages:
            if found is not None:
                text = f"{self._method.name} takes one request, and the body has more"
                raise StatusError(_Code.UNIMPLEMENTED, text)
            found = data
        return found

    async def _stream(
        self,
        scope: Scope,
        body: RequestBody,
        send: Send,
        framing: Framing,
        codec: Codec,
        timeout_s: float | None,
    ) -> None:
        """Answers a call with streams: each reply is sent when it is made."""
        failed: StatusError | None = None
        has_begun = False
        name = self._method.name
        async with body.while_connected():
            try:
                async with (
                    _deadline(timeout_s),
                    aclosing(self._requests(body, framing, codec)) as requests,
                    self._service.stream(name, requests, origin_of(scope)) as replies,
                ):
                    async for reply in replies:
                        data = framing.frame(await codec.serialize(reply))
                        del reply
                        if not has_begun:
                            has_begun = True
                            await send(_start(framing))
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                        del data
            except StatusError as error:
                failed = error
            if failed is not None and not has_begun and framing.shows_status:
                await error_response(body.fault or failed)(scope, _receive_nothing, send)
                return
            if not has_begun:
                await send(_start(framing))
            last = framing.end(failed, scope.get(REQUEST_ID, ""))
            await send({"type": "http.response.body", "body": last, "more_body": False})


def _start(framing: Framing) -> dict[str, Any]:
    headers = [
        (b"content-type", framing.content_type.encode()),
        # So that a reverse proxy passes each message on when it comes.
        (b"x-accel-buffering", b"no"),
    ]
    if isinstance(framing, Envelopes):
        headers.append((b"connect-accept-encoding", GZIP.encode()))
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _receive_nothing() -> Any:
    """Stands in for the body of a request, which an error response does not read."""
    return {"type": "http.disconnect"}


def _check_version(headers: dict[bytes, str]) -> None:
    """Checks the version of the protocol, which a client may leave out."""
    version = headers.get(b"connect-protocol-version", "1")
    if version != "1":
        text = f"the header Connect-Protocol-Version must be 1, not {version[:20]!r}"
        raise StatusError(_Code.INVALID_ARGUMENT, text, error_details_pb2.BadRequest())


def _timeout_s(headers: dict[bytes, str]) -> float | None:
    """Returns the seconds that a client gives its call; None: any time."""
    given = headers.get(b"connect-timeout-ms")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= _MOST_TIMEOUT_DIGITS):
        text = "the header Connect-Timeout-Ms must be a whole number of up to 10 digits"
        raise invalid([("Connect-Timeout-Ms", text)])
    return int(given) / 1e3


@asynccontextmanager
async def _deadline(timeout_s: float | None) -> AsyncIterator[None]:
    """Ends a call when the time that its client gives it is over.

    Raises:
        StatusError: DEADLINE_EXCEEDED: it is.
    """
    try:
        async with asyncio.timeout(timeout_s) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        text = f"the {timeout_s:g} seconds of the client for this call are over"
        raise StatusError(_Code.DEADLINE_EXCEEDED, text) from None
