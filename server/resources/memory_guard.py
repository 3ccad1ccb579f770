"""Ends silent streams where the process takes more memory than all that is accounted for may.

What gRPC keeps of half a message is not in the memory budget, since gRPC only tells of whole ones:
a stream that seems silent may have sent most of a large message, and hundreds may.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

_LOOK_S = 1.0


async def guard_memory(
    limit: int,
    message_bytes: int,
    resident: Callable[[], int],
    end_silent: Callable[[int], None],
    look_s: float = _LOOK_S,
) -> None:
    """Looks at the memory of this process until it is cancelled.

    Args:
        limit: What may be kept for callers, in bytes.
        message_bytes: The most that ending one silent stream may free.
        resident: Returns the memory that this process takes, in bytes; 0: that is not known.
        end_silent: Ends so many silent streams, or as many as there are.
        look_s: Seconds between two looks.
    """
    base = resident()
    while base:
        await asyncio.sleep(look_s)
        excess = resident() - base - limit
        if excess > 0:
            logger.warning("%d MiB of memory beyond --memory-budget are in use", excess >> 20)
            end_silent(1 + excess // message_bytes)
