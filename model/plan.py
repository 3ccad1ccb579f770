"""When a run ends, validates and how far it is; the settings with their defaults filled in."""

from __future__ import annotations

import math
from dataclasses import replace

from treadle.model.batches import Batches
from treadle.model.config import LimitsConfig, TrainConfig
from treadle.model.corpus import Corpus

DEFAULT_EPOCHS = 10.0
DEFAULT_STEPS = (300, 20_000)
"""The fewest and the most steps that a run without limits gets."""
MAX_STEPS = 2**53
"""More than any run makes: so many are planned where epochs come to even more."""
VALIDATIONS = 10
"""Validations of a run that does not say how often."""
DEFAULT_WARMUP_STEPS = 100

_NOTHING_TO_DROP = (
    "dropout {!r} has nothing to act on: it acts between layers, and the network has one; "
    "set layers to 2 or more"
)


class Plan:
    """When a run ends, validates and how far it is, from its limits."""

    def __init__(self, config: TrainConfig, batches: Batches) -> None:
        limits = config.limits
        steps = {} if limits.max_steps is None else {"max_steps": limits.max_steps}
        if limits.max_epochs is not None:
            asked = min(limits.max_epochs * batches.batches_in(0), MAX_STEPS)
            steps["max_epochs"] = math.ceil(asked * (1 - 1e-12))  # 1.1 * 10 is above 11
        self._nearest = min(steps, key=lambda name: steps[name], default="")
        self.total_steps = steps.get(self._nearest)
        self._limits = limits
        self._interval = config.report.validation_interval_steps
        shorter = (self.total_steps or DEFAULT_WARMUP_STEPS * 10) // 10
        given = config.optimizer.warmup_steps
        self.warmup_steps = min(DEFAULT_WARMUP_STEPS, shorter) if given is None else given

    def over(self, steps: int, elapsed: float) -> str:
        """Why the run is over, in a sentence; empty while it is not."""
        if self.total_steps is not None and steps >= self.total_steps:
            return f"{self._nearest} reached after {steps} steps"
        if self._limits.max_time_s is not None and elapsed >= self._limits.max_time_s:
            return f"max_time_s reached after {steps} steps"
        return ""

    def progress(self, steps: int, elapsed: float) -> float:
        """The share of the run that is done, 0 to 1."""
        by_steps = steps / self.total_steps if self.total_steps else 0.0
        by_time = elapsed / self._limits.max_time_s if self._limits.max_time_s else 0.0
        return min(1.0, max(by_steps, by_time))

    def time_left(self, steps: int, elapsed: float) -> float | None:
        """Seconds until the nearest limit."""
        left = []
        if self.total_steps is not None and steps:
            left.append((self.total_steps - steps) * elapsed / steps)
        if self._limits.max_time_s is not None:
            left.append(max(0.0, self._limits.max_time_s - elapsed))
        return min(left) if left else None

    def part(self, steps: int, elapsed: float) -> int:
        """The parts of the run that are done; after each the model is examined."""
        if self._interval is not None:
            return steps // self._interval
        return int(self.progress(steps, elapsed) * VALIDATIONS)


def fill_in(
    config: TrainConfig, corpus: Corpus, batches: Batches
) -> tuple[TrainConfig, tuple[str, ...]]:  # fmt: skip
    """Return the settings with every default filled in, and what was chosen."""
    notices: tuple[str, ...] = ()
    limits = config.limits
    if limits == LimitsConfig():
        fewest, most = DEFAULT_STEPS
        steps = math.ceil(DEFAULT_EPOCHS * batches.batches_in(0))
        limits = LimitsConfig(max_steps=min(max(steps, fewest), most))
        notices = (f"no limit given: training for {limits.max_steps:,} steps",)
    network = config.network
    if network.dropout and network.layers == 1:
        notices = (*notices, _NOTHING_TO_DROP.format(network.dropout))
    data = replace(
        config.data, layout=corpus.layout, batch_size=batches.batch_size, window=batches.window
    )
    filled = replace(config, limits=limits, data=data)
    plan = Plan(filled, batches)
    optimizer = replace(
        config.optimizer, learning_rate=config.optimizer.rate, warmup_steps=plan.warmup_steps
    )
    used = corpus.tokenizer.config  # a corpus that was given as read brings its own
    tokenizer = replace(used, unknown_policy=used.policy)
    return replace(filled, optimizer=optimizer, tokenizer=tokenizer), notices
