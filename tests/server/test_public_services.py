"""Which of health and reflection may be called without a token."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, channel_credentials
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from treadle.server.access.authenticator import AuthContext, Metadata, OpenAuthenticator
from treadle.server.access.caller import ANONYMOUS, Caller
from treadle.server.config import ServerConfig, SettingError
from treadle.server.errors import StatusError
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc import public_services
from treadle.server.rpc.public_services import PublicServices
from treadle.server.rpc.reflection import V1, add_reflection

from . import harness
from .harness import NO_PROXY, PATIENCE_S, Server

OK = grpc.StatusCode.OK
REFUSED = grpc.StatusCode.UNAUTHENTICATED


class TokenAuthenticator(OpenAuthenticator):
    """Accepts one token."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        await asyncio.sleep(0)
        if ("authorization", "Bearer good") in {tuple(item) for item in metadata}:
            return ANONYMOUS
        if ("authorization", "Bearer broken") in {tuple(item) for item in metadata}:
            raise RuntimeError("the secret is 1234")
        raise StatusError(REFUSED, "this server requires a token")


async def _check(channel: aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def _watch(channel: aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
    reply = await call.read()
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    call.cancel()


async def _reflect(channel: aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    await _list_services(stub.ServerReflectionInfo, metadata)


async def _reflect_v1(channel: aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    method = channel.stream_stream(
        f"/{V1}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    await _list_services(method, metadata)


async def _list_services(method: Callable[..., object], metadata: object) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = method(iter([request, request]), metadata=metadata)
    count = 0
    async for reply in replies:  # type: ignore[attr-defined]
        assert health.SERVICE_NAME in {one.name for one in reply.list_services_response.service}
        count += 1
    assert count == 2


CALLS = {"Check": _check, "Watch": _watch, "v1alpha": _reflect, "v1": _reflect_v1}


Call = Callable[[aio.Channel, tuple[tuple[str, str], ...]], Coroutine[Any, Any, None]]


async def _failure(
    call: Call, channel: aio.Channel, metadata: tuple[tuple[str, str], ...]
) -> aio.AioRpcError | None:
    while True:
        try:
            await asyncio.wait_for(call(channel, metadata), PATIENCE_S)
        except aio.AioRpcError as error:
            # What grpc.aio makes of a refusal that comes while a stream writes its request.
            if str(error.details()).startswith("Internal error from Core"):
                continue
            return error
        return None


@asynccontextmanager
async def serve(setting: str, authenticator: OpenAuthenticator) -> AsyncIterator[aio.Channel]:
    """Runs a server with both services, and yields a channel to it."""
    services = PublicServices(setting, authenticator, MemoryBudget(1 << 30), 1 << 22)
    server = aio.server(interceptors=[services])
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    add_reflection(server, (health.SERVICE_NAME,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", NO_PROXY) as channel:
        yield channel
    await server.stop(None)


async def codes(
    setting: str, token: str, authenticator: OpenAuthenticator
) -> dict[str, grpc.StatusCode]:
    """Returns the status of each call with a token, or with none."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    found = {}
    async with serve(setting, authenticator) as channel:
        for name, call in CALLS.items():
            error = await _failure(call, channel, metadata)
            found[name] = error.code() if error else OK
            assert "1234" not in str(error)
            if found[name] is REFUSED:
                assert error is not None
                assert error.details() == "this server requires a token"
    return found


@pytest.mark.parametrize(
    ("setting", "of_health", "of_reflection"),
    [
        ("health", OK, REFUSED),
        ("reflection", REFUSED, OK),
        ("health,reflection", OK, OK),
        ("reflection,health", OK, OK),
        ("none", REFUSED, REFUSED),
    ],
)
def test_what_is_not_public_takes_a_token(
    setting: str, of_health: grpc.StatusCode, of_reflection: grpc.StatusCode
) -> None:
    expected = dict.fromkeys(("Check", "Watch"), of_health)
    expected |= dict.fromkeys(("v1alpha", "v1"), of_reflection)
    authenticator = TokenAuthenticator()
    assert asyncio.run(codes(setting, "", authenticator)) == expected
    assert asyncio.run(codes(setting, "bad", authenticator)) == expected
    assert asyncio.run(codes(setting, "good", authenticator)) == dict.fromkeys(CALLS, OK)


def test_without_callers_everything_is_public() -> None:
    assert asyncio.run(codes("none", "", OpenAuthenticator())) == dict.fromkeys(CALLS, OK)


def test_a_failure_of_authentication_lets_nobody_in_and_shows_nothing() -> None:
    found = asyncio.run(codes("none", "broken", TokenAuthenticator()))
    assert found == dict.fromkeys(CALLS, grpc.StatusCode.INTERNAL)


METHODS = [
    f"/{health.SERVICE_NAME}/Check",
    f"/{health.SERVICE_NAME}/Watch",
    f"/{V1}/ServerReflectionInfo",
]


async def _raw(method: str, *messages: bytes, ends: bool = True) -> tuple[grpc.StatusCode, str]:
    """Returns how a call with these bytes as its messages ends."""
    async with serve("health,reflection", OpenAuthenticator()) as channel:
        call: Any = channel.stream_stream(method)(timeout=PATIENCE_S)
        with suppress(aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
            if ends:
                await call.done_writing()
            while await call.read() is not aio.EOF:
                pass
        return await call.code(), await call.details()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\n\2\xff\xff"])
def test_a_malformed_request_is_named(method: str, message: bytes) -> None:
    if method == METHODS[2] and message[:1] == b"\n":
        message = b"\x1a" + message[1:]  # the first text of its own message
    code, details = asyncio.run(_raw(method, message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a message of this method" in details


@pytest.mark.parametrize("method", METHODS)
def test_a_name_that_is_too_long_is_refused(method: str) -> None:
    message = health_pb2.HealthCheckRequest(service="x" * 4096).SerializeToString()
    code, details = asyncio.run(_raw(method, message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the request has more than 4096 bytes"


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_call_without_a_request_is_refused(method: str) -> None:
    code, details = asyncio.run(_raw(method))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the call has no request"


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_request_that_never_arrives_ends_its_call(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_services, "_READ_S", 0.2)
    code, details = asyncio.run(_raw(method, ends=False))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details == "the request did not arrive within 0.2 seconds"


def test_streams_are_limited_and_checks_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_services, "_MOST_STREAMS", 2)

    async def run() -> None:
        async with serve("health,reflection", OpenAuthenticator()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watchers = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for watcher in watchers:
                await watcher.read()
            for call in (_watch, _reflect, _reflect_v1):
                error = await _failure(call, channel, ())
                assert error is not None
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for _ in range(3):
                await _check(channel, ())
            for watcher in watchers:
                watcher.cancel()
            while await _failure(_watch, channel, ()) is not None:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


@pytest.mark.parametrize("token", ["good", "bad"])
def test_a_call_returns_its_id(token: str) -> None:
    async def run() -> str:
        async with serve("none", TokenAuthenticator()) as channel:
            metadata = (("authorization", f"Bearer {token}"), ("x-request-id", "mine-7"))
            stub = health_pb2_grpc.HealthStub(channel)
            call = stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
            return str(dict(await call.trailing_metadata())["x-request-id"])

    assert asyncio.run(run()) == "mine-7"


class RevokingAuthenticator(TokenAuthenticator):
    """Accepts one token until it is revoked."""

    def __init__(self) -> None:
        self._look: Callable[[], None] = lambda: None
        self._revoked = False

    def is_valid(self, caller: Caller) -> bool:
        return not self._revoked

    def on_change(self, look: Callable[[], None]) -> None:
        self._look = look

    def revoke(self) -> None:
        self._revoked = True
        self._look()


@pytest.mark.parametrize(("setting", "ends"), [("none", True), ("health,reflection", False)])
def test_what_takes_a_token_ends_with_it(setting: str, ends: bool) -> None:
    async def run() -> None:
        authenticator = RevokingAuthenticator()
        metadata = (("authorization", "Bearer good"),)
        async with serve(setting, authenticator) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), metadata=metadata
            )
            await watch.read()
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                metadata=metadata
            )
            await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await reflect.read()
            authenticator.revoke()
            for call in (watch, reflect):
                if ends:
                    with pytest.raises(aio.AioRpcError):
                        await asyncio.wait_for(call.read(), PATIENCE_S)
                    assert await call.code() is REFUSED
                    assert "was revoked" in await call.details()
                else:
                    assert not call.done()
                    call.cancel()

    asyncio.run(run())


def test_a_service_that_is_not_known_is_named() -> None:
    with pytest.raises(SettingError, match=r"^--public-services must be health, .*, not 'all'$"):
        ServerConfig(public_services="all")


def test_a_server_with_tokens_answers_its_own_health_check(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """Also where health is not public, with and without TLS."""
    callers = tmp_path / "callers.toml"
    command = [sys.executable, "-m", "treadle.server", "token", "create", "admin"]
    token = subprocess.run(
        [*command, "--role", "admin"],
        env=os.environ | {"TREADLE_CALLERS_FILE": str(callers)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout.strip()
    authority = Authority(tmp_path / "authority")
    pair = authority.server()
    credentials = grpc.composite_channel_credentials(
        channel_credentials(authority), grpc.access_token_call_credentials(token)
    )
    server = start(
        *("--callers-file", str(callers), "--public-services", "none"),
        *("--audit-log", str(tmp_path / "audit.jsonl")),
        *("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)),
        credentials=credentials,
    )
    assert server.caller.serving()
    assert server.caller.info().version
    anonymous = harness.Caller(server.address, channel_credentials(authority))
    for call in (anonymous.serving, anonymous.info):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is REFUSED
        assert "requires a token" in (caught.value.details() or "")
    anonymous.close()
    checked = subprocess.run(
        [sys.executable, "-m", "treadle.server", "--check-health", server.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert token not in server.log
    server.end()
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(entry["method"], entry["status"]) for entry in entries] == [
        ("grpc.health.v1.Health/Check", "UNAUTHENTICATED"),
        ("GetServerInfo", "UNAUTHENTICATED"),
    ]
