"""`UnreadReplies` counts large replies until their client has read them, and sends them in pieces.

uvicorn takes whatever it is given into a buffer at once, of any size, and only then waits for the
client. In pieces, each of which waits for the one before, the buffer stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from treadle.server.errors import StatusError
from treadle.server.http.errors import error_response

if TYPE_CHECKING:
    from treadle.server.resources.memory_budget import MemoryBudget

_PIECE_BYTES = 1 << 16
"""What one piece holds; smaller replies are not counted."""


class UnreadReplies:
    """Wraps an app.

    Args:
        app: The app.
        budget: Counts the bytes of replies whose length is known.
    """

    def __init__(self, app: ASGIApp, budget: MemoryBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        with self._budget.reserve(0, "replies that are not read yet") as held:
            is_refused = False

            async def send_counted(message: Message) -> None:
                nonlocal is_refused
                if is_refused:
                    return
                if message["type"] == "http.response.start":
                    try:
                        held.resize(_size(message))
                    except StatusError as error:
                        is_refused = True
                        await error_response(error)(scope, receive, send)
                        return
                await _send_pieces(message, send)

            await self._app(scope, receive, send_counted)


async def _send_pieces(message: Message, send: Send) -> None:
    body = message.get("body", b"")
    if len(body) <= _PIECE_BYTES:
        await send(message)
        return
    for start in range(0, len(body), _PIECE_BYTES):
        piece = bytes(memoryview(body)[start : start + _PIECE_BYTES])
        is_last = start + _PIECE_BYTES >= len(body)
        more_body = message.get("more_body", False) or not is_last
        await send({"type": "http.response.body", "body": piece, "more_body": more_body})


def _size(message: Message) -> int:
    """Returns the bytes of a reply; 0 where it is small, or where its length is unknown."""
    for name, value in message.get("headers", ()):
        if name == b"content-length":
            size = int(value)
            return size if size > _PIECE_BYTES else 0
    return 0
