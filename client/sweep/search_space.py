"""`Choices` and `Range` are the values of one setting that a sweep may try.

Random values come from a hash and not from a generator with a state: the value of a setting in a
trial depends on nothing but the seed, the trial's number and the setting's name. Numbers are
rounded to six digits, so that they can be read, and so that the last bits of a machine's logarithm
do not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Value: TypeAlias = str | bool | int | float
"""The value of a setting."""

_DIGITS = 6
"""Significant digits of a number that a sweep chooses."""


@dataclass(frozen=True)
class Choices:
    """A list of values."""

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """Returns the value at a share of the list, at least 0 and below 1."""
        return self.values[int(share * len(self.values))]

    def grid(self) -> Sequence[Value]:
        """Returns the values that a grid tries."""
        return self.values

    def to_json(self) -> Any:
        """Returns what distinguishes it from others."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """The numbers between two others, both included."""

    low: float
    high: float
    is_integer: bool
    """Whether only whole numbers are meant."""
    is_log: bool = False
    """Whether each factor is equally likely, and not each difference."""
    step: int = 1
    """The distance of two whole numbers, without `is_log`."""
    points: int = 0
    """How many values a grid tries; 0: every whole number, which a range of fractions lacks."""

    def at(self, share: float) -> Value:
        """Returns the number at a share of the range, at least 0 and below 1."""
        if self.is_integer and not self.is_log:
            count = (int(self.high) - int(self.low)) // self.step + 1
            return int(self.low) + self.step * int(share * count)
        # Half a unit more on both sides: the first and the last number are as likely as others.
        margin = 0.5 if self.is_integer else 0.0
        low = self.low - margin
        high = self.high + margin
        if self.is_log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> int | float:
        """Returns a number as a sweep uses it: rounded, and within the range."""
        whole = round(value) if self.is_integer else float(f"{value:.{_DIGITS}g}")
        bounded = min(max(whole, self.low), self.high)
        return int(bounded) if self.is_integer else float(bounded)

    def grid(self) -> Sequence[Value]:
        """Returns the values that a grid tries, in ascending order."""
        if not self.points:
            return range(int(self.low), int(self.high) + 1, self.step)
        last = self.points - 1
        if self.is_log:
            factor = math.log(self.high) - math.log(self.low)
            found = [math.exp(math.log(self.low) + n / last * factor) for n in range(self.points)]
        else:
            found = [self.low + n / last * (self.high - self.low) for n in range(self.points)]
        return sorted({self.rounded(value) for value in found})

    def to_json(self) -> Any:
        """Returns what distinguishes it from others."""
        return vars(self)


Values: TypeAlias = Choices | Range
"""The values of one setting."""


def share_of(seed: int, trial: int, setting: str) -> float:
    """Returns a random number, at least 0 and below 1, that is always the same for these three."""
    digest = hashlib.sha256(f"{seed} {trial} {setting}".encode()).digest()
    # As many bits as a float holds exactly, so that it is never rounded up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
