"""`Samples` summarizes raw samples; `ratio` and `geomean` compare them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """One figure, measured several times."""

    values: tuple[float, ...]
    """In the order measured; at least one."""

    @property
    def median(self) -> float:
        """The middle value: what every ratio is made of."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the least to the largest, in units of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    def as_json(self) -> dict[str, Any]:
        """Returns the figure with everything that it came from."""
        return {"median": self.median, "spread": self.spread, "samples": list(self.values)}


def ratio(ours: Samples | None, other: Samples | None) -> float | None:
    """Returns ours / other, of the medians; None where either was not measured."""
    if ours is None or other is None or not other.median:
        return None
    return ours.median / other.median


def known(values: Iterable[float | None]) -> list[float]:
    """Returns the values that were measured."""
    return [value for value in values if value is not None]


def least(values: Iterable[float | None]) -> float | None:
    """Returns the least of the measured values; None if nothing was measured."""
    return min(known(values), default=None)


def geomean(values: Iterable[float | None]) -> float | None:
    """Returns the geometric mean of the measured values; None if nothing was measured."""
    measured = known(values)
    if not measured:
        return None
    return math.exp(math.fsum(math.log(value) for value in measured) / len(measured))
