"""`Trial` is one training of a sweep; `ranked` orders trials, the best one first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from treadle.client.sweep.search_space import Value
from treadle.client.sweep.spec import Metric

TrialState = Literal[
    "queued", "running", "paused", "succeeded", "pruned", "cancelled", "failed", "refused"
]
"""The state of a trial: that of its job, unless the sweep has stopped it (`pruned`), or the server
has refused it."""

OPEN_STATES = ("queued", "running", "paused")


class Validation(NamedTuple):
    """One validation of a trial."""

    step: int
    """The training step."""
    loss: float
    """The validation loss, in nats per token."""
    bits_per_character: float | None
    """The same in bits per character; None where it is not known."""

    def value(self, metric: Metric) -> float:
        """Returns what trials are compared by; not a number where it is not known."""
        if metric != "bits_per_character":
            return self.loss
        return math.nan if self.bits_per_character is None else self.bits_per_character


@dataclass
class Trial:
    """One training of a sweep.

    Of a trial that was stopped, only the validations up to that point count, whatever its job did
    until it had ended. So its result does not depend on how fast it was stopped.
    """

    number: int
    """Its number, from 1."""
    parameters: Mapping[str, Value]
    """The settings that the sweep has chosen."""
    job: str = ""
    """The id of its job; empty if the server has refused it."""
    state: TrialState = "queued"
    reason: str = ""
    """Why it failed or was cancelled, in a sentence; empty otherwise."""
    version: int = 0
    """The version of the model that it has made; 0: none."""
    validations: list[Validation] = field(default_factory=list)
    pruned_after: int = 0
    """The number of the validation after which it was stopped; 0: it was not."""
    judged: int = 0
    """How many validations the rule that stops trials has seen."""
    stored_loss: float | None = None
    """The loss of the stored model on the whole validation part; None where it is not known."""
    step: int = 0
    """The training steps done."""
    total_steps: int = 0
    """The training steps planned; 0 if they are not known."""
    time_left_s: float | None = None
    """The time that it will take, as the server estimates it."""
    is_over: bool = False
    """Whether its job has ended, or the server has refused it."""
    is_settled: bool = False
    """Whether it is over and nothing can change its result."""

    @property
    def counted(self) -> list[Validation]:
        """The validations that count."""
        return self.validations[: self.pruned_after or None]

    def best(self, metric: Metric) -> Validation | None:
        """Returns the best validation so far, the first one of several; None without any."""
        finite = [each for each in self.counted if math.isfinite(each.value(metric))]
        return min(finite, key=lambda each: each.value(metric), default=None)

    def value(self, metric: Metric) -> float | None:
        """Returns what it is compared by; None where it has no finite loss."""
        if metric == "valid_loss" and self.state == "succeeded":
            known = self.stored_loss is not None and math.isfinite(self.stored_loss)
            return self.stored_loss if known else None
        best = self.best(metric)
        return None if best is None else best.value(metric)


def ranked(trials: Iterable[Trial], metric: Metric) -> list[Trial]:
    """Returns trials in the order of their rank.

    First come those that came to their end, were cancelled or are still open, by their value; then
    those that were stopped as hopeless, by theirs; then those without a value. Of equal ones the
    earlier trial comes first.
    """

    def key(trial: Trial) -> tuple[int, float, int]:
        value = trial.value(metric)
        if value is None:
            return 2, 0.0, trial.number
        return int(trial.state == "pruned"), value, trial.number

    return sorted(trials, key=key)
