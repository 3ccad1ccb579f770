"""`PublicServices` guards health and reflection: who may call them, and how much a call may take.

They may be public, so that strangers reach them: what arrives is read here, since gRPC itself would
keep half a request for any time, and watchers without a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc import aio
from grpc_health.v1 import health  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.audit.audited_call import AuditedCall
from treadle.server.access.authenticator import Authenticator
from treadle.server.access.caller import Caller
from treadle.server.access.request_id import REQUEST_ID_KEY, request_id_of, set_request_id
from treadle.server.config import PUBLIC_SERVICES
from treadle.server.errors import StatusError, exhausted, from_exception
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.rpc.incoming_requests import IncomingRequests
from treadle.server.rpc.interceptor import Context, abort, credential_ended
from treadle.server.rpc.reflection import V1
from treadle.server.telemetry.rpc_metrics import MethodMetrics, RpcMetrics

_SERVICES = {
    "health": (health.SERVICE_NAME,),
    "reflection": (reflection.SERVICE_NAME, V1),
}
"""The full names of the services that the setting names."""

_MAX_REQUEST_BYTES = 1 << 12
"""A request holds a name; the names of health that are watched are kept."""

_MOST_STREAMS = 1024
"""Streams that may be open at once: those that watch health, and those of reflection."""

_READ_S = 10.0
"""Seconds within which the request of a health check must arrive."""

_RETRY_S = 5.0


class PublicServices(aio.ServerInterceptor):
    """Lets only known callers use health and reflection, unless these are public.

    Args:
        setting: The setting `public_services`.
        authenticator: Finds out who calls.
        budget: Counts the bytes of requests that arrive slowly.
        max_message_bytes: Bytes of the largest message that gRPC accepts.
        audit: Where calls that are refused are written down; None: nowhere.
    """

    def __init__(
        self,
        setting: str,
        authenticator: Authenticator,
        budget: MemoryBudget,
        max_message_bytes: int,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit or AuditLog()
        public = PUBLIC_SERVICES[setting]
        self._services = {
            service: name in public for name, services in _SERVICES.items() for service in services
        }
        self._metrics: dict[str, RpcMetrics] = {}
        self._authenticator = authenticator
        self._budget = budget
        self._incoming = IncomingRequests(max_message_bytes, _READ_S)
        self._streams = 0
        self._calls: dict[asyncio.Task[Any], Caller] = {}
        """Running calls whose callers had to be known."""
        self._ended: set[asyncio.Task[Any]] = set()
        """Those that end since their credential is not accepted any more."""
        authenticator.on_change(self._end_invalid)

    def _end_invalid(self) -> None:
        for task, caller in self._calls.items():
            if task not in self._ended and not self._authenticator.is_valid(caller):
                self._ended.add(task)
                task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of a call, wrapped if it belongs to health or reflection."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        service = method.rpartition("/")[0]
        if handler is None or service not in self._services:
            return handler
        if service not in self._metrics:  # now each service has been described
            described = descriptor_pool.Default().FindServiceByName(service)
            self._metrics[service] = RpcMetrics(described)
        counts = self._metrics[service].of(method.removeprefix(f"{service}/"))
        return self._wrapped(handler, method, self._services[service], counts)

    def _wrapped(self, handler: Any, method: str, public: bool, counts: MethodMetrics) -> Any:
        async def call(stream: Any, context: Context) -> None:
            measured = counts.begin()
            request_id = request_id_of(context.invocation_metadata() or ())
            set_request_id(request_id)
            context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
            audited = AuditedCall(self._audit, method, request_id, context.peer())
            task = asyncio.current_task()
            assert task is not None
            try:
                if not public:
                    metadata = context.invocation_metadata() or ()
                    caller = await self._authenticator.authenticate(
                        metadata, context.auth_context()
                    )
                    self._calls[task] = audited.caller = caller
                await self._answer(handler, stream, context, counts)
                measured.end(grpc.StatusCode.OK)
            except aio.AbortError:
                raise
            except (Exception, asyncio.CancelledError) as error:
                if task in self._ended:
                    task.uncancel()
                    status = credential_ended()
                elif isinstance(error, asyncio.CancelledError):
                    measured.end(grpc.StatusCode.CANCELLED)
                    raise
                else:
                    status = from_exception(error, doing=method)
                audited.refused(status)
                measured.end(status.code)
                await abort(context, status)
            finally:
                self._calls.pop(task, None)
                self._ended.discard(task)

        # Requests are bytes here, and a single one is that of a stream, as in `Interceptor`.
        return grpc.stream_stream_rpc_method_handler(
            call, response_serializer=handler.response_serializer
        )

    async def _answer(
        self, handler: Any, stream: Any, context: Context, counts: MethodMetrics
    ) -> None:
        def parse(data: bytes) -> Any:
            counts.received.inc()
            return _request(handler.request_deserializer, data)

        with self._budget.reserve(0, "requests") as held:
            if handler.unary_unary is not None:
                request = parse(await self._incoming.read(context, held))
                await context.write(await handler.unary_unary(request, context))
                counts.sent.inc()
            elif handler.unary_stream is not None:
                with self._place():
                    request = parse(await self._incoming.read(context, held))
                    held.release()
                    await handler.unary_stream(request, context)  # Watch writes its replies itself
            else:
                with self._place():
                    messages = self._incoming.first(context, stream, held)
                    requests = (parse(message) async for message in messages)
                    async with aclosing(handler.stream_stream(requests, context)) as replies:
                        async for reply in replies:
                            await context.write(reply)
                            counts.sent.inc()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Counts a stream.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: there are too many.
        """
        if self._streams >= _MOST_STREAMS:
            message = f"{_MOST_STREAMS} streams watch health or use reflection; the most are open"
            raise exhausted(message, _RETRY_S)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _request(parse: Any, data: bytes) -> Any:
    """Returns the message of a request.

    Raises:
        StatusError: INVALID_ARGUMENT: it is too long, or malformed.
    """
    message = f"the request has more than {_MAX_REQUEST_BYTES} bytes"
    if len(data) <= _MAX_REQUEST_BYTES:
        try:
            return parse(data)
        except DecodeError:
            message = "the request is not a message of this method, or has text that is not UTF-8"
    code = grpc.StatusCode.INVALID_ARGUMENT
    raise StatusError(code, message, error_details_pb2.BadRequest())
