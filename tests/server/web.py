"""A plain HTTP client of one server, for the tests of this folder."""

from __future__ import annotations

import http.client
import json
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from .harness import PATIENCE_S

SERVICE = "/treadle.v1.SequenceService"

_PREFIX = struct.Struct(">BI")
_END = 2


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """Returns the body as JSON."""
        return json.loads(self.body)


class Web:
    """Sends requests to one server.

    Args:
        url: Its URL.
        tls: How to connect; None: without TLS.
        token: The access token of the caller; empty: none.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None, token: str = "") -> None:
        self.url = url
        self.tls = tls
        self._host = urlsplit(url).netloc
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Yields a connection."""
        made = http.client.HTTPConnection(self._host, timeout=PATIENCE_S)
        if self.tls is not None:
            made = http.client.HTTPSConnection(self._host, timeout=PATIENCE_S, context=self.tls)
        try:
            yield made
        finally:
            made.close()

    @contextmanager
    def open(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Sends a request, and yields the response while it arrives.

        Args:
            method: The HTTP method.
            path: The path.
            body: The body; an iterable is sent in chunks.
            headers: Headers, with `_` for `-`.
        """
        sent = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        with self.connection() as connection:
            connection.request(method, path, body, sent)
            yield connection.getresponse()

    def ask(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str
    ) -> Answer:
        """Sends a request, and returns the whole response."""
        with self.open(method, path, body, **headers) as response:
            shown = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, shown, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        """Returns what GET answers."""
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, fields: Any, **headers: str) -> Answer:
        """Returns what POST of a JSON text answers."""
        return self.ask(
            "POST", path, json.dumps(fields).encode(), content_type="application/json", **headers
        )

    def call(self, method: str, request: Message, **headers: str) -> Answer:
        """Returns what an RPC with one request answers."""
        return self.post(f"{SERVICE}/{method}", MessageToDict(request), **headers)

    def replies(self, method: str, *requests: Message, codec: str = "json", **headers: str) -> Any:
        """Returns the end of a streaming RPC, and its messages as bytes."""
        body = b"".join(envelope(serialized(request, codec)) for request in requests)
        headers = {"content_type": f"application/connect+{codec}"} | headers
        answer = self.ask("POST", f"{SERVICE}/{method}", body, **headers)
        assert answer.status == 200, answer
        found = [*envelopes(answer.body)]
        flags, end = found.pop()
        assert flags == _END
        assert all(flags == 0 for flags, _ in found)
        return json.loads(end), [data for _, data in found]


def serialized(message: Message, codec: str) -> bytes:
    """Returns a message in a form."""
    if codec == "proto":
        return message.SerializeToString()
    return json.dumps(MessageToDict(message)).encode()


def parsed(data: bytes, message: Message) -> Any:
    """Returns a message from JSON."""
    return ParseDict(json.loads(data), message)


def envelope(data: bytes, flags: int = 0) -> bytes:
    """Returns a message of a stream."""
    return _PREFIX.pack(flags, len(data)) + data


def envelopes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the flags and the bytes of each message of a stream."""
    while data:
        flags, size = _PREFIX.unpack_from(data)
        yield flags, data[_PREFIX.size : _PREFIX.size + size]
        data = data[_PREFIX.size + size :]
