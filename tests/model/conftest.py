"""Fixtures of the tests of the model."""

from __future__ import annotations

import pytest

import treadle.model.training.trainer as trainer_module


class Clock:
    """Stands in for `time`: every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes exactly one second."""
    monkeypatch.setattr(trainer_module, "time", Clock())
