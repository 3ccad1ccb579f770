"""`MemoryBudget` limits the bytes that the server holds for its callers at once.

Code that holds bytes for a caller reserves them here: for a running request, unread replies, a
loaded model or a learner. A reservation that does not fit is refused before the memory is taken.
Sizes are estimates of the real use, so the sum is about what a burst adds to the process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType

import grpc

from treadle.server.errors import StatusError, exhausted
from treadle.server.telemetry import metrics

_RETRY_S = 1.0

_LOOK_S = 0.05
"""Seconds between two attempts of a reservation that waits."""

_SMALL_PART = 1024
"""A reservation of at most this part of the limit is small: it may use all of the limit."""

_SPARE_PART = 8
"""This part of the limit is left to small reservations, so that a few large requests do not block
ordinary ones."""


_WAITING_PART = 4
"""This part of the limit may be held, in addition, by reservations that wait."""


class Reservation:
    """Bytes held in a budget, until `release` or the end of a `with` block.

    Args:
        budget: The budget.
        what: The purpose of the bytes, in the plural, for messages.
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
        """Changes the size to `size` bytes. A smaller size never fails.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: they do not fit; the size stays as it was.
        """
        if self._budget._change(self, size):
            raise self._budget._refusal(size, self._what)

    async def resize_patiently(self, size: int, patience_s: float, kept: int = 0) -> None:
        """Changes the size as soon as there is memory for it.

        Args:
            size: Bytes to hold.
            patience_s: The most seconds to wait.
            kept: Bytes that the caller keeps while it waits, outside the budget. All callers that
                wait may keep a quarter of the limit; a caller beyond that does not wait.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: it never fits, or did not fit for so long.
        """
        budget = self._budget
        until = time.monotonic() + patience_s
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
        """Releases all bytes; may be called again."""
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
    """Counts bytes held for callers, and refuses reservations that do not fit. Thread-safe.

    An eighth of the limit is left to reservations of at most a 1,024th of it.

    Args:
        limit: The most bytes held at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """The most bytes held at once."""
        self.waiting = 0
        """Bytes kept by reservations that wait; changed in one thread only."""
        self._used = 0
        # The garbage collector may release a reservation in a thread that holds the lock.
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
            what: Their purpose, in the plural, such as "learning streams".

        Returns:
            The reservation.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: with RetryInfo where they do not fit now, without it
                where they never fit.
        """
        held = Reservation(self, what)
        held.resize(size)
        return held

    def check_possible(self, size: int, what: str) -> None:
        """Checks that bytes will fit once there is nothing else, before much work is done.

        Args:
            size: How many bytes.
            what: Their purpose, for messages.

        Raises:
            StatusError: RESOURCE_EXHAUSTED without RetryInfo: they never fit.
        """
        if size > self._most(size):
            raise self._refusal(size, what)

    def on_shortage(self, free: Callable[[int], None]) -> None:
        """Registers a function that is called before a reservation is refused.

        Args:
            free: Takes the number of missing bytes, and releases reservations that are not needed.
                It is called in the thread that reserves.
        """
        self._frees.append(free)

    def _change(self, held: Reservation, size: int) -> int:
        """Changes a reservation; returns the number of missing bytes, 0 where it fits."""
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
        metrics.MEMORY_REFUSALS.inc()
        most = self._most(size)
        if size > most:
            message = (
                f"{size:,} bytes of memory for {what} are more than the server takes"
                f" ({most:,}); ask for less, or start it with a larger --memory-budget"
            )
            return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        message = (
            f"{size:,} bytes of memory for {what} do not fit now into what calls leave free of"
            f" {self.limit:,} (--memory-budget)"
        )
        return exhausted(message, _RETRY_S)

    def _most(self, size: int) -> int:
        """Returns the bytes up to which a reservation of a size may fill the budget."""
        is_small = size * _SMALL_PART <= self.limit
        return self.limit if is_small else self.limit - self.limit // _SPARE_PART

    def _take(self, held: Reservation, size: int, most: int) -> int:
        """Changes a reservation; returns the number of missing bytes, 0 where it fits."""
        with self._lock:
            grown = size - held._size
            missing = self._used + grown - most
            if grown > 0 and missing > 0:
                return missing
            held._size = size
            self._used += grown
            return 0
