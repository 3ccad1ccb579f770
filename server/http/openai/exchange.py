"""`Exchange` is a request to a path of OpenAI's API; `Endpoint` answers those to one path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from treadle.server.errors import StatusError, from_exception
from treadle.server.http.caller_origin import origin_of
from treadle.server.http.json_size import has_more_values
from treadle.server.http.openai.json_fields import read_object
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.rpc_errors import from_status
from treadle.server.http.request_body import Bodies, RequestBody
from treadle.server.resources import thread_pools
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.access.call_origin import CallOrigin
    from treadle.server.resources.memory_budget import Reservation
    from treadle.server.rpc.in_process import InProcessService

Request = TypeVar("Request")

_SMALL_BYTES = 1 << 16
"""A body up to this size is read before it is known who calls, and parsed on the event loop."""

_MOST_VALUES = 1 << 18
"""The most values of a body. Python's parser of JSON lets nothing else run meanwhile."""


@dataclass(frozen=True)
class Exchange:
    """One request."""

    service: InProcessService
    """The RPCs."""
    bodies: Bodies
    """Reads the bodies of requests."""
    scope: Scope
    """The ASGI scope of the request."""
    body: RequestBody
    """What the client sends."""
    send: Send
    """Takes what is sent to the client."""
    origin: CallOrigin
    """Where the request comes from."""
    held: Reservation
    """The memory of the request and of its response, until that is sent."""

    @property
    def path(self) -> Mapping[str, str]:
        """The parts of the path that have names."""
        found: Mapping[str, str] = self.scope["path_params"]
        return found

    @property
    def query(self) -> QueryParams:
        """What follows the path."""
        return QueryParams(self.scope["query_string"])

    async def call(self, method: str, request: Message) -> Any:
        """Returns the reply of an RPC that has one.

        Raises:
            StatusError: It failed.
        """
        return await self.service.unary(method, request, self.origin)

    async def read(self, reader: Callable[[dict[str, Any]], Request]) -> Request:
        """Returns what the JSON object that the client sends asks for.

        Args:
            reader: Returns it, from the object; runs in a thread where the body is large.

        Raises:
            OpenAIError: 400: the body is something else, or the reader refuses it.
            StatusError: The caller is not known, or the body is too large or too late.
        """
        await self.check_caller()
        data = await self.bodies.read(self.body, self.held)
        if len(data) <= _SMALL_BYTES:
            return reader(read_object(data))
        if has_more_values(data, _MOST_VALUES):
            raise OpenAIError(400, f"the body has more than {_MOST_VALUES:,} values")
        # What is made of it takes several times as much, until the request is answered.
        self.held.resize(8 * len(data))
        return await thread_pools.JSON.run(lambda: reader(read_object(data)))

    async def check_caller(self) -> None:
        """Finds out who calls before much of a body is read.

        Raises:
            StatusError: The caller is not known.
        """
        if self.body.length is None or self.body.length > _SMALL_BYTES:
            await self.call("GetServerInfo", pb.GetServerInfoRequest())


Handler = Callable[[Exchange], Awaitable[Response | None]]
"""Answers a request with a response; None where it has sent its own."""


class Endpoint:
    """An ASGI app for the requests to one path.

    Args:
        service: The RPCs.
        bodies: Reads the bodies of requests.
        handlers: What answers each method of HTTP.
    """

    def __init__(self, service: InProcessService, bodies: Bodies, **handlers: Handler) -> None:
        self._service = service
        self._bodies = bodies
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        body = RequestBody(scope, receive)
        with self._bodies.budget.reserve(0, "requests over HTTP") as held:
            exchange = Exchange(
                self._service, self._bodies, scope, body, send, origin_of(scope), held
            )
            response = None
            async with body.while_connected():
                response = await self._answer(exchange)
            if response is not None:
                await response(scope, receive, send)

    async def _answer(self, exchange: Exchange) -> Response | None:
        """Returns the response to a request; None where it was sent already."""
        scope = exchange.scope
        try:
            response = await self._handler(scope["method"])(exchange)
            size = len(response.body) if response is not None else 0
            exchange.held.resize(size if size > _SMALL_BYTES else 0)
            return response
        except OpenAIError as error:
            return error.response()
        except StatusError as error:
            return from_status(error).response()
        except Exception as error:
            return from_status(from_exception(error, doing=scope["path"])).response()

    def _handler(self, method: str) -> Handler:
        """Returns what answers a method.

        Raises:
            OpenAIError: 405: nothing does.
        """
        handler = self._handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(sorted(self._handlers))
            text = f"the method {method[:20]} is not allowed here: use {allowed}"
            raise OpenAIError(405, text, headers={"allow": allowed})
        return handler
