"""`RpcMetrics` counts the calls of one service under the names of the Go library.

The children of a method's metrics are looked up once, since each look-up takes longer than to
count.
"""

from __future__ import annotations

import time

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from treadle.server.telemetry import metrics

_CODES = {
    code: "".join(word.capitalize() for word in code.name.split("_")) for code in grpc.StatusCode
} | {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}
"""The statuses as Go writes them, which dashboards expect."""


class MeasuredCall:
    """One call that is counted.

    Args:
        method: The metrics of its method.
    """

    def __init__(self, method: MethodMetrics) -> None:
        self._method = method
        self._began_s = time.perf_counter()
        method.started.inc()

    def end(self, code: grpc.StatusCode) -> None:
        """Counts the end of the call with a status."""
        self._method.handled[code].inc()
        self._method.seconds.observe(time.perf_counter() - self._began_s)


class MethodMetrics:
    """The metrics of one method.

    Args:
        service: The full name of its service.
        method: Its descriptor.
    """

    def __init__(self, service: str, method: MethodDescriptor) -> None:
        labels = (_kind(method), service, method.name)
        self.started = metrics.RPC_STARTED.labels(*labels)
        """Calls that began."""
        self.handled = {
            code: metrics.RPC_HANDLED.labels(*labels, word) for code, word in _CODES.items()
        }
        """Calls that ended, by their status."""
        self.seconds = metrics.RPC_SECONDS.labels(*labels)
        """Seconds from the start of a call to its end."""
        self.received = metrics.RPC_RECEIVED.labels(*labels)
        """Requests that were read."""
        self.sent = metrics.RPC_SENT.labels(*labels)
        """Replies that were sent."""

    def begin(self) -> MeasuredCall:
        """Counts the start of a call."""
        return MeasuredCall(self)


class RpcMetrics:
    """The metrics of every method of a service; those of strangers' methods do not exist.

    Args:
        service: The descriptor of the service.
    """

    def __init__(self, service: ServiceDescriptor) -> None:
        name = service.full_name
        self._methods = {each.name: MethodMetrics(name, each) for each in service.methods}

    def of(self, method: str) -> MethodMetrics:
        """Returns the metrics of a method by its name."""
        return self._methods[method]


def _kind(method: MethodDescriptor) -> str:
    if method.client_streaming:
        return "bidi_stream" if method.server_streaming else "client_stream"
    return "server_stream" if method.server_streaming else "unary"
