"""`work_within` is the server's own deadline: no call works for longer, whatever it asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from treadle.server.errors import StatusError


@asynccontextmanager
async def work_within(limit_s: float, remedy: str) -> AsyncIterator[None]:
    """Bounds the time that a call, or one message of a stream, is worked on.

    Args:
        limit_s: Seconds that it may take, waiting for turns included.
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
            f"this took longer than {limit_s:g} seconds, which is what the server gives to a "
            f"call: {remedy}",
        ) from None
