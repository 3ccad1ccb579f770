"""Traces of calls and jobs, as a collector of the test's own receives them from a real server."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from treadle.client.access.trace_context import trace_context
from treadle.server.access.call_origin import CallOrigin
from treadle.server.app import App
from treadle.server.config import ServerConfig, SettingError
from treadle.server.telemetry import tracing
from treadle.server.telemetry.job_trace import JobTrace
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, requests, tiny_spec, wait_for
from .test_in_process import Place, run

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SECRET = "the quick brown secret"

Span = trace_pb2.Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        register(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"http://127.0.0.1:{port}"
        self._server.start()

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for each in request.resource_spans:
            self.resources.append(attributes(each.resource))
            for scope in each.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        """Returns the spans of a name."""
        return [span for span in self.spans if span.name.endswith(name)]

    def below(self, span: Span) -> dict[str, Span]:
        """Returns the children of a span by their names."""
        return {each.name: each for each in self.spans if each.parent_span_id == span.span_id}

    def close(self) -> None:
        self._server.stop(None).wait()


def attributes(message: Any) -> dict[str, Any]:
    """Returns attributes as Python values."""
    found = {}
    for each in message.attributes:
        found[each.key] = getattr(each.value, each.value.WhichOneof("value"))
    return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has done something of everything, and has ended."""
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "no_proxy": "127.0.0.1"}
    server = Server(
        tmp_path_factory.mktemp("traced") / "data",
        *("--standby-workers", "0", "--otlp-endpoint", collector.url, "--log-format", "json"),
        *("--http-address", "127.0.0.1:0"),
        environment=variables,
    )
    stub = server.caller.stub
    context = (("traceparent", PARENT), ("x-request-id", "the-id"))
    spec = tiny_spec("m", max_steps=20)
    spec.report.validation_interval_steps = 5
    events = stub.Train(requests(spec, TEXT), timeout=PATIENCE_S, metadata=context)
    assert list(events)[-1].HasField("completed")
    request = pb.GenerateRequest(model="m", prompt=SECRET, max_new_tokens=40, seed=1)
    list(stub.Generate(request, timeout=PATIENCE_S, metadata=context))
    stub.Score(pb.ScoreRequest(model="m", texts=[SECRET]), timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError):
        stub.GetModel(pb.GetModelRequest(model="missing"), timeout=PATIENCE_S, metadata=context)
    _call_by_http(server)
    server.end()  # it sends what it has before that
    yield server
    server.close()


def _call_by_http(server: Server) -> None:
    call = urllib.request.Request(
        f"{server.http_url}/treadle.v1.SequenceService/Embed",
        data=json.dumps({"model": "m", "texts": ["the"]}).encode(),
        headers={"Content-Type": "application/json", "Traceparent": PARENT},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(call, timeout=PATIENCE_S) as reply:
        assert reply.status == 200


def test_a_call_by_http_is_part_of_it_too(collector: Collector, server: Server) -> None:
    [call] = collector.named("/Embed")
    assert call.trace_id.hex() == TRACE
    assert call.parent_span_id.hex() == PARENT.split("-")[2]
    assert collector.below(call).keys() == {"queue", "embed"}


def test_a_call_is_part_of_the_trace_of_its_client(collector: Collector, server: Server) -> None:
    [call] = collector.named("/Generate")
    assert call.name == "treadle.v1.SequenceService/Generate"
    assert call.trace_id.hex() == TRACE
    assert call.parent_span_id.hex() == PARENT.split("-")[2]
    assert call.kind == Span.SPAN_KIND_SERVER
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": "treadle.v1.SequenceService",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "treadle.request_id": "the-id",
    }


def test_a_generation_shows_its_parts(collector: Collector, server: Server) -> None:
    [call] = collector.named("/Generate")
    parts = collector.below(call)
    parts.pop("load model", None)
    assert parts.keys() == {"queue", "prefill", "decode"}
    assert attributes(parts["prefill"])["treadle.prompt_tokens"] == len(SECRET)
    decode = attributes(parts["decode"])
    assert decode["treadle.new_tokens"] == 40
    assert decode["treadle.messages"] == len(parts["decode"].events)
    times = [parts[name] for name in ("queue", "prefill", "decode")]
    for before, after in pairwise(times):
        assert before.start_time_unix_nano <= before.end_time_unix_nano
        assert before.end_time_unix_nano <= after.start_time_unix_nano + 5_000_000
    [score] = collector.named("/Score")
    assert {"queue", "score"} <= collector.below(score).keys()
    assert score.parent_span_id == b""


def test_an_error_of_the_caller_is_no_fault_of_the_server(
    collector: Collector, server: Server
) -> None:
    [call] = collector.named("/GetModel")
    assert attributes(call)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert call.status.code == trace_pb2.Status.STATUS_CODE_UNSET


def test_a_job_has_a_trace_linked_to_its_call(collector: Collector, server: Server) -> None:
    [call] = collector.named("/Train")
    [job] = collector.named("training job")
    assert job.trace_id != call.trace_id
    assert [(link.trace_id, link.span_id) for link in job.links] == [(call.trace_id, call.span_id)]
    assert attributes(job)["treadle.request_id"] == "the-id"
    assert attributes(job)["treadle.state"] == "succeeded"
    states = collector.below(job)
    assert states.keys() == {"queued", "running"}
    phases = collector.below(states["running"])
    assert phases.keys() == {"prepare", "train", "evaluation", "checkpoint", "finish", "storing"}
    for phase in phases.values():
        assert phase.trace_id == job.trace_id


def test_lines_of_the_log_name_their_trace(collector: Collector, server: Server) -> None:
    [job] = collector.named("training job")
    of_job = [line for line in server.log.splitlines() if job.trace_id.hex() in line]
    assert any('"treadle.server.jobs.completion"' in line for line in of_job)
    assert any('"treadle.server.jobs.worker_training"' in line for line in of_job)


def test_no_text_is_in_a_trace(collector: Collector, server: Server) -> None:
    assert SECRET not in str(collector.spans)
    assert "lazy dog" not in str(collector.spans)


def test_the_server_says_who_it_is(collector: Collector, server: Server) -> None:
    assert {each["service.name"] for each in collector.resources} == {"treadle-server"}
    assert all(each["service.version"] for each in collector.resources)


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.start("", "1", provider)
    yield exporter
    tracing.stop(1.0)


@pytest.mark.parametrize(
    "bad", ["", "00-0-0-01", "x" * 8000, PARENT[:-1], "\x00", "00-" + "0" * 32]
)
def test_a_bad_trace_context_begins_a_trace(memory: InMemorySpanExporter, bad: str) -> None:
    async def test() -> None:
        origin = CallOrigin((("traceparent", bad), ("tracestate", "=,;" * 1000)))
        await Place().service.unary("GetModel", pb.GetModelRequest(model="m"), origin)

    run(test)
    [span] = memory.get_finished_spans()
    assert span.parent is None


def test_the_client_passes_the_span_of_its_program(
    memory: InMemorySpanExporter, server: Server
) -> None:
    assert trace_context() == ()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("program")
    with trace.use_span(tracer.start_span("x")) as span:
        [(key, value)] = trace_context()
    assert key == "traceparent"
    context = span.get_span_context()
    assert value.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


def test_a_span_has_a_bounded_number_of_events(memory: InMemorySpanExporter) -> None:
    span = tracing.begin("decode")
    assert span is not None
    for _ in range(1000):
        span.event("tokens", new_tokens=1)
    span.end()
    [found] = memory.get_finished_spans()
    assert len(found.events) == 100


def test_a_job_that_fails_and_one_that_the_server_leaves(memory: InMemorySpanExporter) -> None:
    failed = JobTrace("a", "r", "queued")
    failed.enter("running", is_final=False)
    failed.enter("failed", is_final=True)
    left = JobTrace("b", "r", "queued")
    left.close()
    left.enter("running", is_final=False)
    jobs = [span for span in memory.get_finished_spans() if span.name == "training job"]
    assert [span.status.status_code.name for span in jobs] == ["ERROR", "UNSET"]


def test_nothing_is_imported_or_made_where_nothing_is_traced() -> None:
    assert not tracing.is_on()
    assert tracing.begin("x") is None
    assert tracing.begin_call("s", "m", [], "r") is None
    assert tracing.current_trace_id() == ""
    assert JobTrace("a", "r", "queued").traceparent == ""


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    config = ServerConfig(data_dir=tmp_path / "data", otlp_endpoint="http://127.0.0.1:1")

    async def test() -> None:
        with pytest.raises(
            SettingError, match=r"--otlp-endpoint needs OpenTelemetry.*\[server,otel\]"
        ):
            App(config)

    run(test)


@pytest.mark.parametrize(
    "url", ["localhost:4317", "http://", "http://user:secret@host:1", "ftp://x"]
)
def test_an_address_that_cannot_be_one(url: str, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(SettingError, match="--otlp-endpoint must be http://HOST:P") as error:
            App(ServerConfig(data_dir=tmp_path / "data", otlp_endpoint=url))
        assert "secret" not in str(error.value)

    run(test)


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_variables_of_opentelemetry(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.asked_by_environment() is asked


def test_a_collector_that_does_not_answer_holds_nothing_up(start: Callable[..., Server]) -> None:
    server = start("--otlp-endpoint", "http://127.0.0.1:1", "--grace-s", "3")
    wait_for(server.caller.serving)
    server.caller.info()
    began_s = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - began_s < PATIENCE_S / 2
