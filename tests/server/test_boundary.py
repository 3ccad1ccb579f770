"""The layer around every call, on a small server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from treadle.server.boundary import Boundary, Context
from treadle.server.service import SERVICE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import NO_PROXY, PATIENCE_S


class Talker(sequence_pb2_grpc.SequenceServiceServicer):
    """Generates large messages without an end."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            while True:
                yield pb.GenerateResponse(text="x" * 100_000)
        finally:
            self.over.set()


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def run() -> None:
        boundary = Boundary(SERVICE, write_s=0.2)
        talker = Talker()  # type: ignore[abstract]  # one method is enough
        server = aio.server(interceptors=[boundary])
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(talker, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}", NO_PROXY) as channel:
            stub = sequence_pb2_grpc.SequenceServiceStub(channel)
            call = stub.Generate(pb.GenerateRequest(), timeout=PATIENCE_S)
            replies = aiter(call)
            await anext(replies)
            await talker.over.wait()  # what the call held is free before the client knows
            with pytest.raises(aio.AioRpcError) as caught:
                async for _ in replies:
                    pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no reply was read for 0.2 seconds" in (caught.value.details() or "")
            await boundary.wait_idle()
        await server.stop(None)

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S / 2):
            await run()

    asyncio.run(bounded())
