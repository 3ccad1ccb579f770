"""A TCP proxy for tests, which cuts one client off from a server while others still reach it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator


class TcpProxy:
    """Passes connections on 127.0.0.1 on to a port, unless it is cut.

    Args:
        port: The port that it leads to.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        """The port that it listens on."""
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Passes nothing on any more, as a network that loses every packet; connections stay."""
        self._passing.clear()

    def restore(self) -> None:
        """Passes everything on again, what was held up included."""
        self._passing.set()

    def close(self) -> None:
        """Accepts no connection any more."""
        self._closed = True
        self._passing.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            others = {client: server, server: client}
            while not self._closed:
                ready, _, _ = select.select([*others], [], [], 1.0)
                for one in ready:
                    data = one.recv(1 << 16)
                    self._passing.wait()
                    if not data:
                        return
                    others[one].sendall(data)


@contextlib.contextmanager
def proxied(port: int) -> Iterator[TcpProxy]:
    """Yields a proxy that leads to a port, and closes it."""
    proxy = TcpProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
