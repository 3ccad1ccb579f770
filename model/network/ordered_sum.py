"""Sums whose bits say only what was added and in which order."""

from __future__ import annotations

from collections.abc import Iterable


def in_order(values: Iterable[float], start: float = 0.0) -> float:
    """Adds up from left to right in float64.

    NumPy's sum is pairwise and Python's compensates since 3.12; this one may be cut anywhere, the
    sum so far being the next part's `start`, and so a stream adds up to what the whole does.

    Args:
        values: What to add.
        start: The sum so far.
    """
    total = start
    for value in values:
        total += value
    return total
