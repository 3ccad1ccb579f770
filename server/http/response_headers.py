"""`ResponseHeaders` gives every request an id, and every response the headers of security."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from treadle.server.access.request_id import REQUEST_ID_KEY, request_id_of, set_request_id
from treadle.server.http.caller_origin import REQUEST_ID

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_UNLESS_SET = (
    # A page of ours sets its own policy; nothing else is meant to be shown as one.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


class ResponseHeaders:
    """Wraps an app.

    Args:
        app: The app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = ((REQUEST_ID_KEY, value.decode("latin-1")) for value in _values(scope))
        request_id = request_id_of(given)
        scope[REQUEST_ID] = request_id
        set_request_id(request_id)
        own = [(REQUEST_ID_KEY.encode(), request_id.encode()), *_ALWAYS]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                names = {name for name, _ in headers}
                headers += [header for header in own if header[0] not in names]
                headers += [header for header in _UNLESS_SET if header[0] not in names]
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _values(scope: Scope) -> list[bytes]:
    """Returns the values of the header that brings an id."""
    return [value for name, value in scope["headers"] if name == REQUEST_ID_KEY.encode()]
