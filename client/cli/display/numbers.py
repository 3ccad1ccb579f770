"""`number_text` and `share_text` write numbers for people: short, and never a negative zero."""

from __future__ import annotations

import math

LARGE = 1e6
"""Numbers from this one on are written with an exponent."""


def number_text(value: float, digits: int = 3) -> str:
    """Writes a number with `digits` digits after the point: "1.512", "-0.200", "1.2e+33".

    A number that is not finite is "nan", "inf" or "-inf". A very large one, such as an exploded
    loss, gets an exponent.

    Returns:
        The number as text.
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= LARGE:
        return f"{value:.2g}"
    return f"{value:z.{digits}f}"


def share_text(share: float) -> str:
    """Writes a share as a percentage: "12 %", "less than 0.1 %", "more than 99.9 %"."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "less than 0.1 %"
    if 99.9 < percent < 100:
        return "more than 99.9 %"
    return f"{percent:.3g} %"
