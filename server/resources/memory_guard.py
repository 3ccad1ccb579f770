"""`guard_memory` ends silent streams where the process takes more memory than its budget.

Parts of messages that gRPC holds are not in the memory budget, since gRPC only reports complete
messages. Hundreds of streams that seem silent may each have sent most of a large message.
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
    """Checks the memory of this process until it is cancelled.

    Args:
        limit: The memory budget, in bytes.
        message_bytes: The most bytes that the end of one silent stream may free.
        resident: Returns the memory that this process takes, in bytes; 0: unknown.
        end_silent: Ends a number of silent streams, or all if there are fewer.
        look_s: Seconds between two checks.
    """
    base = resident()
    while base:
        await asyncio.sleep(look_s)
        excess = resident() - base - limit
        if excess > 0:
            logger.warning("%d MiB of memory beyond --memory-budget are in use", excess >> 20)
            end_silent(1 + excess // message_bytes)
