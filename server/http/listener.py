"""`Listener` accepts connections, and passes on those that have finished the handshake of TLS.

asyncio's own server lets any number of strangers begin a handshake, and keeps memory for each.
Where the process can open no more files, it writes a megabyte to the log each second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)

_HANDSHAKE_S = 20.0
"""Seconds within which a new connection must finish the handshake."""

_PAUSE_S = 1.0
"""Seconds until the next try where the system gives no connection, as it has no more files."""


class Listener:
    """Accepts connections of one socket.

    Args:
        listening: The socket, which is closed with the listener.
        context: What the connections are made with; None: without TLS.
        protocol: Makes the protocol of a connection.
        most: The most handshakes at once. One more ends the oldest.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext | None,
        protocol: Callable[[], asyncio.Protocol],
        most: int,
    ) -> None:
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._most = most
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """In the order in which they began."""
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accepts no more connections; handshakes that have begun may finish."""
        self._accepting.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._listening:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listening)
                except OSError as error:
                    logger.error("no connection could be accepted: %s", error)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if len(self._handshakes) >= self._most:
                    oldest = next(iter(self._handshakes))
                    del self._handshakes[oldest]
                    oldest.cancel()
                task = asyncio.create_task(self._shake_hands(connection))
                self._handshakes[task] = None
                task.add_done_callback(self._forget)
                await asyncio.sleep(0)  # so that a flood lets other things run

    def _forget(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.pop(handshake, None)

    async def _shake_hands(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else _HANDSHAKE_S,
            )
        except OSError as error:  # which those of TLS are
            logger.debug("a handshake failed: %s", error)
