"""`Interceptor` around every call, on a small server of its own."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from grpc import aio

from treadle.server.access.authenticator import (
    AuthContext,
    Authenticator,
    Metadata,
    OpenAuthenticator,
)
from treadle.server.access.caller import Caller, Role, current_caller
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.quotas import Quotas
from treadle.server.errors import StatusError, not_found
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc import incoming_requests, interceptor
from treadle.server.rpc.interceptor import Context, Interceptor
from treadle.server.rpc.servicer import SERVICE, SequenceService
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import NO_PROXY, PATIENCE_S, until

LARGE = 100_000


class Talker(sequence_pb2_grpc.SequenceServiceServicer):
    """Generates large messages without an end, and gives large replies to other calls."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.asked = 0

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            while True:
                yield pb.GenerateResponse(text="x" * LARGE)
        finally:
            self.over.set()

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        self.asked += 1
        if request.model == "who":
            return pb.GetModelResponse(model=pb.Model(name=current_caller().name))
        if request.model == "fault":
            raise not_found("fault")
        if request.model == "never":
            await asyncio.Event().wait()
        size = LARGE if request.model == "large" else 10
        return pb.GetModelResponse(model=pb.Model(name="x" * size))

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        async for request in request_iterator:
            self.asked += 1
            piece = pb.PieceScore(token_count=len(request.piece.text))
            yield pb.ScoreStreamResponse(piece=piece)


class Place:
    """A server with a Talker and a budget, and a caller of it."""

    def __init__(
        self,
        budget: int = 1 << 30,
        write_s: float = 60.0,
        authenticator: Authenticator | None = None,
    ) -> None:
        authenticator = authenticator or OpenAuthenticator()
        self.budget = MemoryBudget(budget)
        self.interceptor = Interceptor(
            SERVICE, authenticator, QuotaBook(), self.budget, 1 << 22, write_s
        )
        self.talker = Talker()  # type: ignore[abstract]  # these methods are enough

    async def __aenter__(self) -> Place:
        self._server = aio.server(interceptors=[self.interceptor])
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(self.talker, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = aio.insecure_channel(f"127.0.0.1:{self.port}", NO_PROXY)
        self.stub = sequence_pb2_grpc.SequenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()
        await self.interceptor.wait_idle()
        assert self.budget.used == 0
        await self._server.stop(None)

    def holds(self, size: int) -> bool:
        """Returns whether so many bytes are held."""
        return self.budget.used == size

    async def model(self, name: str, padding: int = 0) -> str:
        """Asks for a model, in a request with so many bytes more; returns the name given."""
        request = pb.GetModelRequest(model=name)
        if padding:  # an unknown field
            request.MergeFromString(b"\xfa\x3f" + _varint(padding) + b"x" * padding)
        reply = await self.stub.GetModel(request, timeout=PATIENCE_S)
        return str(reply.model.name)


def within_reason(run: Coroutine[Any, Any, None]) -> None:
    """Runs a test, and reports where it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S / 2):
            await run

    asyncio.run(bounded())


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def run() -> None:
        async with Place(write_s=0.2) as place:
            call = place.stub.Generate(pb.GenerateRequest(), timeout=PATIENCE_S)
            replies = aiter(call)
            await anext(replies)
            # What the call held is free before the client knows.
            await place.talker.over.wait()
            with pytest.raises(aio.AioRpcError) as caught:
                async for _ in replies:
                    pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no reply was read for 0.2 seconds" in (caught.value.details() or "")

    within_reason(run())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


def _call(method: str, request: bytes, size: int | None = None, window: int = 0) -> bytes:
    """Returns a call in HTTP/2 (RFC 9113).

    Args:
        method: Its name.
        request: The bytes of its request that are sent.
        size: Those that it has; None: it is whole.
        window: Bytes of a reply that gRPC may send.
    """
    path = f"/{SERVICE}/{method}"
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    fields = b"".join(
        # Literals that are not indexed, with names and texts shorter than 127 bytes (RFC 7541).
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(text)]) + text.encode()
        for name, text in headers.items()
    )
    message = b"\0" + (size or len(request)).to_bytes(4) + request
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, (4).to_bytes(2) + window.to_bytes(4))
        + _frame(1, 4, 1, fields)  # the headers end here,
        + _frame(0, size is None, 1, message)  # and the stream of requests
    )


def test_one_reply_that_is_not_read_is_counted_and_given_up() -> None:
    request = pb.GetModelRequest(model="large").SerializeToString()

    async def run() -> None:
        async with Place(write_s=1.0) as place:
            callers = []
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
                writer.write(_call("GetModel", request))
                callers.append((reader, writer))
            await until(lambda: place.budget.used >= 5 * 2 * LARGE)
            assert place.talker.asked == 5
            await until(lambda: place.budget.used == 0)
            for _, writer in callers:
                writer.close()
                await writer.wait_closed()

    within_reason(run())


def test_what_a_request_keeps_is_released_however_it_ends() -> None:
    async def run() -> None:
        async with Place() as place:
            assert len(await place.model("large", 500_000)) == LARGE
            with pytest.raises(aio.AioRpcError) as caught:
                await place.model("fault", 500_000)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert place.budget.used == 0
            waiting = asyncio.create_task(place.model("never", 500_000))
            await until(lambda: place.budget.used >= 4 * 500_000)
            waiting.cancel()
            await until(lambda: place.budget.used == 0)
            piece = pb.ScoreStreamRequest(piece=pb.TextPiece(text="x" * 300_000))
            seen = []
            call = place.stub.ScoreStream(timeout=PATIENCE_S)
            for _ in range(3):
                await call.write(piece)
                reply: Any = await call.read()
                seen.append(reply.piece.token_count)
                await until(lambda: place.budget.used == 0)  # between two pieces
            assert seen == [300_000] * 3
            call.cancel()

    within_reason(run())


def test_a_full_budget_refuses_large_requests_and_serves_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interceptor, "_PATIENCE_S", 0.2)

    async def run() -> None:
        async with Place(1_000_000) as place:
            with place.budget.reserve(800_000, "models"):
                with pytest.raises(aio.AioRpcError) as caught:
                    await place.model("small", 20_000)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert place.talker.asked == 0
                assert len(await place.model("small", 10_000)) == 10
                with pytest.raises(aio.AioRpcError) as caught:
                    await place.model("large")
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "replies that are not read" in (caught.value.details() or "")
            assert len(await place.model("large", 20_000)) == LARGE

    within_reason(run())


def test_a_large_message_of_a_stream_waits_for_room() -> None:
    async def run() -> None:
        async with Place(1_000_000) as place:
            held = place.budget.reserve(800_000, "models")
            call = place.stub.ScoreStream(timeout=PATIENCE_S)
            await call.write(pb.ScoreStreamRequest(piece=pb.TextPiece(text="x" * 20_000)))
            await asyncio.sleep(0.2)
            assert place.talker.asked == 0
            held.release()
            reply: Any = await call.read()
            assert reply.piece.token_count == 20_000
            call.cancel()

    within_reason(run())


def test_half_a_request_is_counted_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_requests, "_PROMPT_S", 0.05)
    whole = pb.GetModelRequest(model="small").SerializeToString()

    async def run() -> None:
        async with Place(20 << 20) as place:
            callers = []
            for method in ("GetModel", "Generate", "ScoreStream", "GetModel") * 2:
                reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
                writer.write(_call(method, whole, size=1 << 20, window=1 << 16))
                callers.append((reader, writer))
                if len(callers) <= 4:  # as many fit, and the others are refused
                    await until(functools.partial(place.holds, len(callers) << 22))
                else:
                    await reader.readuntil(b"memory for requests")
            await until(lambda: len(place.interceptor._calls) == 4)
            assert len(place.interceptor._incoming._arriving) == 4
            assert await place.model("small")
            for arrival in place.interceptor._incoming._arriving.values():
                arrival.most_s = 0.1 if arrival.most_s < math.inf else math.inf
            callers.pop(2)[1].close()  # a stream has limits of its own
            await until(lambda: place.budget.used == 0)
            assert place.talker.asked == 1
            answers = []
            for reader, writer in callers:
                writer.write_eof()
                answers.append(await reader.read())
                writer.close()
                await writer.wait_closed()
            late = [b"did not arrive within 0.1 seconds" in answer for answer in answers]
            assert sum(late) == 3

    within_reason(run())


def test_a_call_without_a_request_is_invalid() -> None:
    async def run() -> None:
        async with Place() as place:
            method: Any = place._channel.stream_unary(f"/{SERVICE}/GetModel")
            with pytest.raises(aio.AioRpcError) as caught:
                await method(iter(()), timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    within_reason(run())


class Panic(BaseException):
    """What a package in Rust raises where it panics: no Exception."""


class Panicking(sequence_pb2_grpc.SequenceServiceServicer):
    """Panics, in a call of one reply and after the first of many."""

    async def GetJob(  # noqa: N802
        self, request: pb.GetJobRequest, context: Context
    ) -> pb.GetJobResponse:
        raise Panic("index out of bounds")

    async def WatchJob(  # noqa: N802
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        yield pb.WatchJobResponse()
        raise Panic("index out of bounds")


def test_a_panic_ends_its_call_and_nothing_else() -> None:
    async def run() -> None:
        layer = Interceptor(
            SERVICE, OpenAuthenticator(), QuotaBook(), MemoryBudget(1 << 30), 1 << 22
        )
        servicer = Panicking()  # type: ignore[abstract]  # two methods are enough
        server = aio.server(interceptors=[layer])
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}", NO_PROXY) as channel:
            stub = sequence_pb2_grpc.SequenceServiceStub(channel)
            for _ in range(2):
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.GetJob(pb.GetJobRequest(), timeout=PATIENCE_S)
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert "internal error" in (caught.value.details() or "")
                replies = aiter(stub.WatchJob(pb.WatchJobRequest(), timeout=PATIENCE_S))
                await anext(replies)
                with pytest.raises(aio.AioRpcError) as caught:
                    await anext(replies)
                assert caught.value.code() is grpc.StatusCode.INTERNAL
            await layer.wait_idle()
        await server.stop(None)

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S / 2):
            await run()

    asyncio.run(bounded())


class ByName:
    """Takes the header `name` as proof of who calls, for the callers that it knows."""

    def __init__(self, *callers: Caller) -> None:
        self.callers = {caller.name: caller for caller in callers}
        self.look: Callable[[], None]

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        caller = self.callers.get(str(dict(metadata).get("name")))
        if caller is None:
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        return caller

    def is_valid(self, caller: Caller) -> bool:
        return caller.name in self.callers

    def quotas_of(self, name: str) -> Quotas | None:
        caller = self.callers.get(name)
        return None if caller is None else caller.quotas

    def on_change(self, look: Callable[[], None]) -> None:
        self.look = look


ANN = Caller("ann", Role.USER)
BOB = Caller("bob", Role.READER)


async def code_of(call: Any) -> grpc.StatusCode:
    """Returns the status of a call that fails."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_a_call_knows_its_caller_and_an_unknown_one_is_refused() -> None:
    async def run() -> None:
        async with Place(authenticator=ByName(ANN, BOB)) as place:

            async def name(caller: str) -> str:
                request = pb.GetModelRequest(model="who")
                reply = await place.stub.GetModel(
                    request, metadata=(("name", caller),), timeout=PATIENCE_S
                )
                return str(reply.model.name)

            names = ["ann", "bob"] * 20
            assert await asyncio.gather(*map(name, names)) == names
            assert await code_of(name("eve")) is grpc.StatusCode.UNAUTHENTICATED
            assert await code_of(place.model("who")) is grpc.StatusCode.UNAUTHENTICATED
            assert place.talker.asked == len(names)

    within_reason(run())


def test_a_caller_without_the_role_is_refused_before_its_request_is_read() -> None:
    async def run() -> None:
        async with Place(authenticator=ByName(ANN, BOB)) as place:
            bob = (("name", "bob"),)
            call = place.stub.Generate(pb.GenerateRequest(), metadata=bob, timeout=PATIENCE_S)
            assert await code_of(anext(aiter(call))) is grpc.StatusCode.PERMISSION_DENIED

            async def silence() -> AsyncIterator[pb.ScoreStreamRequest]:
                await asyncio.Event().wait()
                yield pb.ScoreStreamRequest()

            stream = place.stub.ScoreStream(silence(), metadata=bob, timeout=PATIENCE_S)
            assert await code_of(anext(aiter(stream))) is grpc.StatusCode.PERMISSION_DENIED

    within_reason(run())


def test_the_calls_of_a_revoked_caller_end_and_no_others() -> None:
    async def run() -> None:
        authenticator = ByName(ANN, BOB)
        async with Place(authenticator=authenticator) as place:

            def waiting(name: str) -> asyncio.Task[Any]:
                call = place.stub.GetModel(
                    pb.GetModelRequest(model="never"),
                    metadata=(("name", name),),
                    timeout=PATIENCE_S,
                )
                return asyncio.ensure_future(call)

            ann = waiting("ann")
            bob = waiting("bob")
            await until(lambda: place.talker.asked == 2)
            del authenticator.callers["ann"]
            authenticator.look()
            assert await code_of(ann) is grpc.StatusCode.UNAUTHENTICATED
            assert not bob.done()
            bob.cancel()

    within_reason(run())


def test_the_quota_of_calls_is_of_each_caller() -> None:
    async def run() -> None:
        cat = Caller("cat", Role.USER, quotas=Quotas(calls=2))
        async with Place(authenticator=ByName(BOB, cat)) as place:

            def call(name: str, model: str) -> Any:
                return place.stub.GetModel(
                    pb.GetModelRequest(model=model),
                    metadata=(("name", name),),
                    timeout=PATIENCE_S,
                )

            waiting = [asyncio.ensure_future(call("cat", "never")) for _ in range(2)]
            await until(lambda: place.talker.asked == 2)
            with pytest.raises(aio.AioRpcError) as caught:
                await call("cat", "who")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "your quota calls is used up: 2 of 2 calls run" in str(caught.value.details())
            assert (await call("bob", "who")).model.name == "bob"
            for each in waiting:
                each.cancel()
            await until(lambda: place.interceptor.running == 0)
            assert (await call("cat", "who")).model.name == "cat"

    within_reason(run())


def test_a_change_of_a_model_is_done_before_its_call_ends() -> None:
    """The audit log must not say of a call whose token was revoked that it was merely refused."""
    began = threading.Event()
    released = threading.Event()

    class Store:
        def delete(self, model: str, version: int | None, *, force: bool) -> list[int]:
            began.set()
            assert released.wait(PATIENCE_S)
            return [1, 2]

    class Models:
        def forget(self, model: str, versions: list[int]) -> None:
            assert (model, versions) == ("names", [1, 2])

    async def run() -> None:
        service: Any = SequenceService.__new__(SequenceService)
        service._model_store = Store()
        service._models = Models()
        request = pb.DeleteModelRequest(model="names", all_versions=True)
        call = asyncio.create_task(service.DeleteModel(request, None))
        await until(began.is_set)
        call.cancel()
        await asyncio.sleep(0)
        released.set()
        assert list((await call).versions) == [1, 2]

    within_reason(run())
