"""`work_within` limits the time of a call by the server's own deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from treadle.server.errors import StatusError


@asynccontextmanager
async def work_within(limit_s: float, remedy: str) -> AsyncIterator[None]:
    """Limits the time that a call, or one message of a stream, may take.

    Args:
        limit_s: Seconds that it may take, including those in which it waits for its turn.
        remedy: What to do about it, as a clause.

    Raises:
        StatusError: DEADLINE_EXCEEDED: it took longer.
    """
    try:
        async with asyncio.timeout(limit_s) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise StatusError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"this took longer than {limit_s:g} seconds, the server's limit for a call: {remedy}",
        ) from None
