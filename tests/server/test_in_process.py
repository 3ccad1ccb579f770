"""`InProcessService` next to gRPC: the same replies, errors and limits for the same call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc import aio

from treadle.server.access.authenticator import AuthContext, Metadata, OpenAuthenticator
from treadle.server.access.call_origin import CallOrigin
from treadle.server.access.caller import Caller, Role, current_caller
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import current_request_id
from treadle.server.errors import StatusError, not_found, unavailable
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc.in_process import InProcessService
from treadle.server.rpc.interceptor import Context, Interceptor
from treadle.server.rpc.servicer import SERVICE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import PATIENCE_S

NOBODY = CallOrigin()


class Counter(sequence_pb2_grpc.SequenceServiceServicer):
    """Counts for ever in Generate, and returns what it knows of a call in GetModel."""

    def __init__(self) -> None:
        self.made = 0
        self.over = asyncio.Event()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            while not self.made or self.made != request.max_new_tokens:
                self.made += 1
                yield pb.GenerateResponse(text=str(self.made))
        finally:
            self.over.set()

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        if request.model == "missing":
            raise not_found("missing")
        if request.model == "fault":
            raise RuntimeError("secret")
        name = f"{current_caller().name} {current_request_id()}"
        return pb.GetModelResponse(model=pb.Model(name=name))

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        async for request in request_iterator:
            yield pb.ScoreStreamResponse(piece=pb.PieceScore(token_count=len(request.piece.text)))


class Named(OpenAuthenticator):
    """Takes the token as the name of a user."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        name = str(dict(metadata).get("authorization", ""))
        if not name:
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return Caller(name, Role.USER if name == "user" else Role.ADMIN)


class Place:
    """A service with its interceptor."""

    def __init__(self, authenticator: OpenAuthenticator | None = None, write_s: float = 60.0):
        self.counter = Counter()  # type: ignore[abstract]
        authenticator = authenticator or OpenAuthenticator()
        quotas = QuotaBook(authenticator.quotas_of)
        self.budget = MemoryBudget(1 << 24)
        self.interceptor = Interceptor(
            SERVICE, authenticator, quotas, self.budget, 1 << 22, write_s=write_s
        )
        self.service = InProcessService(self.counter, self.interceptor)


async def read_all(replies: AsyncIterator[Any]) -> None:
    async for _ in replies:
        pass


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), PATIENCE_S)

    asyncio.run(limited())


def test_replies_come_one_by_one_when_they_are_asked_for() -> None:
    async def test() -> None:
        place = Place()
        request = pb.GenerateRequest(model="m", max_new_tokens=5)
        async with place.service.stream("Generate", request, NOBODY) as replies:
            texts = []
            async for reply in replies:
                texts.append(reply.text)
                await asyncio.sleep(0.01)
                assert place.counter.made == len(texts)
        assert texts == ["1", "2", "3", "4", "5"]
        assert place.interceptor.running == 0

    run(test)


def test_leaving_a_stream_ends_its_call() -> None:
    async def test() -> None:
        place = Place()
        request = pb.GenerateRequest(model="m")
        async with place.service.stream("Generate", request, NOBODY) as replies:
            async for reply in replies:
                assert reply.text == "1"
                break
            assert place.interceptor.running == 1
        assert place.counter.over.is_set()
        assert place.interceptor.running == 0
        assert place.budget.used == 0

    run(test)


def test_a_stream_of_requests() -> None:
    async def test() -> None:
        place = Place()

        async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
            for text in ("a", "bcd"):
                yield pb.ScoreStreamRequest(piece=pb.TextPiece(text=text))

        async with place.service.stream("ScoreStream", requests(), NOBODY) as replies:
            assert [reply.piece.token_count async for reply in replies] == [1, 3]

    run(test)


def test_an_error_has_its_code_text_and_details() -> None:
    async def test() -> None:
        place = Place()
        with pytest.raises(StatusError) as missing:
            await place.service.unary("GetModel", pb.GetModelRequest(model="missing"), NOBODY)
        assert missing.value.code is grpc.StatusCode.NOT_FOUND
        assert missing.value.message == "there is no model 'missing'"
        resource = error_details_pb2.ResourceInfo()
        assert missing.value.details[0].Unpack(resource)  # type: ignore[attr-defined]
        assert resource.resource_name == "missing"
        with pytest.raises(StatusError) as fault:
            await place.service.unary("GetModel", pb.GetModelRequest(model="fault"), NOBODY)
        assert fault.value.code is grpc.StatusCode.INTERNAL
        assert "secret" not in fault.value.message
        assert place.interceptor.running == 0

    run(test)


def test_callers_and_request_ids_are_those_of_the_metadata() -> None:
    async def test() -> None:
        place = Place(Named())
        origin = CallOrigin((("authorization", "ann"), ("x-request-id", "r1")))
        ask = pb.GetModelRequest(model="m")
        reply = await place.service.unary("GetModel", ask, origin)
        assert reply.model.name == "ann r1"
        assert current_request_id() == ""
        with pytest.raises(StatusError, match="no token"):
            await place.service.unary("GetModel", ask, NOBODY)
        user = CallOrigin((("authorization", "user"),))
        with pytest.raises(StatusError) as refused:
            await place.service.unary("DeleteModel", pb.DeleteModelRequest(model="m"), user)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED

    run(test)


def test_a_call_that_the_server_ends() -> None:
    async def test() -> None:
        place = Place()
        request = pb.GenerateRequest(model="m")
        async with place.service.stream("Generate", request, NOBODY) as replies:
            assert (await anext(replies)).text == "1"
            place.interceptor.evict(unavailable("the server shut down"))
            with pytest.raises(StatusError, match="the server shut down"):
                await read_all(replies)
        await place.interceptor.wait_idle()

    run(test)


def test_a_reply_that_nobody_reads_ends_its_call() -> None:
    async def test() -> None:
        place = Place(write_s=0.05)
        request = pb.GenerateRequest(model="m")
        async with place.service.stream("Generate", request, NOBODY) as replies:
            assert (await anext(replies)).text == "1"
            await place.interceptor.wait_idle()
            with pytest.raises(StatusError) as late:
                await read_all(replies)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert place.budget.used == 0

    run(test)


def test_a_cancelled_reader_ends_its_call() -> None:
    async def test() -> None:
        place = Place()

        async def read() -> None:
            request = pb.GenerateRequest(model="m")
            async with place.service.stream("Generate", request, NOBODY) as replies:
                async for _ in replies:
                    await asyncio.Event().wait()

        reader = asyncio.create_task(read())
        while not place.counter.made:
            await asyncio.sleep(0.001)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert place.counter.over.is_set()
        assert place.interceptor.running == 0

    run(test)


def test_calls_that_come_together_begin_in_several_rounds() -> None:
    async def test() -> None:
        rounds: list[int] = []
        number = 0

        class Noting(OpenAuthenticator):
            async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
                rounds.append(number)
                return await super().authenticate(metadata, auth_context)

        place = Place(Noting())
        ask = pb.GetModelRequest(model="m")
        calls = [
            asyncio.create_task(place.service.unary("GetModel", ask, NOBODY)) for _ in range(9)
        ]
        while not all(call.done() for call in calls):
            number += 1
            await asyncio.sleep(0)
        assert max(map(rounds.count, rounds)) == 4

    run(test)


def test_replies_have_the_bytes_of_grpc() -> None:
    async def test() -> None:
        place = Place()
        server = aio.server(interceptors=[place.interceptor])
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(place.counter, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        request = pb.GenerateRequest(model="m", max_new_tokens=3)
        async with place.service.stream("Generate", request, NOBODY) as replies:
            here = [reply.SerializeToString() async for reply in replies]
        place.counter.made = 0
        async with aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            stub: Any = sequence_pb2_grpc.SequenceServiceStub(channel)
            there = [reply.SerializeToString() async for reply in stub.Generate(request)]
        assert here == there
        assert len(here) == 3
        await server.stop(None)

    run(test)
