"""`Comparison` is one figure by a formula and by the simulation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOTABLE = 0.05
"""From this difference on a line is explained."""


@dataclass(frozen=True)
class Comparison:
    """A figure by both ways."""

    name: str
    """What it is."""
    unit: str
    """Its unit."""
    formula: float
    """What the formula says."""
    simulation: float
    """What happened."""
    why: str
    """Why the two may differ by more than chance."""
    error: float = math.nan
    """The standard error of what happened; NaN: unknown."""

    @property
    def difference(self) -> float:
        """By how much the simulation is above the formula, as a part of it."""
        return self.simulation / self.formula - 1

    @property
    def is_chance(self) -> bool:
        """Whether the difference is within two standard errors."""
        return abs(self.simulation - self.formula) <= 2 * self.error


def standard_error(values: Sequence[float], batches: int = 20) -> float:
    """Returns the standard error of a mean of values that resemble those near them.

    By batch means (Conway, 1963): the means of long pieces are nearly independent.

    Args:
        values: In their order.
        batches: The pieces.
    """
    size = len(values) // batches
    if size < 2:
        return math.nan
    means = [
        statistics.fmean(values[number * size : (number + 1) * size]) for number in range(batches)
    ]
    return statistics.stdev(means) / math.sqrt(batches)
