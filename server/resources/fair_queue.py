"""`FairQueue` holds work that waits, and gives it out one caller after the other."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Work that waits. Callers take turns; of one caller's work the smallest goes first.

    So a caller waits for one piece of work of each other caller, whatever these have sent.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, Item]]] = {}  # callers in their order
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        """Whether any work waits."""
        return bool(self._waiting)

    def put(self, owner: str, item: Item, size: int = 0) -> None:
        """Adds a piece of work.

        Args:
            owner: The name of the caller for whom it is.
            item: The work.
            size: Smaller ones go first; equal ones go in order.
        """
        heapq.heappush(self._waiting.setdefault(owner, []), (size, next(self._numbers), item))

    def pop(self) -> Item:
        """Removes the piece of work that goes next, and returns it; there must be one."""
        owner = next(iter(self._waiting))
        items = self._waiting.pop(owner)
        _, _, item = heapq.heappop(items)
        if items:
            self._waiting[owner] = items  # behind the other callers
        return item
