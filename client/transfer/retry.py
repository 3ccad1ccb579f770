"""`Retry` says how long to wait before a call whose connection broke is made again."""

from __future__ import annotations

import time
from collections.abc import Callable

from treadle.client.errors import ServerError

RETRY_S = 60.0
"""Default of `retry_s`: how long a transfer tries to reconnect."""

_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0
"""The pause between two attempts doubles from first to last, in seconds."""


class Retry:
    """The attempts of one transfer.

    Args:
        retry_s: How long to try without success, in seconds; 0 never tries again.
        on_break: Called with the error of a broken connection, once before the attempts.
    """

    def __init__(self, retry_s: float, on_break: Callable[[ServerError], None]) -> None:
        self._retry_s = retry_s
        self._on_break = on_break
        self._end: float | None = None
        self._pause = _FIRST_PAUSE_S

    def succeeded(self) -> None:
        """Notes that something has arrived: the next attempts have all of the time again."""
        self._end = None
        self._pause = _FIRST_PAUSE_S

    def wait(self, error: ServerError) -> None:
        """Waits before the next attempt.

        Args:
            error: The error of the last one.

        Raises:
            ServerError: The error, if the connection did not break or the time is over.
        """
        if not error.broken:
            raise error
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._retry_s
            if self._retry_s > 0:
                self._on_break(error)
        left = self._end - now
        if left <= 0:
            raise error
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, _LAST_PAUSE_S)


def ignore(error: ServerError) -> None:
    """Ignores a broken connection: the default of `on_break`."""
