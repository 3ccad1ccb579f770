"""`Comparison` is one figure by a formula and by the simulation."""

from __future__ import annotations

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
    """Why the two may differ."""

    @property
    def difference(self) -> float:
        """By how much the simulation is above the formula, as a part of it."""
        return self.simulation / self.formula - 1
