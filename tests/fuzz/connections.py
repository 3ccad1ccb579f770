"""`odd_connection` sends bytes to a server that no client of gRPC would send.

HTTP/2 itself is the business of gRPC. What is tried here is what reaches the server behind it:
headers of any bytes, messages whose length lies or whose end never comes, and plain noise.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import suppress

from treadle.server.rpc.servicer import SERVICE

from .mutate import Mutator
from .wire import random_wire

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM = 1
_END_HEADERS = 4
_METHODS = ("Generate", "Score", "Train", "ScoreStream", "ListJobs", "GetServerInfo", "Nothing")
_NAMES = (
    b"authorization",
    b"x-request-id",
    b"grpc-timeout",
    b"grpc-encoding",
    b"x-bin",
    b"user-agent",
)
_VALUES = (
    b"",
    b"Bearer \xff\xfe",
    b"Bearer \xc3\xa9",
    b"\n",
    b"a\r\nb: c",
    b"\0",
    b"1S",
    b"99999999S",
    b"-1m",
    b"gzip",
    b"identity",
    b"====",
    b"x" * 7000,
)
_PATIENCE_S = 0.05
_MOST_S = 1.0


def odd_connection(seed: int, address: str) -> None:
    """Opens a connection, sends the bytes of a seed, and reads for a moment.

    Args:
        seed: The seed.
        address: The HOST:PORT of the server.
    """
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(drawn_bytes(seed))
        connection.settimeout(_PATIENCE_S)
        until_s = time.monotonic() + _MOST_S
        while connection.recv(1 << 16) and time.monotonic() < until_s:
            pass


def drawn_bytes(seed: int) -> bytes:
    """Returns what a connection sends."""
    draw = Mutator(seed)
    pick = draw.random
    if pick.randrange(12) == 0:
        return pick.choice((b"", _PREFACE[:10], b"GET / HTTP/1.1\r\n\r\n", pick.randbytes(200)))
    parts = [_PREFACE, _frame(_SETTINGS, 0, 0, b"")]
    for number in range(pick.choice((1, 1, 2, 5))):
        stream = 2 * number + 1
        parts.append(_frame(_HEADERS, _END_HEADERS, stream, _headers(pick)))
        for _ in range(pick.choice((1, 1, 2))):
            ends = pick.choice((0, _END_STREAM))
            parts.append(_frame(_DATA, ends, stream, _message(pick)))
        if pick.randrange(6) == 0:
            odd = pick.choice((_RST, _PING, _GOAWAY, _WINDOW, _CONTINUATION, 77))
            parts.append(_frame(odd, pick.randrange(256), stream, pick.randbytes(8)))
    data = b"".join(parts)
    return draw.bytes(data, pick.choice((1, 3))) if pick.randrange(3) == 0 else data


def _message(pick: random.Random) -> bytes:
    """Returns a message with the five bytes before it that say how long it is."""
    body = random_wire(pick)
    size = max(0, len(body) + pick.choice((0, 0, 0, 1, -1, 1 << 20, (1 << 32) - 1 - len(body))))
    compressed = pick.choice((0, 0, 0, 1, 2, 255))
    return struct.pack(">BI", compressed, min(size, (1 << 32) - 1)) + body


def call_of(path: bytes, *more: tuple[bytes, bytes], body: bytes = b"") -> bytes:
    """Returns a whole connection with one call.

    Args:
        path: The path of the call.
        more: Names and values of headers besides.
        body: What its message holds.
    """
    pairs = [*_usual_headers(path), *more]
    message = struct.pack(">BI", 0, len(body)) + body
    frames = (
        _frame(_SETTINGS, 0, 0, b""),
        _frame(_HEADERS, _END_HEADERS, 1, _written(pairs)),
        _frame(_DATA, _END_STREAM, 1, message),
    )
    return _PREFACE + b"".join(frames)


def _usual_headers(path: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


def _headers(pick: random.Random) -> bytes:
    name = pick.choice(_METHODS)
    odd_paths = ("", "/", "//", f"/{SERVICE}", f"/{SERVICE}/\xe9", "/\xff/\0", "/" + "x" * 5000)
    path = pick.choice((*(f"/{SERVICE}/{name}",) * 12, *odd_paths))
    pairs = _usual_headers(path.encode("latin-1"))
    for _ in range(pick.choice((0, 1, 1, 3))):
        pairs.append((pick.choice(_NAMES), pick.choice((*_VALUES, pick.randbytes(20)))))
    if pick.randrange(10) == 0:
        del pairs[pick.randrange(len(pairs))]
    return _written(pairs)


def _written(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Returns headers as literals without indexing, as HPACK (RFC 7541) defines them."""
    return b"".join(b"\0" + _text(key) + _text(value) for key, value in pairs)


def _text(data: bytes) -> bytes:
    """Returns a text as HPACK writes it, without Huffman's code."""
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest = len(data) - 127
    size = bytearray([127])
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes(size) + bytes([rest]) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
