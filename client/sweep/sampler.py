"""`Sampler` chooses the settings of a trial; `make_sampler` returns that of a sweep's method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from treadle.client.sweep.median_rule import MedianRule, running_best
from treadle.client.sweep.search_space import Value, share_of
from treadle.client.sweep.spec import SweepSpec
from treadle.client.sweep.trial import Trial


class Sampler(Protocol):
    """Chooses settings, and says which trials are hopeless; both only from what it is given."""

    def choose(
        self, number: int, settled: Sequence[Trial], pending: Sequence[Trial]
    ) -> Mapping[str, Value]:
        """Returns the settings of a trial.

        Args:
            number: Its number, from 1.
            settled: The trials whose results count, in their order.
            pending: The later trials before it, whose results do not count yet.
        """

    def is_hopeless(self, trial: Trial, validations: int, settled: Sequence[Trial]) -> bool:
        """Returns whether a trial is to be stopped.

        Args:
            trial: The trial.
            validations: How many of its validations count.
            settled: The trials that it is compared with.
        """


class PlainSampler:
    """Chooses settings by a grid or at random.

    Args:
        spec: The sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._rule = MedianRule(spec.prune_after_trials, spec.prune_after_validations)
        self._seen = 0
        self._others: list[list[float]] = []
        self._grid: dict[str, Sequence[Value]] = {}
        if spec.method == "grid":
            self._grid = {name: values.grid() for name, values in spec.search.items()}

    def choose(
        self, number: int, settled: Sequence[Trial], pending: Sequence[Trial]
    ) -> Mapping[str, Value]:
        """Returns the settings of a trial, whatever the others were."""
        if self._grid:
            return self._combination(number)
        return {
            name: values.at(share_of(self._spec.seed, number, name))
            for name, values in self._spec.search.items()
        }

    def _combination(self, number: int) -> Mapping[str, Value]:
        """Returns a combination of the grid, in which the last setting changes every time."""
        place = number - 1
        chosen: dict[str, Value] = {}
        for name, values in reversed(self._grid.items()):
            place, index = divmod(place, len(values))
            chosen[name] = values[index]
        return {name: chosen[name] for name in self._grid}

    def is_hopeless(self, trial: Trial, validations: int, settled: Sequence[Trial]) -> bool:
        """Returns whether the rule of medians stops a trial."""
        # The first trials are the same ones each time, and there may be thousands.
        if len(settled) < self._seen:
            self._seen = 0
            self._others = []
        ended = [each for each in settled[self._seen :] if each.state == "succeeded"]
        self._others += [self._best(each, len(each.counted)) for each in ended]
        self._seen = len(settled)
        return self._rule.is_hopeless(self._best(trial, validations), self._others)

    def _best(self, trial: Trial, validations: int) -> list[float]:
        """Returns the best value of a trial after each of its first validations."""
        counted = trial.validations[:validations]
        return running_best(each.value(self._spec.metric) for each in counted)


def make_sampler(spec: SweepSpec) -> Sampler:
    """Returns what chooses the settings of a sweep.

    Raises:
        InputError: The sweep needs a package that is not installed.
    """
    if spec.method != "tpe":
        return PlainSampler(spec)
    from treadle.client.sweep.tpe_sampler import TpeSampler

    return TpeSampler(spec)
