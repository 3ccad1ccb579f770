"""`InProcessService` calls the RPCs of the service from this process, as HTTP requests do.

Each call passes the interceptor, in a task of its own: who calls, what it may do, its quotas, its
errors and its line in the audit log are those of the same call over gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from treadle.server.access.call_origin import CallOrigin
from treadle.server.errors import StatusError, from_packed
from treadle.server.rpc.interceptor import DETAILS_KEY, Interceptor
from treadle.v1 import sequence_pb2, sequence_pb2_grpc

_SERVICE = sequence_pb2.DESCRIPTOR.services_by_name["SequenceService"]

Requests = Message | AsyncIterator[Message]
"""The request of a call, or those of its stream."""


class InProcessService:
    """The methods of the service, each as gRPC would call it.

    Args:
        servicer: Implements the methods.
        interceptor: Wraps every call.
    """

    def __init__(
        self, servicer: sequence_pb2_grpc.SequenceServiceServicer, interceptor: Interceptor
    ) -> None:
        self._interceptor = interceptor
        registered = _Registered()
        server: Any = registered
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(servicer, server)
        self._handlers = registered.handlers
        self._methods = _SERVICE.methods_by_name
        self._wrapped: dict[str, Any] = {}

    async def unary(self, method: str, request: Requests, origin: CallOrigin) -> Any:
        """Calls a method with one reply.

        Args:
            method: Its name, such as `GetModel`.
            request: The request; an iterator that yields it is asked once the caller is known.
            origin: Where the call comes from.

        Returns:
            The reply.

        Raises:
            StatusError: The call ended with another status than OK.
        """
        found = None
        async with self.stream(method, request, origin) as replies:
            async for reply in replies:  # to its end: a call that is left counts as cancelled
                found = reply
        if found is None:
            raise StatusError(grpc.StatusCode.INTERNAL, f"{method} ended without a reply")
        return found

    @asynccontextmanager
    async def stream(
        self, method: str, requests: Requests, origin: CallOrigin
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Calls a method, and gives its replies one by one; leaving the context ends the call.

        The next reply is made when the one before was taken and another one is asked for. The
        replies raise StatusError where the call ends with another status than OK.

        Args:
            method: Its name, such as `Generate`.
            requests: The request; for a method that takes a stream, an iterator of requests.
            origin: Where the call comes from.

        Yields:
            The iterator of its replies.
        """
        reply_class = GetMessageClass(self._methods[method].output_type)
        handler = await self._handler(method)
        async with aclosing(_serialized(requests)) as serialized:
            call = _Call(serialized, origin)
            call.start(handler.stream_stream, method)
            try:
                async with aclosing(_parsed(call, reply_class)) as replies:
                    yield replies
            finally:
                await call.end()

    async def _handler(self, method: str) -> Any:
        """Returns the handler of a method, wrapped by the interceptor."""
        if method not in self._wrapped:
            details: Any = _Details(f"/{_SERVICE.full_name}/{method}")

            async def continuation(_: Any) -> Any:
                return self._handlers[method]

            self._wrapped[method] = await self._interceptor.intercept_service(continuation, details)
        return self._wrapped[method]


class _Registered:
    """Stands in for a gRPC server while the methods of the service are registered."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Does nothing: the same handlers are registered by their names."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Takes the handlers of the methods by their names."""
        self.handlers = handlers


@dataclass(frozen=True)
class _Details:
    """What the interceptor reads of a call before its handler is known."""

    method: str


class _Call:
    """One call: the context that its handler writes to, and the iterator that reads its replies.

    Args:
        requests: The serialized requests.
        origin: Where the call comes from.
    """

    def __init__(self, requests: AsyncIterator[bytes], origin: CallOrigin) -> None:
        self._requests = requests
        self._origin = origin
        self._task: asyncio.Task[None] | None = None
        self._failure: StatusError | None = None
        self._reply: bytes | None = None
        self._written = asyncio.Event()
        """Set while there is a reply to take, and when the call has ended."""
        self._taken = asyncio.Event()

    def start(self, handler: Any, method: str) -> None:
        """Runs the handler in a task of its own, whose context variables are its own."""
        self._task = asyncio.create_task(handler(self._requests, self), name=method)
        self._task.add_done_callback(lambda _: self._written.set())

    async def end(self) -> None:
        """Ends the call, and waits until its handler has ended."""
        task = self._task
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it was reported where the replies were read

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._taken.set()
        await self._written.wait()
        reply = self._reply
        if reply is None:
            self._raise_end()
        self._reply = None
        self._written.clear()
        return reply

    def _raise_end(self) -> NoReturn:
        """Raises what the call ended with.

        Raises:
            StatusError: It failed.
            StopAsyncIteration: It ended with OK.
        """
        task = self._task
        assert task is not None
        if self._failure is not None:
            raise self._failure
        if task.cancelled():
            raise StatusError(grpc.StatusCode.CANCELLED, "the call was cancelled")
        error = task.exception()
        if error is not None and not isinstance(error, aio.AbortError):
            raise error
        raise StopAsyncIteration

    # What the interceptor uses of gRPC's own context.

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the metadata of the call."""
        return self._origin.metadata

    def auth_context(self) -> Mapping[str, Any]:
        """Returns what TLS knows of the client."""
        return self._origin.auth_context

    def peer(self) -> str:
        """Returns the address of the client."""
        return self._origin.peer

    def set_trailing_metadata(self, trailers: Any) -> None:
        """Does nothing: the caller chose the request id, and details come with the status."""

    async def read(self) -> Any:
        """Returns the next request; EOF at the end."""
        async for data in self._requests:
            return data
        return aio.EOF

    async def write(self, reply: bytes) -> None:
        """Gives a reply to the reader, and waits until it asks for the next one."""
        self._taken.clear()
        self._reply = reply
        self._written.set()
        try:
            await self._taken.wait()
        except asyncio.CancelledError:
            self._reply = None
            self._written.clear()
            raise

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any = ()) -> NoReturn:
        """Ends the call with a status.

        Raises:
            AbortError: Always, as gRPC does.
        """
        packed = dict(trailers).get(DETAILS_KEY)
        failure = from_packed(packed, message) if packed else StatusError(code, message)
        self._failure = failure
        raise aio.AbortError(message)


async def _serialized(requests: Requests) -> AsyncGenerator[bytes, None]:
    """Yields requests as gRPC would receive them."""
    if isinstance(requests, Message):
        yield requests.SerializeToString()
        return
    async for request in requests:
        data = request.SerializeToString()
        del request  # so that only one of the two is kept while the call works
        yield data
        del data


async def _parsed(call: _Call, reply_class: Any) -> AsyncGenerator[Any, None]:
    """Yields the replies of a call as messages."""
    async for data in call:
        yield reply_class.FromString(data)
