"""`HttpServer` serves the HTTP address: uvicorn's protocol in the event loop of the server.

uvicorn's own server would handle signals, end the process where a port is taken, and keep the
certificate with which it began.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from treadle.server.address import AddressError, clear_socket, socket_path
from treadle.server.config import SettingError
from treadle.server.http.guarded_protocol import ConnectionLimits, GuardedProtocol
from treadle.server.http.listener import Listener

if TYPE_CHECKING:
    from treadle.server.tls.certificate_files import ServerCertificate
    from treadle.server.tls.certificate_reloader import CertificateReloader

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_BACKLOG = 512
_VANISHED_S = 60
"""Seconds of silence after which the system asks whether a client is still there."""


class HttpServer:
    """Serves an app at one address.

    Args:
        app: The app.
        certificate: The certificate of the server; None: without TLS.
        limits: What connections may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        certificate: CertificateReloader | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._certificate = certificate
        self._limits = limits or ConnectionLimits()
        self._config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        # One line for each malformed request would let strangers fill the disk with the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._state = ServerState()
        self._sockets: list[socket.socket] = []
        self._listeners: list[Listener] = []
        self._served: ServerCertificate | None = None
        self._looking: asyncio.Task[None] | None = None
        self._path: Path | None = None

    async def start(self, address: str) -> str:
        """Listens.

        Args:
            address: The address, in which `address_fault` finds no fault.

        Returns:
            The URL of the server, with the real port where port 0 was asked for; for a socket, its
            address.

        Raises:
            SettingError: The address is taken, or not of this machine.
        """
        self._config.load()
        self._path = socket_path(address)
        try:
            self._sockets = _bind(address)
        except (AddressError, OSError) as error:
            fault = str(error)
            if isinstance(error, OSError):
                fault = f"cannot listen on {address}: {_reason(error)}"
            raise SettingError("http_address", f"must be another address: {fault}") from None
        self._set_date()
        self._serve()
        self._looking = asyncio.create_task(self._look())
        if address.startswith("unix"):
            return address
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{address.rpartition(':')[0]}:{self._sockets[0].getsockname()[1]}"

    def _serve(self) -> None:
        """Accepts connections, from now on with the certificate of this moment."""
        before = self._listeners
        context = None
        if self._certificate is not None:
            self._served = self._certificate.certificate
            context = _tls_context(self._served)
        self._listeners = [
            # A listening socket may be shared, so that no connection is refused in between.
            Listener(listening.dup(), context, self._connection, self._limits.handshakes)
            for listening in self._sockets
        ]
        for listener in before:
            listener.close()

    def _connection(self) -> GuardedProtocol:
        return GuardedProtocol(self._config, self._state, self._limits)

    async def _look(self) -> None:
        """Looks at connections and the certificate for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            self._set_date()
            for connection in [*self._state.connections]:
                assert isinstance(connection, GuardedProtocol)
                connection.look(loop.time())
            certificate = self._certificate
            if certificate is not None and certificate.certificate is not self._served:
                try:
                    self._serve()
                except (OSError, ValueError):  # those of before continue, and keep theirs
                    logger.exception("HTTP cannot take the new certificate")

    def _set_date(self) -> None:
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]

    def drain(self) -> None:
        """Accepts no more connections, and closes those without a request."""
        for listener in self._listeners:
            listener.close()
        for listening in self._sockets:
            listening.close()
        self._sockets = []
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            self._path = None
        for connection in [*self._state.connections]:
            connection.shutdown()

    async def stop(self, patience_s: float) -> None:
        """Ends all connections.

        Args:
            patience_s: Seconds for requests that are about to be answered.
        """
        self.drain()
        until = time.monotonic() + patience_s
        while self._state.connections and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for connection in [*self._state.connections]:
            connection.transport.abort()
        if self._looking is not None:
            self._looking.cancel()
        tasks = [*self._state.tasks]
        if tasks:  # their clients are gone, which ends them
            await asyncio.wait(tasks, timeout=patience_s)


def _bind(address: str) -> list[socket.socket]:
    """Returns listening sockets for an address.

    Raises:
        OSError: It is taken, or not of this machine.
        AddressError: The same, for the path of a socket.
    """
    path = socket_path(address)
    if path is not None:
        clear_socket(path)
        return [_listening(socket.AF_UNIX, os.fspath(path))]
    if address.startswith("unix-abstract:"):
        return [_listening(socket.AF_UNIX, "\0" + address.partition(":")[2])]
    host, _, port_text = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, target in dict.fromkeys(found):
            port = sockets[0].getsockname()[1] if sockets else target[1]
            sockets.append(_listening(family, (target[0], port, *target[2:])))
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _listening(family: int, target: object) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit what follows. asyncio sets this one only where a socket names its
            # protocol: without it, the first event of a stream waits 40 ms until the client has
            # confirmed the headers.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A client that vanished is noticed within two minutes.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _VANISHED_S)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _VANISHED_S // 6)
        if family == socket.AF_INET6:  # [::] is every network, as for gRPC
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(target)  # type: ignore[arg-type]
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _tls_context(certificate: ServerCertificate) -> ssl.SSLContext:
    """Returns what new connections are made with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The module ssl reads files only, and the key must be on no disk.
    file = os.memfd_create("treadle-certificate")
    try:
        os.write(file, certificate.key + b"\n" + certificate.chain)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    if certificate.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate.client_ca.decode("ascii"))
    return context
