"""`CutProxy` stands before a server and cuts connections after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

_NEVER = 1 << 60


class CutProxy:
    """Forwards connections to a server, and cuts them as a killed server would.

    Args:
        server: The server's HOST:PORT.
        cuts: Of each connection in turn, the bytes of replies after which it is cut; those after
            are not cut.
        uploads: The same for the bytes of requests.
    """

    def __init__(self, server: str, cuts: Iterable[int] = (), uploads: Iterable[int] = ()) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._cuts = iter(cuts)
        self._uploads = iter(uploads)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.connections = 0
        """Connections so far."""
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Cuts the connections that are open."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cuts all connections, and takes no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self.cut()
            self._threads.pop().join(60)
        for end in (self._listener, *self._open):
            end.close()

    def _begin(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._server)
            self._open += [client, server]
            for source, target, most in (
                (client, server, next(self._uploads, _NEVER)),
                (server, client, next(self._cuts, _NEVER)),
            ):
                self._begin(self._forward, source, target, most)

    def _forward(self, source: socket.socket, target: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left and (data := source.recv(min(left, 1 << 16))):
                target.sendall(data)
                left -= len(data)
        for end in source, target:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
