"""`GuardedProtocol` is uvicorn's protocol of one connection, with limits that uvicorn lacks.

By itself it keeps heads of requests of any size, waits for half a head, for an unread reply or for
a client that sends nothing for any time, and queues any number of requests that arrive at once.

It also shows the app the certificate of the client, as ASGI's extension for TLS defines it.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

DISCONNECTED = "treadle.disconnected"
"""The entry of a scope with the event that the connection is lost."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may take, and how many there may be."""

    connections: int = 1024
    """The most connections. One more takes the place of the one that waits for its client the
    longest."""
    handshakes: int = 128
    """The most connections in the handshake of TLS, each of which takes a third of a megabyte. One
    more takes the place of the oldest."""
    head_bytes: int = 1 << 15
    """Bytes of the path and the headers of a request."""
    headers: int = 100
    """Headers of a request."""
    head_s: float = 10.0
    """Seconds within which they must arrive."""
    idle_s: float = 75.0
    """Seconds for which a connection without a request is kept. Reverse proxies keep theirs for 60
    seconds, and must be the ones to close."""
    unread_s: float = 60.0
    """Seconds for which a reply may be unread."""
    rest_s: float = 5.0
    """Seconds for which the rest of a request is read that is answered already."""
    pipelined: int = 4
    """Requests that may wait behind the one that runs."""
    evictable_s: float = 1.0
    """Seconds of waiting for its client after which a connection may lose its place."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config: The settings of uvicorn.
        server_state: All connections.
        limits: What it may take.
    """

    def __init__(self, config: Config, server_state: ServerState, limits: ConnectionLimits) -> None:
        super().__init__(config, server_state, {}, asyncio.get_running_loop())
        self._limits = limits
        self._head_bytes = 0
        self._is_in_head = False
        self._is_repeating = False
        """Whether the parser reads a head whose request has begun already."""
        self._waits_since = self.loop.time()
        """Since when it waits for its client: for a head, a body, or the reader of a reply."""
        self._answered_at = math.inf
        """When a request was answered whose body has not arrived completely."""
        self._extensions: dict[str, Any] = {}
        self._disconnected = asyncio.Event()

    # The transport calls these.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a new connection, or closes it if there are too many."""
        if len(self.connections) >= self._limits.connections and not self._make_space():
            transport.write(_raw_response(503, b"the server has too many connections\n"))
            transport.close()
            self.transport = transport
            return
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            certificate = tls.getpeercert(binary_form=True)
            chain = [ssl.DER_cert_to_PEM_cert(certificate)] if certificate else []
            self._extensions = {"tls": {"client_cert_chain": chain}}

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self.flow is not None:  # it had a place, which another one may have got since
            super().connection_lost(exc)
        self._disconnected.set()

    def data_received(self, data: bytes) -> None:
        """Parses what has arrived."""
        if self not in self.connections:
            return
        if not self._is_in_head:
            self._waits_since = self.loop.time()
        self._unset_keepalive_if_required()
        self._parse(data)
        # A head that has not ended is still in the parser, header by header.
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse_head()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, b"the request is malformed\n")

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Takes a request that offers another protocol, such as HTTP/2, as one that does not.

        Java's client offers it with every request. The parser has stopped after the head, without
        the body; a new one reads it, and what comes later.
        """
        self.parser = httptools.HttpRequestParser(self)
        framing = b"".join(
            b"%b: %b\r\n" % (name, value) for name, value in self.headers if name in _FRAMING
        )
        self._is_repeating = True
        self._parse(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        self._is_repeating = False
        if rest and not self.transport.is_closing():
            self._parse(rest)

    def pause_writing(self) -> None:
        """Notes that the client does not read."""
        self._waits_since = self.loop.time()
        super().pause_writing()

    # The parser calls these.

    def on_message_begin(self) -> None:
        """Begins the head of a request."""
        if self._is_repeating:
            return
        super().on_message_begin()
        entries: Any = self.scope
        entries[DISCONNECTED] = self._disconnected
        if self._extensions:
            self.scope["extensions"] = self._extensions
        self._is_in_head = True
        self._head_bytes = 0
        self._waits_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """Takes the path."""
        if not self._is_repeating:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        if self._is_repeating:
            return
        if len(self.headers) >= self._limits.headers:
            self._refuse_head()
            raise httptools.HttpParserError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head of a request, which then runs, or waits for the one before."""
        if self._is_repeating:
            return
        self._is_in_head = False
        if len(self.pipeline) >= self._limits.pipelined:
            raise httptools.HttpParserError("too many requests at once")
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.head_bytes:
            self._refuse_head()
            raise httptools.HttpParserError("too large a head")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Continues with the next request."""
        now = self.loop.time()
        self._waits_since = now
        if self.cycle.response_complete and self.cycle.more_body:
            self._answered_at = now
        super().on_response_complete()
        # Times are looked at by `look`, for all connections at once.
        self._unset_keepalive_if_required()

    def on_message_complete(self) -> None:
        """Ends the body of a request."""
        if self.parser.should_upgrade():  # the body is still to come
            return
        self._answered_at = math.inf
        super().on_message_complete()

    # The server calls these.

    def look(self, now: float) -> None:
        """Closes the connection if it has waited for its client for too long.

        Args:
            now: The time of the loop.
        """
        limits = self._limits
        if self.transport.is_closing():
            if now - self._waits_since > limits.unread_s:
                self.transport.abort()
            return
        waited = self._waited(now)
        if now - self._answered_at > limits.rest_s:
            self.transport.close()
        elif self._is_in_head and waited > limits.head_s:
            self._refuse(408, b"the headers did not arrive in time\n")
        elif self._is_idle and waited > (limits.idle_s if self.cycle else limits.head_s):
            self.transport.close()
        elif self.flow.write_paused and waited > limits.unread_s:
            self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _waited(self, now: float) -> float:
        """Returns how long it has waited for its client; 0 while the server works for it."""
        is_waiting = self._is_in_head or self._is_idle or self.flow.write_paused
        is_waiting = is_waiting or (self.cycle.more_body and not self.flow.read_paused)
        return now - self._waits_since if is_waiting else 0.0

    def _make_space(self) -> bool:
        """Closes the connection that waits for its client the longest; returns whether one does."""
        now = self.loop.time()
        waiting = [each for each in self.connections if isinstance(each, GuardedProtocol)]
        victim = max(waiting, key=lambda each: each._waited(now), default=None)
        if victim is None or victim._waited(now) < self._limits.evictable_s:
            return False
        victim.transport.abort()
        self.connections.discard(victim)
        return True

    def _refuse_head(self) -> None:
        self._refuse(431, b"the path and the headers are too large\n")

    def _refuse(self, status: int, text: bytes) -> None:
        """Answers in place of the app, and closes the connection."""
        self._is_in_head = False
        if not self.transport.is_closing():
            self.transport.write(_raw_response(status, text))
            self.transport.close()


_FRAMING = (b"content-length", b"transfer-encoding")
"""The headers that say where a body ends."""

_PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


def _raw_response(status: int, text: bytes) -> bytes:
    """Returns a whole response for a connection that no app answers."""
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b"
    ) % (status, _PHRASES[status], len(text), text)
