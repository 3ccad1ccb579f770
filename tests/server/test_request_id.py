"""`x-request-id`: it comes in, goes out with every reply and error, and is in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from treadle.server.access.authenticator import OpenAuthenticator
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import (
    LogFormatter,
    current_request_id,
    request_id_of,
    set_request_id,
)
from treadle.server.errors import not_found
from treadle.server.inference.call_task import CallTask
from treadle.server.inference.scheduler import Scheduler
from treadle.server.resources import thread_pools
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc.interceptor import Context, Interceptor
from treadle.server.rpc.servicer import SERVICE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import (
    NO_PROXY,
    PATIENCE_S,
    TEXT,
    Server,
    first_progress,
    long_spec,
    requests,
    wait_for,
)

KEY = "x-request-id"
FRESH = 16
"""Characters of an id that the server makes."""


@pytest.mark.parametrize("given", ["a", "a" * 128, "4bf92f35-77b3:{x}/~!", '"\\'])
def test_a_valid_id_is_taken(given: str) -> None:
    assert request_id_of([("other", "x"), (KEY, given)]) == given


@pytest.mark.parametrize(
    "given",
    ["", "a" * 129, "a b", " ", "a\nb", "a\tb", "a\0", "\x7f", "\x1b[2J", "ü", b"a", "a\u2028b"],
)
def test_any_other_id_is_replaced(given: str | bytes) -> None:
    found = request_id_of([(KEY, given)])
    assert found != given
    assert len(found) == FRESH
    assert found != request_id_of([(KEY, given)])
    assert len(request_id_of([])) == FRESH


def test_a_stored_id_that_is_not_valid_is_left_out() -> None:
    async def ids() -> list[str]:
        found = []
        for request_id in ("a\nb", "a", "x" * 129, ""):
            set_request_id(request_id)
            found.append(current_request_id())
        return found

    assert asyncio.run(ids()) == ["", "a", "", ""]


def line(message: str = "done") -> str:
    record = logging.LogRecord("treadle.x", logging.INFO, "x.py", 1, message, None, None)
    return LogFormatter().format(record).partition(" INFO ")[2]


def test_a_line_of_the_log_has_the_id_of_its_call_in_every_thread() -> None:
    scheduler = Scheduler(1)

    async def call(request_id: str) -> list[str]:
        set_request_id(request_id)
        task = CallTask(scheduler, "")
        await asyncio.sleep(0)  # the other call sets its id
        return [
            line(),
            await thread_pools.STORE.run(line),
            await task.run(lambda turn_s: line()),
        ]

    async def calls() -> list[list[str]]:
        return list(await asyncio.gather(call("one"), call("two")))

    assert line() == "treadle.x: done"
    assert asyncio.run(calls()) == [
        ["treadle.x [one]: done"] * 3,
        ["treadle.x [two]: done"] * 3,
    ]
    scheduler.close()


class Service(sequence_pb2_grpc.SequenceServiceServicer):
    """Answers two calls, and keeps the ids that it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        self.seen.append(current_request_id())
        if request.model == "none":
            raise not_found("none")
        if request.model == "broken":
            raise ZeroDivisionError
        return pb.GetModelResponse()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        for _ in range(2):
            await asyncio.sleep(0)
            self.seen.append(current_request_id())
            yield pb.GenerateResponse()


async def ids_of_calls(service: Service, given: list[tuple[str, str]]) -> list[str]:
    """Returns the id that each kind of call returns."""
    interceptor = Interceptor(
        SERVICE, OpenAuthenticator(), QuotaBook(), MemoryBudget(1 << 30), 1 << 20
    )
    server = aio.server(interceptors=[interceptor])
    sequence_pb2_grpc.add_SequenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", NO_PROXY) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        how: dict[str, Any] = {"metadata": given, "timeout": PATIENCE_S}
        calls: list[Any] = [
            stub.GetModel(pb.GetModelRequest(model="m"), **how),
            stub.GetModel(pb.GetModelRequest(model="none"), **how),
            stub.GetModel(pb.GetModelRequest(model="broken"), **how),
            stub.Generate(pb.GenerateRequest(), **how),
        ]
        found = []
        for call in calls:
            if isinstance(call, aio.UnaryStreamCall):
                assert [reply async for reply in call] == [pb.GenerateResponse()] * 2
            trailers = dict(await call.trailing_metadata())
            found.append(str(trailers[KEY]))
        codes = [await call.code() for call in calls]
        assert [code.name for code in codes] == ["OK", "NOT_FOUND", "INTERNAL", "OK"]
    await server.stop(None)
    return found


def test_every_reply_and_error_returns_the_id(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()  # type: ignore[abstract]  # these methods are enough
    assert asyncio.run(ids_of_calls(service, [(KEY, "my-call")])) == ["my-call"] * 4
    assert service.seen == ["my-call"] * 5


def test_a_call_without_an_id_gets_one() -> None:
    service = Service()  # type: ignore[abstract]  # these methods are enough
    for given in ([], [(KEY, "a b")]):
        service.seen.clear()
        found = asyncio.run(ids_of_calls(service, given))
        assert len(set(found)) == 4
        assert {len(each) for each in found} == {FRESH}
        assert set(service.seen) <= set(found)


def lines_of(server: Server, text: str) -> list[str]:
    """Returns the lines of a server's log that contain a text."""
    return [line for line in server.log.splitlines() if text in line]


@pytest.mark.jit
def test_the_log_of_a_job_has_the_id_of_its_call_also_after_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = Server(data, "--standby-workers", "0")
    try:
        stream = requests(long_spec("m"), TEXT)
        how: dict[str, Any] = {"metadata": [(KEY, "the-call-1")], "timeout": PATIENCE_S}
        events = first.caller.stub.Train(stream, **how)
        job = first_progress(events).job
        first.end()
        (line,) = lines_of(first, "is trained from step")
        assert f"treadle.server.jobs.worker_training [the-call-1]: job {job} " in line
        second = Server(data, "--standby-workers", "0")
    finally:
        first.close()
    try:
        wait_for(lambda: lines_of(second, "is trained from step"))
        how["metadata"] = [(KEY, "another")]
        second.caller.stub.CancelJob(pb.CancelJobRequest(job=job), **how)
        *_, last = second.caller.watch(job)
        assert last.HasField("completed")
        (line,) = lines_of(second, "is trained from step")
        assert f"[the-call-1]: job {job} " in line
        wait_for(lambda: lines_of(second, "stored m version 1"))
        (line,) = lines_of(second, "stored m version 1")
        assert f"[the-call-1]: job {job} " in line
    finally:
        second.close()
