"""The newest events of a job, for all who watch it: none of them asks the database again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.v1 import sequence_pb2 as pb

_MOST_EVENTS = 64

_MOST_BYTES = 1 << 18


class EventTail:
    """The last few events of one job, the same objects for everybody.

    Who reads more slowly than they come reads what is no longer here from the database.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[pb.JobEvent, int]] = deque()
        self._size = 0

    def add(self, event: pb.JobEvent, most_bytes: int | None = None) -> None:
        """Adds the next event; nobody may change it from now on.

        Args:
            event: The event, which is kept however large it is.
            most_bytes: What it and those before it may take; None: as much as it ever is.
        """
        most_bytes = _MOST_BYTES if most_bytes is None else most_bytes
        size = event.ByteSize()
        self._events.append((event, size))
        self._size += size
        while len(self._events) > _MOST_EVENTS or (
            self._size > most_bytes and len(self._events) > 1
        ):
            self._size -= self._events.popleft()[1]

    def after(self, number: int) -> list[pb.JobEvent] | None:
        """Returns the events after the one of a number; None where some are no longer here."""
        if not self._events or self._events[0][0].sequence > number + 1:
            return None
        return [event for event, _ in self._events if event.sequence > number]
