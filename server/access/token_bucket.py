"""`TokenBucket` holds a caller to its tokens per minute."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

BURST_S = 2.0
"""Seconds whose tokens may be used at once after a pause. A minute has at most 3.3 % more tokens
than the quota because of it."""

_FOREVER_S = 1e7
"""Seconds that a call waits where no token is ever allowed; it ends by its own time limit."""


class TokenBucket:
    """Fills at a constant rate, and may be overdrawn; only for the event loop.

    A call may begin while there are tokens. What it then uses is taken in any case: a running call
    waits until the bucket has filled up again, and so do new ones.

    Args:
        clock: Returns the time in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._rate = math.inf
        self._level = 0.0
        self._seen_s = clock()

    def limit(self, tokens_per_minute: int | None) -> None:
        """Sets the rate; None: no limit. A new rate keeps the debt."""
        rate = math.inf if tokens_per_minute is None else tokens_per_minute / 60
        if rate == self._rate:
            return
        level = self.level
        was_unlimited = math.isinf(self._rate)
        self._rate = rate
        self._level = self._most if was_unlimited else min(level, self._most)
        self._seen_s = self._clock()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return not math.isinf(self._rate)

    @property
    def _most(self) -> float:
        return max(1.0, self._rate * BURST_S) if self._rate else 0.0

    @property
    def level(self) -> float:
        """Tokens that may be used at once; below 0: the debt; infinite without a limit."""
        if not self.is_limited:
            return math.inf
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._seen_s) * self._rate)
        self._seen_s = now
        return self._level

    @property
    def is_full(self) -> bool:
        """Whether nothing was used for a while."""
        return not self.is_limited or self.level >= self._most

    @property
    def wait_s(self) -> float:
        """Seconds until a call may begin; 0 where it may now."""
        level = self.level
        if level > 0:
            return 0.0
        return (1 - level) / self._rate if self._rate else math.inf

    def take(self, tokens: int) -> None:
        """Takes tokens, or gives some back where the number is negative."""
        if self.is_limited:
            self._level = min(self._most, self.level - tokens)

    async def pay(self, tokens: int) -> None:
        """Takes tokens and waits until they are there; those who pay earlier are served first.

        A call that is cancelled meanwhile gets its tokens back, since it does not use them.
        """
        self.take(tokens)
        debt = -self.level
        if debt <= 0:
            return
        try:
            await self._sleep(debt / self._rate if self._rate else _FOREVER_S)
        except asyncio.CancelledError:
            self.take(-tokens)
            raise
