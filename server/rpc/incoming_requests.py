"""`IncomingRequests` reads the first request of each call, and limits those that arrive slowly.

gRPC keeps the part of a request that has arrived, and reports only complete requests.
"""

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

_PROMPT_S = 0.5
"""Seconds within which nearly all requests arrive; these reserve no bytes while they do."""


@dataclass
class _Arrival:
    """A request that has not arrived completely."""

    began_s: float
    held: Reservation
    most_s: float
    failed: StatusError | None = None
    """The error with which its call ends before that."""


class IncomingRequests:
    """Reads the first request of each call.

    A slow one reserves the bytes of the largest request, since gRPC does not say how much of it has
    arrived.

    Args:
        largest: Bytes of the largest request.
        most_s: Seconds within which the only request of a call must arrive.
    """

    def __init__(self, largest: int, most_s: float) -> None:
        self._largest = largest
        self._most_s = most_s
        self._arriving: dict[asyncio.Task[Any], _Arrival] = {}
        self._watched = False

    async def first(
        self, context: Any, requests: AsyncIterator[bytes], held: Reservation
    ) -> AsyncIterator[bytes]:
        """Yields the requests of a stream; a slow first one reserves bytes, as in `read`."""
        data = await self._read(context, held, math.inf)  # a stream has its own time limit
        if data is not None:
            yield data
            del data
            async for data in requests:
                yield data
                del data

    async def read(self, context: Any, held: Reservation) -> bytes:
        """Returns the only request of a call.

        Args:
            context: The context of the call.
            held: The reservation of its bytes while they arrive.

        Raises:
            StatusError: INVALID_ARGUMENT: the call has no request; DEADLINE_EXCEEDED: it takes too
                long; RESOURCE_EXHAUSTED: it is slow, and its bytes do not fit into the budget.
        """
        data = await self._read(context, held, self._most_s)
        if data is None:
            raise StatusError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the call has no request",
                error_details_pb2.BadRequest(),
            )
        return data

    async def _read(self, context: Any, held: Reservation, most_s: float) -> bytes | None:
        """Returns the next request of a call; None at the end of the stream."""
        task = asyncio.current_task()
        assert task is not None
        arrival = _Arrival(time.monotonic(), held, most_s)
        self._arriving[task] = arrival
        # One timer for all: a timeout for each would add a fifth to the cost of a call.
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().call_later(_PROMPT_S, self._watch)
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
        """Reserves bytes for slow requests, ends calls whose request is late, and repeats that."""
        now_s = time.monotonic()
        for task, arrival in self._arriving.items():
            took_s = now_s - arrival.began_s
            if arrival.failed is not None or took_s < _PROMPT_S:
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
            asyncio.get_running_loop().call_later(_PROMPT_S, self._watch)
