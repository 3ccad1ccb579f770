"""`guarded_server` makes a gRPC server that the path of a call cannot end.

grpcio decodes the path of every call to a method that is not registered, and ends the whole server
where it is not UTF-8: one call without any credential would be enough. Here such calls end with
UNIMPLEMENTED, like all calls to methods that do not exist, and their path is never looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import grpc
from grpc import aio
from grpc._cython import cygrpc
from grpc.aio import _server

logger = logging.getLogger(__name__)

_LIBRARY_LOG = "grpc._cython.cygrpc"
_ODD_METADATA = "Invalid encoding on"


def guarded_server(
    interceptors: Sequence[aio.ServerInterceptor], options: Sequence[tuple[str, int]]
) -> aio.Server:
    """Returns a server of registered methods; generic handlers are never called.

    Args:
        interceptors: What wraps each call.
        options: The settings of the library.
    """
    logging.getLogger(_LIBRARY_LOG).addFilter(_is_worth_a_line)
    if not hasattr(cygrpc.AioServer, "_make_request_call_future"):
        logger.warning(
            "one call with an odd path may end this server: use a version of grpcio that Treadle "
            "was tested with"
        )
        return aio.server(interceptors=interceptors, options=options)
    made: Any = _GuardedServer(interceptors, options)
    return cast(aio.Server, made)


class _GuardedServer(_server.Server):
    def __init__(
        self, interceptors: Sequence[aio.ServerInterceptor], options: Sequence[tuple[str, int]]
    ) -> None:
        # In place of the constructor of the library, which makes a server without the guard.
        self._loop = cygrpc.get_working_loop()
        self._server = _Guard(self._loop, None, (), tuple(interceptors), tuple(options), None)


class _Guard(cygrpc.AioServer):  # type: ignore[misc]
    """The server of the library, but for what it does with a call to an unknown method."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *others: Any) -> None:
        super().__init__(loop, *others)
        self._refusals = set[asyncio.Task[None]]()
        self._event_loop = loop

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """Returns the future of the next call of a registered method, or of any other."""
        if method is not None:
            return super()._make_request_call_future(method)
        return self._event_loop.create_task(self._refuse_next())

    async def _refuse_next(self) -> None:
        """Refuses the next call of an unknown method.

        Raises:
            cygrpc._RequestCallError: It is refused; the library then waits for the next one.
        """
        call = await self._request_call()
        context = cygrpc._ServicerContext(call, None, None, self._event_loop)
        refusal = self._event_loop.create_task(_refuse(context))
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refusals.discard)
        raise cygrpc._RequestCallError("the call is refused")


async def _refuse(context: Any) -> None:
    with suppress(Exception):  # AbortError, or the caller is gone
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Returns whether a line of the library is logged.

    It logs metadata that is not UTF-8, which may be a credential, with a traceback for each value.
    """
    return _ODD_METADATA not in str(record.msg)
