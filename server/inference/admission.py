"""How many calls the server takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from treadle.server.errors import exhausted
from treadle.server.inference.stream_places import StreamPlaces

_RETRY_S = 1.0


class Admission:
    """Counts what is running, and refuses what does not fit.

    Args:
        limit: How much may run at once.
        what: What it is, in the plural, as the refusal says it.
        check: Called first; raises a StatusError where nothing may be admitted.
    """

    def __init__(self, limit: int, what: str, check: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self._what = what
        self._check = check
        self.running = 0
        """What was admitted and is not over yet."""

    @contextmanager
    def admit(self, count: int = 1) -> Iterator[None]:
        """Holds places for as long as it is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: there are not that many; or what `check` raises.
        """
        self._check()
        if self.running + count > self.limit:
            message = f"{self.running} {self._what} are running; {count} more do not fit"
            raise exhausted(message, _RETRY_S)
        self.running += count
        try:
            yield
        finally:
            self.running -= count


@dataclass(frozen=True)
class Load:
    """What the server counts."""

    calls: Admission
    """Calls that generate, score and embed, but for streams."""
    sessions: Admission
    """Texts being generated."""
    streams: StreamPlaces
    """Streams that are scored."""
    learners: StreamPlaces
    """Streams that are learned from."""


@dataclass(frozen=True)
class Inquiries:
    """What the server counts of calls that ask what there is."""

    lists: Admission
    """Lists being made."""
    watchers: Admission
    """Calls that watch jobs."""
    orders: Admission
    """Calls that bring a job and follow it."""
