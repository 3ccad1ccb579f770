"""How many bytes the server keeps for its callers at once.

Whoever keeps bytes for a caller reserves them here: a request being worked off, unread replies, a
loaded model, a learner. What does not fit is refused before it takes memory. Sizes are estimates of
what the process really keeps, so the sum is about what a burst adds to its memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType

import grpc

from treadle.server.errors import StatusError, exhausted

_RETRY_S = 1.0

_LOOK_S = 0.05
"""Who waits for room looks as often."""

_SMALL_PART = 1024
"""A reservation of at most this part of the limit is small: it may use all of the limit."""

_SPARE_PART = 8
"""This part of the limit is left to small reservations, so that a few large requests do not shut
out ordinary ones."""


_WAITING_PART = 4
"""This part of the limit may be kept by those that wait for room, beside what is held."""


class Reservation:
    """Bytes held in a budget, until `release` or the end of a `with` block.

    Args:
        budget: Where they are held.
        what: What they are for, in the plural, as a refusal says it.
    """

    def __init__(self, budget: MemoryBudget, what: str) -> None:
        self._budget = budget
        self._what = what
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes held now."""
        return self._size

    def resize(self, size: int) -> None:
        """Holds `size` bytes from now on. To hold fewer never fails.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: they do not fit; as many as before are held.
        """
        if self._budget._change(self, size):
            raise self._budget._refusal(size, self._what)

    async def resize_patiently(self, size: int, patience_s: float, kept: int = 0) -> None:
        """Does what `resize` does, as soon as there is room for it.

        Args:
            size: Bytes to hold.
            patience_s: Seconds that it may wait.
            kept: Bytes that are kept, and held nowhere, while it waits. All that wait may keep a
                quarter of the limit; those beyond do not wait.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: it never fits, or there was no room for so long.
        """
        budget, until = self._budget, time.monotonic() + patience_s
        waiting = 0
        try:
            while budget._change(self, size):
                is_late = time.monotonic() >= until or size > budget._most(size)
                if is_late or (budget.waiting - waiting + kept) * _WAITING_PART > budget.limit:
                    raise budget._refusal(size, self._what)
                budget.waiting += kept - waiting
                waiting = kept
                await asyncio.sleep(_LOOK_S)
        finally:
            budget.waiting -= waiting

    def release(self) -> None:
        """Holds nothing any more; may be called again."""
        self.resize(0)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class MemoryBudget:
    """Counts bytes that are kept for callers, and refuses what does not fit. Thread-safe.

    An eighth of the limit is left to reservations of at most a 1,024th of it.

    Args:
        limit: Bytes that may be held at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes that may be held at once."""
        self.waiting = 0
        """Bytes that are kept by those that wait for room; changed in one thread only."""
        self._used = 0
        # The collector may end something that holds bytes in the thread that is at it here.
        self._lock = threading.RLock()
        self._frees: list[Callable[[int], None]] = []

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def reserve(self, size: int, what: str) -> Reservation:
        """Holds bytes until the reservation is released; it is a context manager too.

        Args:
            size: How many bytes.
            what: What they are for, in the plural, such as "learning streams".

        Returns:
            The reservation.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: with RetryInfo where they do not fit now, without it
                where they never will.
        """
        held = Reservation(self, what)
        held.resize(size)
        return held

    def on_shortage(self, free: Callable[[int], None]) -> None:
        """Has something called before a reservation is refused.

        Args:
            free: Given the bytes that are missing; releases what can be spared. It is called in the
                thread that reserves.
        """
        self._frees.append(free)

    def _change(self, held: Reservation, size: int) -> int:
        """Changes a reservation; returns how many bytes were missing where that is not possible."""
        most = self._most(size)
        missing = self._take(held, size, most)
        if missing and size <= most:
            for free in self._frees:
                free(missing)
                missing = self._take(held, size, most)
                if not missing:
                    break
        return missing

    def _refusal(self, size: int, what: str) -> StatusError:
        """Returns the error of a reservation that does not fit."""
        most = self._most(size)
        if size > most:
            message = (
                f"{size:,} bytes of memory for {what} are more than the server takes"
                f" ({most:,}); ask for less, or start it with a larger --memory-budget"
            )
            return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        message = (
            f"{size:,} bytes of memory for {what} do not fit now: {self._used:,} of"
            f" {self.limit:,} are in use (--memory-budget)"
        )
        return exhausted(message, _RETRY_S)

    def _most(self, size: int) -> int:
        """Returns up to where the limit may be used by a reservation of a size."""
        is_small = size * _SMALL_PART <= self.limit
        return self.limit if is_small else self.limit - self.limit // _SPARE_PART

    def _take(self, held: Reservation, size: int, most: int) -> int:
        """Changes a reservation; returns how many bytes were missing where that is not possible."""
        with self._lock:
            grown = size - held._size
            missing = self._used + grown - most
            if grown > 0 and missing > 0:
                return missing
            held._size = size
            self._used += grown
            return 0
