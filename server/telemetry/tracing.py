"""`start` sends traces of calls and jobs to an OpenTelemetry collector; else nothing is traced.

Spans never hold text of prompts, corpora or replies: only names, counts and times. OpenTelemetry is
imported by `start` alone, and each function here returns at once where nothing is traced. Training
processes need this module, and no gRPC.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Attribute = str | int | float | bool

MISSING = (
    "needs OpenTelemetry, which is not installed: install treadle with its extra `otel`: "
    "pip install '.[server,otel]' in a checkout of Treadle"
)
"""What is wrong where traces are asked for and the packages are missing."""

_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._\[\]:-]+/?")
"""An address without a user's name and password, which do not belong into it."""

_CARRIED = ("traceparent", "tracestate")
"""The metadata of W3C Trace Context."""

_MOST_EVENTS = 100
"""Events that one span has, at most."""

_FAULTS = frozenset(
    {
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)
"""Statuses that are the fault of the server, as OpenTelemetry's conventions for RPCs say."""

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def asked_by_environment() -> bool:
    """Returns whether OpenTelemetry's own variables ask for traces."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return any(os.environ.get(name) for name in names) and not off and not none


def endpoint_fault(endpoint: str) -> str:
    """Returns what is wrong with the address of a collector; empty if nothing is."""
    if _ENDPOINT.fullmatch(endpoint):
        return ""
    return "must be http://HOST:PORT or https://HOST:PORT"


def start(endpoint: str, version: str, provider: TracerProvider | None = None) -> None:
    """Begins to trace.

    Args:
        endpoint: The address of a collector, `http://HOST:PORT` or `https://HOST:PORT`; empty: as
            OpenTelemetry's variables say.
        version: The version of the server.
        provider: What makes the spans; None: one that sends them to the collector.

    Raises:
        ImportError: OpenTelemetry is not installed.
    """
    global _provider, _tracer
    _provider = provider or _exporting_provider(endpoint, version)
    _tracer = _provider.get_tracer("treadle", version)


def _exporting_provider(endpoint: str, version: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_VERSION: version})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "treadle-server"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint or None)))
    return provider


def stop(timeout_s: float) -> None:
    """Sends the spans that are left, and traces nothing more.

    Args:
        timeout_s: Seconds that this may take; then they are lost.
    """
    global _provider, _tracer
    provider = _provider
    _provider = None
    _tracer = None
    if provider is not None:
        # A collector that does not answer must not hold up the end of the server.
        sending = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(timeout_s)


def is_on() -> bool:
    """Returns whether anything is traced."""
    return _tracer is not None


def current_trace_id() -> str:
    """Returns the id of the trace of the running call or job in hexadecimal; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


class TraceSpan:
    """One span, which may be a parent of others.

    Args:
        span: OpenTelemetry's span.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._events = 0

    def set(self, **attributes: Attribute) -> None:
        """Sets attributes, which are named `treadle.NAME` in the trace."""
        self._span.set_attributes(_named(attributes))

    def event(self, name: str, **attributes: Attribute) -> None:
        """Adds an event that happens now, unless there are many."""
        if self._events < _MOST_EVENTS:
            self._events += 1
            self._span.add_event(name, _named(attributes))

    def end(self, code: grpc.StatusCode | None = None) -> None:
        """Ends the span.

        Args:
            code: The status with which the call ended that it is of; None: it is of no call.
        """
        if code is not None:
            self._span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code.name in _FAULTS:
                self.fail(code.name)
        self._span.end()

    def fail(self, why: str) -> None:
        """Marks what the span is of as failed.

        Args:
            why: A word; never text of a request.
        """
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, why))

    def child(self, name: str, began_ns: int | None = None, **attributes: Attribute) -> TraceSpan:
        """Begins a span within this one.

        Args:
            name: Its name.
            began_ns: When it began, in nanoseconds since the epoch; None: now.
            attributes: Its attributes.

        Returns:
            The span.
        """
        from opentelemetry import trace

        inner = (_tracer or trace.NoOpTracer()).start_span(
            name,
            trace.set_span_in_context(self._span),
            attributes=_named(attributes),
            start_time=began_ns,
        )
        return TraceSpan(inner)

    def child_between(
        self, name: str, began_ns: int, ended_ns: int, **attributes: Attribute
    ) -> None:
        """Adds a span within this one that is over; times as for `child`."""
        self.child(name, began_ns, **attributes)._span.end(ended_ns)

    def attach(self) -> None:
        """Makes this the span of the current task, for the rest of it."""
        from opentelemetry import context, trace

        context.attach(trace.set_span_in_context(self._span))

    @property
    def traceparent(self) -> str:
        """The span as the header `traceparent` names it."""
        context = self._span.get_span_context()
        flags = int(context.trace_flags)
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"


def begin_call(
    service: str, method: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str
) -> TraceSpan | None:
    """Begins the span of a call and makes it that of the current task.

    Args:
        service: The full name of the service.
        method: The name of the method.
        metadata: The metadata of the call, which may name the span of its client.
        request_id: The id of the call.

    Returns:
        The span; None where nothing is traced.
    """
    if _tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = {key: value for key, value in metadata if key in _CARRIED}
    span = _tracer.start_span(
        f"{service}/{method}",
        TraceContextTextMapPropagator().extract(carried, Context()),
        SpanKind.SERVER,
        {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
    )
    found = TraceSpan(span)
    found.set(request_id=request_id)
    found.attach()
    return found


def begin_linked(name: str, **attributes: Attribute) -> TraceSpan | None:
    """Begins the first span of a new trace, linked to that of the current task.

    Args:
        name: Its name.
        attributes: Its attributes.

    Returns:
        The span; None where nothing is traced.
    """
    if _tracer is None:
        return None
    from opentelemetry import trace
    from opentelemetry.context import Context

    cause = trace.get_current_span().get_span_context()
    links = [trace.Link(cause)] if cause.is_valid else []
    span = _tracer.start_span(name, Context(), attributes=_named(attributes), links=links)
    return TraceSpan(span)


def begin(name: str, **attributes: Attribute) -> TraceSpan | None:
    """Begins a span within that of the current task.

    Args:
        name: Its name.
        attributes: Its attributes.

    Returns:
        The span; None where nothing is traced.
    """
    if _tracer is None:
        return None
    return TraceSpan(_tracer.start_span(name, attributes=_named(attributes)))


def add(name: str, began_s: float, ended_s: float, **attributes: Attribute) -> None:
    """Adds a span that is over within that of the current task.

    Args:
        name: Its name.
        began_s: When it began, by `time.monotonic`.
        ended_s: When it ended, likewise.
        attributes: Its attributes.
    """
    if _tracer is None:
        return
    since_s = time.time() - time.monotonic()
    began_ns = round((since_s + began_s) * 1e9)
    span = _tracer.start_span(name, attributes=_named(attributes), start_time=began_ns)
    span.end(round((since_s + ended_s) * 1e9))


@contextmanager
def within(name: str, **attributes: Attribute) -> Iterator[None]:
    """Traces what happens within as a span; arguments as for `begin`."""
    span = begin(name, **attributes)
    try:
        yield
    except BaseException as error:
        if span is not None:
            span.fail(type(error).__name__)
        raise
    finally:
        if span is not None:
            span.end()


def _named(attributes: dict[str, Attribute]) -> dict[str, Any]:
    """Returns attributes with the names that they have in a trace."""
    return {f"treadle.{name}": value for name, value in attributes.items()}
