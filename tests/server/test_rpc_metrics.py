"""The metrics of calls: what the interceptor counts, also of calls from this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import pytest

from treadle.server.access.call_origin import CallOrigin
from treadle.server.access.quota_book import quota_exceeded
from treadle.server.errors import StatusError, unavailable
from treadle.server.rpc.servicer import SERVICE
from treadle.server.telemetry.metrics import REGISTRY
from treadle.server.telemetry.rpc_metrics import RpcMetrics
from treadle.v1 import sequence_pb2 as pb

from .harness import until
from .test_in_process import NOBODY, Named, Place, read_all, run

UNARY = ("unary", "GetModel")
REPLIES = ("server_stream", "Generate")
BOTH = ("bidi_stream", "ScoreStream")


def value(name: str, **labels: str) -> float:
    """Returns the value of a metric now."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Counted:
    """How far the metrics of a method moved since this was made."""

    def __init__(self, method: tuple[str, str]) -> None:
        kind, name = method
        self.labels = {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": name}
        self._before = self._all()

    def _all(self) -> dict[str, float]:
        names = ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count")
        found = {name: value(f"grpc_server_{name}", **self.labels) for name in names}
        for code in ("OK", "Canceled", "NotFound", "Internal", "Unavailable", "Unauthenticated"):
            found[code] = value("grpc_server_handled_total", **self.labels, grpc_code=code)
        return found

    @property
    def moved(self) -> dict[str, float]:
        now = self._all()
        return {name: now[name] - old for name, old in self._before.items() if now[name] != old}


def counts(code: str, received: int = 1, sent: int = 0) -> dict[str, float]:
    moved = {"started_total": 1, "msg_received_total": received, "msg_sent_total": sent}
    moved |= {"handling_seconds_count": 1, code: 1}
    return {name: count for name, count in moved.items() if count}


def test_a_call_with_one_reply() -> None:
    async def test() -> None:
        counted = Counted(UNARY)
        await Place().service.unary("GetModel", pb.GetModelRequest(model="m"), NOBODY)
        assert counted.moved == counts("OK", sent=1)

    run(test)


@pytest.mark.parametrize(("model", "code"), [("missing", "NotFound"), ("fault", "Internal")])
def test_a_call_that_fails(model: str, code: str) -> None:
    async def test() -> None:
        counted = Counted(UNARY)
        with pytest.raises(StatusError):
            await Place().service.unary("GetModel", pb.GetModelRequest(model=model), NOBODY)
        assert counted.moved == counts(code)

    run(test)


def test_a_call_without_a_credential() -> None:
    async def test() -> None:
        counted = Counted(UNARY)
        place = Place(Named())
        with pytest.raises(StatusError):
            await place.service.unary("GetModel", pb.GetModelRequest(model="m"), CallOrigin())
        assert counted.moved == counts("Unauthenticated", received=0)

    run(test)


def test_a_stream_to_its_end_and_one_that_is_left() -> None:
    async def test() -> None:
        counted = Counted(REPLIES)
        request = pb.GenerateRequest(model="m", max_new_tokens=5)
        async with Place().service.stream("Generate", request, NOBODY) as replies:
            await read_all(replies)
        assert counted.moved == counts("OK", sent=5)
        counted = Counted(REPLIES)
        async with Place().service.stream("Generate", request, NOBODY) as replies:
            await anext(replies)
        assert counted.moved == counts("Canceled")

    run(test)


def test_a_stream_of_requests() -> None:
    async def test() -> None:
        async def pieces() -> AsyncIterator[pb.ScoreStreamRequest]:
            for text in ("a", "b"):
                yield pb.ScoreStreamRequest(piece=pb.TextPiece(text=text))

        counted = Counted(BOTH)
        async with Place().service.stream("ScoreStream", pieces(), NOBODY) as replies:
            await read_all(replies)
        assert counted.moved == counts("OK", received=2, sent=2)

    run(test)


def test_a_call_that_the_server_ends() -> None:
    async def test() -> None:
        place = Place()
        counted = Counted(REPLIES)
        request = pb.GenerateRequest(model="m")
        async with place.service.stream("Generate", request, NOBODY) as replies:
            await anext(replies)
            place.interceptor.evict(unavailable("the server shut down"))
            await until(lambda: not place.interceptor.running)
            with suppress(StatusError):
                await read_all(replies)
        assert counted.moved["Unavailable"] == 1
        assert "Canceled" not in counted.moved

    run(test)


def test_every_method_has_its_series_before_its_first_call() -> None:
    service = pb.DESCRIPTOR.services_by_name["SequenceService"]
    RpcMetrics(service)
    samples = [each for family in REGISTRY.collect() for each in family.samples]
    labels = [each.labels for each in samples if each.name == "grpc_server_handled_total"]
    ours = [each for each in labels if each["grpc_service"] == SERVICE]
    assert {each["grpc_method"] for each in ours} == {method.name for method in service.methods}
    found = {each["grpc_code"] for each in ours}
    assert {"OK", "Canceled", "InvalidArgument", "Unauthenticated", "DataLoss"} <= found
    assert len(found) == len(grpc.StatusCode)


def test_a_refusal_for_a_quota() -> None:
    before = value("treadle_quota_refusals_total", quota="calls")
    quota_exceeded("ann", "calls", 1, "one runs", 1.0)
    assert value("treadle_quota_refusals_total", quota="calls") == before + 1


def test_counting_a_call_costs_little() -> None:
    """Far less than the 50 us that a message takes; the bound allows for a busy machine."""
    method = RpcMetrics(pb.DESCRIPTOR.services_by_name["SequenceService"]).of("Generate")

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        best = 1.0
        for _ in range(5):
            began = loop.time()
            for _ in range(1000):
                method.sent.inc()
            best = min(best, (loop.time() - began) / 1000)
        return best

    assert asyncio.run(measure()) < 10e-6
