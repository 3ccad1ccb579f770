"""Requests on their way: gRPC keeps what has arrived of each, and only tells of whole ones."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc import aio

from treadle.server.errors import StatusError
from treadle.server.resources.memory_budget import Reservation

_AT_ONCE_S = 0.5
"""A request that takes no longer holds nothing while it arrives: nearly all do not."""


@dataclass
class _Arrival:
    """A request that has not arrived as a whole."""

    began_s: float
    held: Reservation
    most_s: float
    failed: StatusError | None = None
    """Why its call ends before."""


class Arrivals:
    """Reads the first request of each call.

    One that is slow holds as many bytes as the largest may have, since nobody can tell how much of
    it there is.

    Args:
        largest: Bytes of the largest request.
        most_s: Seconds that the only request of a call may take.
    """

    def __init__(self, largest: int, most_s: float) -> None:
        self._largest = largest
        self._most_s = most_s
        self._arriving: dict[asyncio.Task[Any], _Arrival] = {}
        self._watched = False

    async def first(
        self, context: Any, requests: AsyncIterator[bytes], held: Reservation
    ) -> AsyncIterator[bytes]:
        """Yields the requests of a stream; while the first arrives, it is as `read` has it."""
        data = await self._read(context, held, math.inf)  # a stream has its own limit of time
        if data is not None:
            yield data
            del data
            async for data in requests:
                yield data
                del data

    async def read(self, context: Any, held: Reservation) -> bytes:
        """Returns the only request of a call.

        Args:
            context: The call's.
            held: Where its bytes are held while they arrive.

        Raises:
            StatusError: INVALID_ARGUMENT: there is none; DEADLINE_EXCEEDED: it takes too long;
                RESOURCE_EXHAUSTED: it is slow, and its bytes do not fit.
        """
        data = await self._read(context, held, self._most_s)
        if data is None:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, "the call has no request"
            raise StatusError(code, text, error_details_pb2.BadRequest())
        return data

    async def _read(self, context: Any, held: Reservation, most_s: float) -> bytes | None:
        """Returns the next request of a call; None where there is none."""
        task = asyncio.current_task()
        assert task is not None
        arrival = self._arriving[task] = _Arrival(time.monotonic(), held, most_s)
        # One watch for all: a timeout for each would cost a fifth of what a call costs.
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().call_later(_AT_ONCE_S, self._watch)
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if arrival.failed is None:
                raise
            task.uncancel()
            raise arrival.failed from None
        finally:
            del self._arriving[task]
        return None if data is aio.EOF else bytes(data)

    def _watch(self) -> None:
        """Has slow requests hold bytes, ends calls whose do not arrive, and looks again later."""
        now_s = time.monotonic()
        for task, arrival in self._arriving.items():
            took_s = now_s - arrival.began_s
            if arrival.failed is not None or took_s < _AT_ONCE_S:
                continue
            if took_s >= arrival.most_s:
                text = f"the request did not arrive within {arrival.most_s:g} seconds"
                arrival.failed = StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            elif not arrival.held.size:
                try:
                    arrival.held.resize(self._largest)
                except StatusError as refused:
                    arrival.failed = refused
            if arrival.failed is not None:
                task.cancel()
        self._watched = bool(self._arriving)
        if self._watched:
            asyncio.get_running_loop().call_later(_AT_ONCE_S, self._watch)
