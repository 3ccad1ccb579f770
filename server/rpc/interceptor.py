"""`Interceptor` wraps every RPC of the service: it checks the caller, maps errors and counts bytes.

With it the servicer's methods neither authenticate callers, nor catch exceptions, nor abort calls.
Calls to health and reflection are not wrapped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc import aio

from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.audit.audited_call import AuditedCall, audit_request
from treadle.server.access.authenticator import Authenticator
from treadle.server.access.caller import ANONYMOUS, Caller, set_current_caller
from treadle.server.access.permissions import check_permission
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import (
    REQUEST_ID_KEY,
    current_request_id,
    request_id_of,
    set_logged_caller,
    set_request_id,
)
from treadle.server.errors import StatusError, from_exception
from treadle.server.messages import repeated_limits
from treadle.server.resources.loop_throttle import LoopThrottle
from treadle.server.resources.memory_budget import MemoryBudget, Reservation
from treadle.server.rpc.incoming_requests import IncomingRequests
from treadle.server.telemetry import tracing
from treadle.server.telemetry.rpc_metrics import MeasuredCall, MethodMetrics, RpcMetrics

logger = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]
"""The context that gRPC passes to a method of a servicer."""

DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries google.rpc.Status."""

_UNCOUNTED_BYTES = 1 << 14
"""Messages up to this size are not counted, so that a job can be cancelled even if the memory
budget is used up. What is counted for every call covers them."""

_STARTS_AT_ONCE = 4
"""Calls that begin in one round of the event loop. Streams that decode together end together, and
their clients begin the next ones together: a health check would wait for all of these."""

_PATIENCE_S = 5.0
"""Seconds for which a large message of a stream, or a large reply, waits for memory before its call
ends."""


@dataclass
class _Call:
    """A running call."""

    audited: AuditedCall
    measured: MeasuredCall
    span: tracing.TraceSpan | None = None
    caller: Caller = ANONYMOUS
    eviction: StatusError | None = None
    """The status with which the server ends it."""

    def end(self, error: StatusError | None = None, cancelled: bool = False) -> None:
        """Writes its end down, counts and traces it; see `AuditedCall.end`."""
        self.audited.end(error, cancelled)
        code = grpc.StatusCode.OK if error is None else error.code
        code = grpc.StatusCode.CANCELLED if cancelled else code
        self.measured.end(code)
        if self.span is not None:
            self.span.end(code)


class Interceptor(aio.ServerInterceptor):
    """Wraps the methods of one service.

    Args:
        service: Full name of the service, such as `treadle.v1.SequenceService`.
        authenticator: Finds out who calls.
        quotas: Counts the calls of each caller.
        budget: Counts the bytes of requests in work and of unread replies.
        max_message_bytes: Bytes of the largest request.
        write_s: Seconds within which a client must accept a reply, or send the only request of a
            call.
        audit: Where calls that change something or are refused are written down; None: nowhere.
    """

    def __init__(
        self,
        service: str,
        authenticator: Authenticator,
        quotas: QuotaBook,
        budget: MemoryBudget,
        max_message_bytes: int,
        write_s: float = 60.0,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit or AuditLog()
        self._authenticator = authenticator
        self._quotas = quotas
        self._budget = budget
        self._incoming = IncomingRequests(max_message_bytes, write_s)
        self._starts = LoopThrottle(_STARTS_AT_ONCE)
        self._write_s = write_s
        self._service = service
        self._prefix = f"/{service}/"
        described = descriptor_pool.Default().FindServiceByName(service)
        self._methods = described.methods_by_name
        self._metrics = RpcMetrics(described)
        self._calls: dict[asyncio.Task[Any], _Call] = {}
        self._writing: dict[asyncio.Task[Any], float] = {}
        self._stuck: set[asyncio.Task[Any]] = set()
        self._watched = False
        self._idle = asyncio.Event()
        self._idle.set()
        authenticator.on_change(self._evict_invalid)

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._calls)

    async def wait_idle(self) -> None:
        """Waits until no call is running."""
        await self._idle.wait()

    def evict(self, reason: StatusError) -> None:
        """Ends every running call with a status.

        Args:
            reason: The status that the clients get.
        """
        for task in self._calls:
            self._evict(task, reason)

    def _evict_invalid(self) -> None:
        """Ends the calls whose credential is not accepted any more."""
        for task, call in self._calls.items():
            if not self._authenticator.is_valid(call.caller):
                self._evict(task, credential_ended())

    def _evict(self, task: asyncio.Task[Any], reason: StatusError) -> None:
        call = self._calls[task]
        if call.eviction is None:
            call.eviction = reason
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of a call, wrapped if it belongs to the service."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        name = method.removeprefix(self._prefix)
        counts = self._metrics.of(name)
        parse = _Parser(handler.request_deserializer, self._methods[name].input_type, counts)
        # Messages are bytes here, so that they are parsed under the guard and counted. gRPC itself
        # would answer a malformed message with UNKNOWN and the text of the exception.
        replies: Any
        if handler.request_streaming:
            replies = handler.stream_stream or _stream_of(handler.stream_unary)

            async def read(stream: Any, context: Context, held: Reservation) -> Any:
                return parse.all(self._incoming.first(context, stream, held), held)

        else:
            # A single message is read and written as the only one of a stream, which a client
            # cannot distinguish. gRPC itself would keep half a request of a client that sends no
            # more, or a reply that nobody reads, for any time and without counting it.
            replies = handler.unary_stream or _stream_of(handler.unary_unary)

            async def read(stream: Any, context: Context, held: Reservation) -> Any:
                return parse.one(await self._incoming.read(context, held), held)

        wrapped = self._wrapped(replies, name, read, handler.response_serializer, counts)
        return grpc.stream_stream_rpc_method_handler(wrapped)

    def _wrapped(
        self,
        method: Any,
        name: str,
        read: Callable[[Any, Context, Reservation], Awaitable[Any]],
        serialize: Any,
        counts: MethodMetrics,
    ) -> Any:
        # The replies are written here instead of being yielded to gRPC. When a call is cancelled,
        # gRPC drops a generator where it stands, and its clean-up would wait for the garbage
        # collector.
        async def call(stream: Any, context: Context) -> None:
            async with self._guard(context, name, counts) as task:
                await self._starts.wait_turn()
                caller = await self._authorize(context, name, task)
                with (
                    self._quotas.of(caller).admit_call(),
                    self._budget.reserve(0, "requests") as asked,
                    self._budget.reserve(0, "replies that are not read yet") as unread,
                ):
                    requests = await read(stream, context, asked)
                    async with aclosing(method(requests, context)) as replies:
                        async for reply in replies:
                            data = serialize(reply)
                            self._calls[task].audited.sent += len(data)
                            del reply  # so that neither is kept while the next one is made
                            size = _reply_bytes(data)
                            await unread.resize_patiently(size, _PATIENCE_S, kept=size)
                            await self._write(context, data, task)
                            counts.sent.inc()
                            del data

        return call

    async def _authorize(self, context: Context, name: str, task: asyncio.Task[Any]) -> Caller:
        """Returns who calls, before anything of the request is read; checks that it may."""
        metadata = context.invocation_metadata() or ()
        caller = await self._authenticator.authenticate(metadata, context.auth_context())
        self._calls[task].caller = caller
        self._calls[task].audited.caller = caller
        set_current_caller(caller)
        set_logged_caller(caller.name)
        check_permission(caller, name)
        return caller

    async def _write(self, context: Context, reply: bytes, task: asyncio.Task[Any]) -> None:
        """Writes a reply, and ends the call if the client does not read it in time."""
        # One timer for all writes: a timeout for each would add a fifth to the cost of writing.
        self._writing[task] = time.monotonic()
        if not self._watched:
            self._watch()
        try:
            await context.write(reply)
        except asyncio.CancelledError:
            if task not in self._stuck:
                raise
            task.uncancel()
            text = f"no reply was read for {self._write_s:g} seconds; the call was ended"
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        except Exception as error:
            # The client has just disconnected, and gRPC does not know it yet.
            logger.debug("a reply could not be sent: %s", error)
            raise asyncio.CancelledError from error
        finally:
            del self._writing[task]
            self._stuck.discard(task)

    def _watch(self) -> None:
        """Ends calls whose reply has been unread for too long, and schedules the next look."""
        late = time.monotonic() - self._write_s
        for task, began in self._writing.items():
            if began <= late and task not in self._stuck:
                self._stuck.add(task)
                task.cancel()
        self._watched = bool(self._writing)
        if self._watched:
            asyncio.get_running_loop().call_later(self._write_s / 20, self._watch)

    @asynccontextmanager
    async def _guard(
        self, context: Context, name: str, counts: MethodMetrics
    ) -> AsyncIterator[asyncio.Task[Any]]:
        task = asyncio.current_task()
        assert task is not None
        request_id = request_id_of(context.invocation_metadata() or ())
        set_request_id(request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        audited = AuditedCall(self._audit, name, request_id, context.peer())
        audited.begin()
        call = self._calls[task] = _Call(audited, counts.begin())
        if tracing.is_on():
            metadata = context.invocation_metadata() or ()
            call.span = tracing.begin_call(self._service, name, metadata, request_id)
        self._idle.clear()
        try:
            yield task
            call.end()
        except asyncio.CancelledError:
            call.end(call.eviction, cancelled=call.eviction is None)
            if call.eviction is None:
                raise  # the client disconnected, or its deadline passed
            task.uncancel()
            await abort(context, call.eviction)
        except (aio.AbortError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust package is not an Exception
            status = from_exception(error, doing=name)
            call.end(status)
            await abort(context, status)
        finally:
            del self._calls[task]
            if not self._calls:
                self._idle.set()


class _Parser:
    """Parses the requests of one method.

    Args:
        parse: The parser that gRPC would call.
        kind: The descriptor of the requests.
        counts: Counts them.
    """

    def __init__(self, parse: Any, kind: Descriptor, counts: MethodMetrics) -> None:
        self._parse = parse
        self._kind = kind
        self._counts = counts

    def one(self, data: bytes, held: Reservation) -> Any:
        """Returns a request, and reserves its bytes.

        Raises:
            StatusError: INVALID_ARGUMENT: it is malformed, or a list in it is too long;
                RESOURCE_EXHAUSTED: its bytes do not fit into the budget.
        """
        held.resize(_request_bytes(data))
        return self._request(data)

    async def all(self, stream: AsyncIterator[bytes], held: Reservation) -> AsyncIterator[Any]:
        """Yields the requests of a stream; the bytes of each are reserved until the next one."""
        async for data in stream:
            # In addition gRPC may hold the bytes of the next request already.
            kept = 2 * len(data)
            await held.resize_patiently(_request_bytes(data), _PATIENCE_S, kept)
            # The list drops its reference, so that the consumer alone keeps the request.
            requests = [self._request(data)]
            del data
            yield requests.pop()
            held.release()

    def _request(self, data: bytes) -> Any:
        self._counts.received.inc()
        repeated_limits.check_bytes(data, self._kind)
        try:
            request = self._parse(data)
        except DecodeError:
            message = "the request is not a message of this method, or has text that is not UTF-8"
            code = grpc.StatusCode.INVALID_ARGUMENT
            raise StatusError(code, message, error_details_pb2.BadRequest()) from None
        repeated_limits.check(request)
        # Unknown fields may be of any size, and must be neither kept nor shown.
        request.DiscardUnknownFields()
        audit_request(request, len(data))
        return request


def _stream_of(method: Any) -> Any:
    """Returns a method with one reply as a method with a stream of replies."""

    async def replies(request: Any, context: Context) -> AsyncIterator[Any]:
        yield await method(request, context)

    return replies


def _request_bytes(data: bytes) -> int:
    """Returns the bytes of memory of a request: serialized, as a message, and its text."""
    return 4 * len(data) if len(data) > _UNCOUNTED_BYTES else 0


def _reply_bytes(data: bytes) -> int:
    """Returns the bytes of memory of a reply: serialized, and as a message."""
    return 2 * len(data) if len(data) > _UNCOUNTED_BYTES else 0


def credential_ended() -> StatusError:
    """Returns UNAUTHENTICATED for a running call whose credential is not accepted any more."""
    text = "the credential of this call was revoked or has expired: call again with a new one"
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, text)


async def abort(context: Context, error: StatusError) -> None:
    """Ends the current call with a status, its details, and the id of the call.

    Args:
        context: The context of the call.
        error: The status.
    """
    logger.debug("%s: %s", error.code.name, error.message)
    trailers = ((REQUEST_ID_KEY, current_request_id()), (DETAILS_KEY, error.packed()))
    await context.abort(error.code, error.message, trailers)
