"""`Admission` counts what all callers run at once, and refuses what would be too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from treadle.server.access.quota_book import QuotaBook
from treadle.server.errors import exhausted
from treadle.server.inference.open_streams import OpenStreams

_RETRY_S = 1.0


class Admission:
    """Counts calls, or texts, of one kind.

    Args:
        limit: How many may run at once.
        what: What they are, in the plural, as the refusal says it.
        check: Called first; raises a StatusError where nothing may be admitted.
    """

    def __init__(self, limit: int, what: str, check: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self._what = what
        self._check = check
        self.running = 0
        """How many were admitted and are not over yet."""

    @contextmanager
    def admit(self, count: int = 1) -> Iterator[None]:
        """Counts `count` more for as long as the context is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: that would be more than may run; or the error that
                `check` raises.
        """
        self._check()
        if self.running + count > self.limit:
            # What others run is for admins to know.
            message = f"at most {self.limit} {self._what} run at once; {count} more do not fit now"
            raise exhausted(message, _RETRY_S)
        self.running += count
        try:
            yield
        finally:
            self.running -= count


@dataclass(frozen=True)
class InferenceAdmission:
    """The limits of calls that compute."""

    calls: Admission
    """Calls that generate, score and embed, except for streams."""
    sequences: Admission
    """Texts being generated."""
    streams: OpenStreams
    """Streams that are scored."""
    learning_streams: OpenStreams
    """Streams that a model learns from."""
    quotas: QuotaBook
    """What every caller uses."""


@dataclass(frozen=True)
class ControlAdmission:
    """The limits of calls that list, watch and submit."""

    lists: Admission
    """Calls that list."""
    watchers: Admission
    """Calls that watch jobs."""
    submissions: Admission
    """Calls that submit a job and follow it."""
