"""`PublicServices` decides which of health and reflection may be called without a token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from treadle.server.access.authenticator import Authenticator
from treadle.server.config import PUBLIC_SERVICES
from treadle.server.errors import from_exception
from treadle.server.rpc.interceptor import DETAILS_KEY, Context
from treadle.server.rpc.reflection import V1

_SERVICES = {
    "health": (health.SERVICE_NAME,),
    "reflection": (reflection.SERVICE_NAME, V1),
}
"""The full names of the services that the setting names."""


class PublicServices(aio.ServerInterceptor):
    """Lets only known callers use health and reflection, unless they are public.

    Args:
        setting: The setting `public_services`.
        authenticator: Finds out who calls.
    """

    def __init__(self, setting: str, authenticator: Authenticator) -> None:
        public = PUBLIC_SERVICES[setting]
        self._guarded = {
            service
            for name, services in _SERVICES.items()
            if name not in public
            for service in services
        }
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of a call; that of a guarded service refuses unknown callers."""
        handler: Any = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        if handler is None or service not in self._guarded:
            return handler
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=self._one(handler.unary_unary))
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=self._many(handler.unary_stream))
        return handler._replace(stream_stream=self._many(handler.stream_stream))

    def _one(self, method: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            await self._authenticate(context)
            return await method(request, context)

        return call

    def _many(self, method: Any) -> Any:
        async def call(requests: Any, context: Context) -> None:
            await self._authenticate(context)
            replies = method(requests, context)
            if not hasattr(replies, "__aiter__"):  # it writes its replies itself
                await replies
                return
            async with aclosing(replies):
                async for reply in replies:
                    await context.write(reply)

        return call

    async def _authenticate(self, context: Context) -> None:
        metadata = context.invocation_metadata() or ()
        try:
            await self._authenticator.authenticate(metadata, context.auth_context())
        except Exception as error:
            status = from_exception(error, doing="authentication")
            await context.abort(status.code, status.message, ((DETAILS_KEY, status.packed()),))
