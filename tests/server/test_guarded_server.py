"""Calls that no client of gRPC would make: their paths and headers neither end a server nor fill
its log."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from fuzz.connections import call_of

from treadle.server.rpc.servicer import SERVICE

from .harness import NO_PROXY, PATIENCE_S, Server

ODD_PATHS = [
    b"",
    b"/",
    b"//",
    b"/\xff/\x00",
    b"/\xc3\x28",
    f"/{SERVICE}".encode(),
    f"/{SERVICE}/".encode(),
    f"/{SERVICE}/GetServerInfo\xe9".encode("latin-1"),
    f"/{SERVICE}/Nothing".encode(),
    b"/" + b"\x80" * 5000,
]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("guarded") / "data", "--standby-workers", "0")
    yield server
    server.close()


def send(server: Server, data: bytes) -> bytes:
    """Sends the bytes of a connection; returns what came back for a moment."""
    host, _, port = server.address.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
        connection.settimeout(0.3)
        with suppress(OSError):
            while part := connection.recv(1 << 16):
                received += part
    return received


@pytest.mark.parametrize("path", ODD_PATHS)
def test_no_path_ends_the_server(path: bytes, own_server: Server) -> None:
    for _ in range(3):
        assert send(own_server, call_of(path))
    assert own_server.caller.info().version
    assert own_server.caller.serving()
    assert "Traceback" not in own_server.log


def test_headers_that_are_no_text_are_not_logged(own_server: Server) -> None:
    path = f"/{SERVICE}/GetServerInfo".encode()
    for name in (b"authorization", b"x-request-id", b"user-agent", b"x-other"):
        answer = send(own_server, call_of(path, (name, b"Bearer s\xffcret\xfe")))
        assert b"INTERNAL" not in answer
    assert own_server.caller.info().version
    assert "cret" not in own_server.log
    assert "Traceback" not in own_server.log


def test_an_unknown_method_is_unimplemented(own_server: Server) -> None:
    with grpc.insecure_channel(own_server.address, NO_PROXY) as channel:
        for path in ("/no.Service/Method", f"/{SERVICE}/Nothing", "/", "//"):
            began = time.monotonic()
            method: Any = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError) as caught:
                method(b"", timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert time.monotonic() - began < PATIENCE_S / 2
