"""`MedianRule` stops trials that are worse than the median of earlier ones at the same point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
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

    def is_hopeless(self, best: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Returns whether a trial is to be stopped now.

        Args:
            best: Its best value after each of its validations; less is better.
            others: Those of the trials that came to their end.
        """
        count = len(best)
        if count <= self._after_validations:
            return False
        compared = [each[count - 1] for each in others if len(each) >= count]
        if len(compared) < self._after_trials:
            return False
        return best[-1] > median(compared)


def running_best(values: Iterable[float]) -> list[float]:
    """Returns the least finite value up to each place; infinity before the first one."""
    return list(accumulate((each if math.isfinite(each) else math.inf for each in values), min))
