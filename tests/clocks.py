"""Time that passes only where a test says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from treadle.model import deadline


class StillClock:
    """The clock of deadlines; it stands still until `now` is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        # Theirs alone: the event loop goes by the same one otherwise.
        monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: self.now))
