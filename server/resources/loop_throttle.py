"""`LoopThrottle` lets a few tasks continue in each round of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque


class LoopThrottle:
    """Lets a number of tasks continue in each round of the event loop, in the order of arrival.

    Otherwise a thousand tasks that one event wakes would send a thousand messages in one round, and
    every other task would wait for that.

    Args:
        at_once: How many tasks continue in one round.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def wait_turn(self) -> None:
        """Waits until it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        await place

    def _turn(self) -> None:
        """Starts a round."""
        passed = self._at_once - self._left
        self._left = self._at_once
        while self._left and self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # a cancelled task needs no turn
                place.set_result(None)
                self._left -= 1
        self._turning = bool(passed or self._waiting or self._left < self._at_once)
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
