"""`in_order` adds numbers in a fixed order, so that the bits of the sum depend on nothing else."""

from __future__ import annotations

from collections.abc import Iterable


def in_order(values: Iterable[float], start: float = 0.0) -> float:
    """Adds up numbers from left to right in float64.

    NumPy's sum is pairwise, and Python's compensates rounding since 3.12. This sum may be cut
    anywhere, with the sum so far as the next part's `start`: the parts of a stream add up to the
    same bits as the whole.

    Args:
        values: The numbers to add.
        start: The sum so far.

    Returns:
        The sum.
    """
    total = start
    for value in values:
        total += value
    return total
