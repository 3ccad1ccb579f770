"""`MedianRule` stops trials that are worse than the median of earlier ones at the same point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


class MedianRule:
    """The rule for grids and random search, after Golovin et al., "Google Vizier" (KDD 2017).

    A trial is hopeless if its best validation so far is worse than the median of what the trials
    that it is compared with had reached after as many validations.

    Args:
        after_trials: It stops nothing before so many trials have come to their end.
        after_validations: It stops no trial with no more validations than these.
    """

    def __init__(self, after_trials: int, after_validations: int) -> None:
        self._after_trials = after_trials
        self._after_validations = after_validations

    def is_hopeless(self, values: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Returns whether a trial is to be stopped now.

        Args:
            values: Its values, validation by validation; less is better.
            others: Those of the trials that came to their end.
        """
        count = len(values)
        if count <= self._after_validations:
            return False
        compared = [_best(each[:count]) for each in others if len(each) >= count]
        if len(compared) < self._after_trials:
            return False
        return _best(values) > median(compared)


def _best(values: Sequence[float]) -> float:
    """Returns the least of the finite values; infinity without any."""
    return min((value for value in values if math.isfinite(value)), default=math.inf)
