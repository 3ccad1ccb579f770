"""`Retry` says how long to wait before a call whose connection broke is made again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from treadle.client.errors import ServerError

RECONNECT_S = 60.0
"""Default of `reconnect_s` and `retry_s`: how long to try to reconnect."""

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
"""The pause between two attempts doubles from first to last, in seconds. Each is shortened by up to
half at random, so that clients whose server has gone do not come to the next one together."""


class Retry:
    """The attempts to make a call, or to continue a transfer, a training run or a generation.

    Args:
        retry_s: How long to try without success, in seconds; 0 never tries again.
        on_break: Called with the error of a broken connection, once before the attempts.
        timeout_s: The longest that all calls together may take, in seconds; None: no limit.
        heeds_full: Whether a server that is full and says when to come again is asked again even
            if no connection has broken before.
        stopped: Ends the wait, and all later ones, once it is set. Default: `stop` alone does.
    """

    def __init__(
        self,
        retry_s: float,
        on_break: Callable[[ServerError], None],
        timeout_s: float | None = None,
        *,
        heeds_full: bool = False,
        stopped: threading.Event | None = None,
    ) -> None:
        self._retry_s = retry_s
        self.on_break = on_break
        """Called with the error of a broken connection, once before the attempts."""
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._end: float | None = None
        self._pause = FIRST_PAUSE_S
        self._heeds_full = heeds_full
        self._stopped = stopped or threading.Event()

    @property
    def left_s(self) -> float | None:
        """Seconds that are left of `timeout_s`; None: there is no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def is_retrying(self) -> bool:
        """Whether the connection broke, and nothing has arrived since."""
        return self._end is not None

    def succeeded(self) -> None:
        """Notes that something has arrived: the next attempts have all of the time again."""
        self._end = None
        self._pause = FIRST_PAUSE_S

    def stop(self) -> None:
        """Ends the wait of another thread, and all later ones at once."""
        self._stopped.set()

    def wait(self, error: ServerError) -> bool:
        """Waits before the next attempt.

        Once the connection has broken, a server that is full ends the attempts only if it does not
        say when to come again: it may be about to take over the calls of another one.

        Args:
            error: The error of the last one.

        Returns:
            Whether to try again; False once `stop` was called.

        Raises:
            ServerError: The error, if the connection did not break or the time is over.
        """
        delay = error.retry_delay_s if self.is_retrying or self._heeds_full else None
        if not error.broken and delay is None:
            raise error
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._retry_s
            if self._retry_s > 0:
                self.on_break(error)
        left = self._end - now
        pause = self._pause * random.uniform(0.5, 1.0)
        if delay is not None:
            pause = max(pause, min(delay, LAST_PAUSE_S))
        if left <= 0 or (self._deadline is not None and self._deadline - now <= pause):
            raise error
        self._pause = min(2 * self._pause, LAST_PAUSE_S)
        return not self._stopped.wait(min(pause, left))


def ignore(error: ServerError) -> None:
    """Ignores a broken connection: the default of `on_break`."""
