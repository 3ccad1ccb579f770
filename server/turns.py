"""Long work in short steps: a turn at a time, and no further once nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from treadle.server.scheduler import Caller


async def run_steps(caller: Caller, steps: Iterator[object]) -> None:
    """Takes all steps of an iterator, in the turns of a caller.

    Args:
        caller: Whose turns they are.
        steps: Takes a step of a few milliseconds each time. When this call is cancelled it takes
            no other one, and may be dropped.

    Raises:
        BaseException: What a step raised.
    """
    gone = threading.Event()

    def go_on(turn_s: float) -> bool:
        until = time.monotonic() + turn_s
        while not gone.is_set():
            if next(steps, gone) is gone:
                return True
            if time.monotonic() >= until:
                break
        return False

    try:
        while not await caller.run(go_on):
            pass
    finally:
        gone.set()
