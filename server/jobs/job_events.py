"""`EventTail` keeps the newest events of a job in memory for all who watch it.

Without it every watcher would read every event from the database.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.v1 import sequence_pb2 as pb

_MOST_EVENTS = 64

_MOST_BYTES = 1 << 18


class EventTail:
    """The last few events of one job, shared by its watchers.

    A watcher that falls behind reads the events that are no longer here from the database.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[pb.JobEvent, int]] = deque()
        self._size = 0

    def add(self, event: pb.JobEvent, most_bytes: int | None = None) -> None:
        """Adds the next event, which must not change from now on.

        Args:
            event: The event, which is kept whatever its size.
            most_bytes: Bytes that all kept events may take; None: 256 KiB.
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
        """Returns the events after number `number`; None where some of them are no longer here."""
        if not self._events or self._events[0][0].sequence > number + 1:
            return None
        return [event for event, _ in self._events if event.sequence > number]
