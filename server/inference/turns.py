"""Long work in short steps: a turn at a time, and no further once nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final, TypeVar

from treadle.server.inference.scheduler import Caller

Item = TypeVar("Item")


class _Ended:
    """Stands for the end of an iterator."""


_ENDED: Final = _Ended()


async def made(caller: Caller, steps: Iterator[Item | None]) -> AsyncGenerator[Item]:
    """Yields what the steps of an iterator make, in the turns of a caller.

    No step is taken ahead: what was made last is the reader's before the next one begins.

    Args:
        caller: Whose turns they are.
        steps: Takes a step of a few milliseconds each time, and gives what it has made, or None.
            When this call is cancelled it takes no other one, and may be dropped.

    Raises:
        BaseException: What a step raised.
    """
    gone = threading.Event()

    def go_on(turn_s: float) -> Item | _Ended | None:
        until = time.monotonic() + turn_s
        while not gone.is_set():
            item = next(steps, _ENDED)
            if item is not None or time.monotonic() >= until:
                return item
        return None

    try:
        while not isinstance(item := await caller.run(go_on), _Ended):
            if item is not None:
                yield item
    finally:
        gone.set()


async def run_steps(caller: Caller, steps: Iterator[object]) -> None:
    """Takes all steps of an iterator, in the turns of a caller; see `made`.

    Args:
        caller: Whose turns they are.
        steps: Takes a step of a few milliseconds each time.

    Raises:
        BaseException: What a step raised.
    """
    async for _ in made(caller, (None for _ in steps)):
        pass
