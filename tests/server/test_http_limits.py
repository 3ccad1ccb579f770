"""What a client can take of the HTTP address with half requests, floods, and large bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from treadle.server.http.guarded_protocol import ConnectionLimits
from treadle.server.http.http_server import HttpServer
from treadle.server.http.listener import Listener
from treadle.server.http.unread_replies import UnreadReplies
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, until, wait_for
from .web import SERVICE, Web, envelope

QUICK = ConnectionLimits(
    connections=3,
    head_s=0.2,
    idle_s=0.2,
    unread_s=0.2,
    rest_s=0.2,
    evictable_s=0.1,
)
"""Limits that a test need not wait for."""

GET = b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n"


class Connection:
    """One connection to a server under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def status(self) -> int:
        """Returns the status of the next response, which it does not read to the end."""
        line = await asyncio.wait_for(self._reader.readline(), PATIENCE_S)
        return int(line.split()[1]) if line else 0

    async def rest(self) -> bytes:
        """Returns what comes until the server closes the connection."""
        try:
            return await asyncio.wait_for(self._reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()


class Place:
    """A server in this process, with an app that answers at once, slowly, or without an end."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.slow = asyncio.Event()
        self._connections: list[Connection] = []
        routes = [
            Route("/now", self._now, methods=["GET", "POST"]),
            Route("/slow", self._slow),
            Route("/echo", self._echo, methods=["GET", "POST"]),
            Route("/endless", self._endless),
        ]
        self.server = HttpServer(Starlette(routes=routes), limits=limits)
        self.port = 0

    async def _now(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def _echo(self, request: Request) -> Response:
        return Response(b"<%b>" % await request.body())

    async def _slow(self, request: Request) -> Response:
        await self.slow.wait()
        return PlainTextResponse("ok")

    async def _endless(self, request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # as every handler does that waits for something

        return StreamingResponse(lines())

    @property
    def count(self) -> int:
        return len(self.server._state.connections)

    async def connect(self, data: bytes = b"") -> Connection:
        made = Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16))
        self._connections.append(made)
        made.send(data)
        return made

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.slow.set()
        await self.server.stop(1.0)
        assert self.count == 0
        assert not self.server._state.tasks


@asynccontextmanager
async def place(limits: ConnectionLimits = QUICK) -> AsyncIterator[Place]:
    found = Place(limits)
    url = await found.server.start("127.0.0.1:0")
    found.port = int(url.rpartition(":")[2])
    yield found
    await found.close()


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE_S / 4))


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /now HT", GET[:-2]])
def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(sent)
            assert (await connection.rest())[:12] in (b"", b"HTTP/1.1 408")
            await until(lambda: here.count == 0)

    run(test)


def test_a_head_that_comes_byte_by_byte_has_no_more_time() -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(b"GET /now HTTP/1.1\r\n")
            reading = asyncio.create_task(connection.rest())
            while not reading.done():
                connection.send(b"a")
                await asyncio.sleep(0.05)
            assert b"408" in reading.result()

    run(test)


def test_an_idle_connection_is_closed() -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(GET)
            assert (await connection.rest()).endswith(b"ok")

    run(test)


def test_a_reply_that_is_not_read_is_given_up() -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await connection.status() == 200
            await until(lambda: here.count == 0)
            await until(lambda: not here.server._state.tasks)

    run(test)


def test_the_rest_of_a_body_that_is_answered_is_not_waited_for() -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(
                b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx"
            )
            assert (await connection.rest()).endswith(b"ok")

    run(test)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 400_000, 431),
        (b"GET /now HTTP/1.1\r\nHost: a\r\n" + b"X-A: a\r\n" * 101 + b"\r\n", 431),
        (b"GET /now HTTP/1.1\r\nHost: a\r\n" + b"X-A: a\r\n" * 90 + b"\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (
            b"POST /now HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
            b"Content-Length: 3\r\n\r\nabc",
            200,
        ),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
        (
            b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nabc",
            400,
        ),
    ],
)
def test_heads_have_a_size(head: bytes, status: int) -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(head)
            assert await connection.status() == status

    run(test)


def test_requests_that_arrive_at_once_are_answered_in_order_and_few() -> None:
    async def test() -> None:
        async with place() as here:
            connection = await here.connect(GET * 4)
            assert (await connection.rest()).count(b"HTTP/1.1 200") == 4
            flood = await here.connect(GET * 10_000)
            assert (await flood.rest()).count(b"HTTP/1.1 200") <= 4
            await until(lambda: here.count == 0)

    run(test)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_offer_of_http_2_is_not_taken(step: int) -> None:
    """As Java's client makes it with every request."""
    offer = b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    sent = b"POST /echo HTTP/1.1\r\n" + offer + b"Content-Length: 3\r\n\r\nabc"
    sent += b"POST /echo HTTP/1.1\r\n" + offer + b"Transfer-Encoding: chunked\r\n\r\n"
    sent += b"3\r\ndef\r\n0\r\n\r\n"
    sent += b"GET /echo HTTP/1.1\r\n" + offer + b"\r\n" + GET

    async def test() -> None:
        async with place() as here:
            connection = await here.connect()
            for start in range(0, len(sent), step):
                connection.send(sent[start : start + step])
                await asyncio.sleep(0)
            answered = await connection.rest()
            assert answered.count(b"HTTP/1.1 200") == 4
            assert re.findall(rb"<\w*>", answered) == [b"<abc>", b"<def>", b"<>"]

    run(test)


def test_a_full_server_gives_the_place_of_one_that_sends_nothing() -> None:
    async def test() -> None:
        limits = ConnectionLimits(connections=3, evictable_s=0.1)
        async with place(limits) as here:
            silent = [await here.connect(b"POST /now HT") for _ in range(3)]
            await until(lambda: here.count == 3)
            await asyncio.sleep(0.15)
            connection = await here.connect(GET)
            assert await connection.status() == 200
            assert await silent[0].rest() == b""
            assert here.count == 3

    run(test)


def test_a_handshake_too_many_ends_the_oldest() -> None:
    async def test() -> None:
        before = asyncio.all_tasks()
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        address = listening.getsockname()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listener = Listener(listening, context, asyncio.Protocol, most=2)
        halves = [Connection(*await asyncio.open_connection(*address)) for _ in range(3)]
        assert await halves[0].rest() == b""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(halves[2].rest(), 0.2)
        listener.close()
        for half in halves:
            half.close()
        await until(lambda: asyncio.all_tasks() == before)

    run(test)


def test_the_request_of_one_that_loses_its_place_ends() -> None:
    async def test() -> None:
        limits = ConnectionLimits(connections=1, evictable_s=0.1)
        async with place(limits) as here:
            unread = await here.connect(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await unread.status() == 200
            await asyncio.sleep(0.3)
            connection = await here.connect(GET)
            assert await connection.status() == 200
            await until(lambda: not here.server._state.tasks)

    run(test)


def test_a_full_server_keeps_those_for_whom_it_works() -> None:
    async def test() -> None:
        limits = ConnectionLimits(connections=3, evictable_s=0.1)
        async with place(limits) as here:
            busy = [await here.connect(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
            await until(lambda: len(here.server._state.tasks) == 3)
            await asyncio.sleep(0.15)
            refused = await here.connect(GET)
            assert await refused.status() == 503
            here.slow.set()
            assert [await connection.status() for connection in busy] == [200] * 3

    run(test)


def test_a_body_that_is_too_large_is_refused_by_its_header(web: Web) -> None:
    with web.connection() as connection:
        connection.putrequest("POST", f"{SERVICE}/Score")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["code"] == "resource_exhausted"


def test_a_body_without_a_length_is_refused_when_it_is_too_large(web: Web) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 65536

    answer = web.ask("POST", f"{SERVICE}/Score", chunks(), content_type="application/json")
    assert answer.status == 413


def test_a_small_body_does_not_become_a_large_message(web: Web) -> None:
    bomb = gzip.compress(b" " * (1 << 26))
    assert len(bomb) < 1 << 17
    headers = {"content_type": "application/json", "content_encoding": "gzip"}
    assert web.ask("POST", f"{SERVICE}/Score", bomb, **headers).status == 413
    assert web.ask("POST", f"{SERVICE}/Score", bomb[:-9], **headers).status == 413
    assert web.ask("POST", f"{SERVICE}/Score", gzip.compress(b"{}")[:-1], **headers).status == 400
    assert web.ask("POST", f"{SERVICE}/Score", b"no gzip", **headers).status == 400
    headers["content_encoding"] = "br"
    assert web.ask("POST", f"{SERVICE}/Score", b"{}", **headers).status == 415


def test_strings_without_an_end_take_no_time(web: Web) -> None:
    body = b'{"texts": [' + b"," * 66_000 + b'"' + b'\\"' * 500_000
    began = time.monotonic()
    answer = web.ask("POST", f"{SERVICE}/Score", body, content_type="application/json")
    assert answer.status == 400
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_message_of_a_stream_does_not_become_a_large_one(web: Web) -> None:
    bomb = envelope(gzip.compress(b" " * (1 << 26)), 1)
    answer = web.ask(
        "POST",
        f"{SERVICE}/WatchJob",
        bomb,
        content_type="application/connect+json",
        connect_content_encoding="gzip",
    )
    assert b"resource_exhausted" in answer.body


@contextmanager
def halves(server: Server, count: int, size: int) -> Iterator[list[socket.socket]]:
    """Yields connections that have each sent most of a body, and nothing more."""
    host, _, port = server.http_url.removeprefix("http://").rpartition(":")
    found = []
    try:
        for _ in range(count):
            found.append(socket.create_connection((host, int(port)), PATIENCE_S))
            head = f"POST {SERVICE}/Score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            found[-1].sendall(f"{head}Content-Length: {size + 1}\r\n\r\n".encode() + b" " * size)
        yield found
    finally:
        for each in found:
            each.close()


def test_half_requests_are_counted_and_leave_nothing(http_server: Server, web: Web) -> None:
    info = http_server.caller.info
    before = info().memory_used_bytes
    with halves(http_server, 8, 1 << 20):
        wait_for(lambda: info().memory_used_bytes >= before + 8 * (1 << 20))
        assert web.post(f"{SERVICE}/ListModels", {}).status == 200
    wait_for(lambda: info().memory_used_bytes <= before)


def test_replies_that_are_not_read_are_counted() -> None:
    budget = MemoryBudget(3_000_000)
    reading = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            await reading.wait()

    async def receive() -> Any:
        raise AssertionError("nothing is received")

    async def test() -> None:
        app = UnreadReplies(Response(b"x" * 2_000_000), budget)
        first = asyncio.create_task(app({"type": "http"}, receive, send))
        await until(lambda: len(sent) == 3)
        assert budget.used == 2_000_000
        refused: list[Any] = []

        async def note(message: Any) -> None:
            refused.append(message)

        await app({"type": "http"}, receive, note)
        assert [message.get("status") for message in refused] == [429, None]
        reading.set()
        await first
        assert budget.used == 0
        assert b"".join(message.get("body", b"") for message in sent) == b"x" * 2_000_000
        assert max(len(message.get("body", b"")) for message in sent) <= 65536
        assert [message["more_body"] for message in sent[-2:]] == [True, False]

    run(test)


def test_a_client_that_vanishes_without_reading_ends_its_call(
    http_server: Server, http_model: str
) -> None:
    host, _, port = http_server.http_url.removeprefix("http://").rpartition(":")
    body = json.dumps({"model": http_model, "maxNewTokens": 100_000}).encode()
    head = f"POST {SERVICE}/Generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), PATIENCE_S)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(10)
    # A close with unread data and no wait sends RST.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_for(lambda: http_server.caller.info().sessions_running == 0)


def test_a_large_request_in_json_is_parsed_elsewhere(web: Web, http_model: str) -> None:
    texts = ["the quick brown fox " * 100] * 1000
    answer = web.call("Score", pb.ScoreRequest(model=http_model, texts=texts))
    assert len(answer.json["scores"]) == 1000
