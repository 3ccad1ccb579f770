"""`Deadline` is the time at which a call has to end, however far it has come."""

from __future__ import annotations

import time


class Deadline:
    """A time after which no more work begins.

    Args:
        limit_s: Seconds from now; None: the call has no such time.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._end_s = None if limit_s is None else time.monotonic() + limit_s

    @property
    def left_s(self) -> float | None:
        """Seconds until then, at least 0; None without a limit."""
        return None if self._end_s is None else max(0.0, self._end_s - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.left_s == 0.0


NEVER = Deadline()
"""The deadline of a call without a limit."""
