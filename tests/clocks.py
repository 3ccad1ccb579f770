"""A clock that advances only when a test says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from treadle.model.generation import deadline


class DayClock:
    """A time of day and seconds that never jump; both stand still until they are moved."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        """The time of day, in seconds since the epoch; set it to let it jump."""
        self.at_s = 1000.0
        """Seconds that never jump."""

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.at_s

    def pass_s(self, seconds: float) -> None:
        """Lets time pass."""
        self.now_s += seconds
        self.at_s += seconds


class StillClock:
    """The clock of deadlines; it stands still until `now` is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        # Theirs alone: the event loop goes by the same one otherwise.
        monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: self.now))
