"""`Turns` lets a few requests begin, and a few parts be sent, in each round of the event loop.

Streams that decode together get their parts together, end together, and their clients begin the
next ones together. Without turns a health check of gRPC would wait for all of them.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from treadle.server.resources.loop_throttle import LoopThrottle

_STARTS_AT_ONCE = 2
_SENDS_AT_ONCE = 8


class Turns:
    """Middleware that paces all requests of an app together.

    Args:
        app: The app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._starts = LoopThrottle(_STARTS_AT_ONCE)
        self._sends = LoopThrottle(_SENDS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_in_turn(message: Message) -> None:
            await self._sends.wait_turn()
            await send(message)

        await self._starts.wait_turn()
        await self._app(scope, receive, send_in_turn)
