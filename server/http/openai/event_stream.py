"""`EventStream` sends a response as server-sent events, one write for each."""

from __future__ import annotations

from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # So that a reverse proxy passes each event on when it comes.
    (b"x-accel-buffering", b"no"),
]

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that is whole."""


class EventStream:
    """A response that begins with its first event.

    Args:
        send: Takes what is sent to the client.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        """Whether an event was sent."""

    async def write(self, events: bytes) -> None:
        """Sends events."""
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Sends the last events."""
        await self._send({"type": "http.response.body", "body": events, "more_body": False})
