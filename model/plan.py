"""When a run ends, validates and how far it is; the settings with their defaults filled in."""

from __future__ import annotations

import math
from dataclasses import replace

from treadle.model.batches import Batches
from treadle.model.config import LimitsConfig, TrainConfig

DEFAULT_EPOCHS = 10.0
DEFAULT_STEPS = (300, 20_000)
"""The fewest and the most steps that a run without limits gets."""
VALIDATIONS = 10
"""Validations of a run that does not say how often."""
DEFAULT_WARMUP_STEPS = 100


class Plan:
    """When a run ends, validates and how far it is, from its limits."""

    def __init__(self, config: TrainConfig, batches: Batches) -> None:
        limits = config.limits
        steps = [limits.max_steps] if limits.max_steps is not None else []
        if limits.max_epochs is not None:
            per_epoch = batches.batches_in(0)
            steps.append(max(1, math.ceil(limits.max_epochs * per_epoch)))
        self.total_steps = min(steps) if steps else None
        self._by_epochs = self.total_steps != limits.max_steps
        self._limits = limits
        self._interval = config.report.validation_interval_steps
        shorter = (self.total_steps or DEFAULT_WARMUP_STEPS * 10) // 10
        given = config.optimizer.warmup_steps
        self.warmup_steps = min(DEFAULT_WARMUP_STEPS, shorter) if given is None else given

    def over(self, steps: int, elapsed: float) -> str:
        """Why the run is over, in a sentence; empty while it is not."""
        if self.total_steps is not None and steps >= self.total_steps:
            name = "max_epochs" if self._by_epochs else "max_steps"
            return f"{name} reached after {steps} steps"
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

    def validation_due(self, steps: int, share: float, validated_at: float) -> bool:
        """Whether the model is to be examined now."""
        if self._interval is not None:
            return steps % self._interval == 0
        return share - validated_at >= 1 / VALIDATIONS


def fill_in(
    config: TrainConfig, batches: Batches
) -> tuple[TrainConfig, tuple[str, ...]]:  # fmt: skip
    """Return the settings with every default filled in, and what was chosen."""
    notices: tuple[str, ...] = ()
    limits = config.limits
    if limits == LimitsConfig():
        fewest, most = DEFAULT_STEPS
        steps = math.ceil(DEFAULT_EPOCHS * batches.batches_in(0))
        limits = LimitsConfig(max_steps=min(max(steps, fewest), most))
        notices = (f"no limit given: training for {limits.max_steps:,} steps",)
    data = replace(config.data, batch_size=batches.batch_size, window=batches.window)
    filled = replace(config, limits=limits, data=data)
    plan = Plan(filled, batches)
    optimizer = replace(
        config.optimizer, learning_rate=config.optimizer.rate, warmup_steps=plan.warmup_steps
    )
    tokenizer = replace(config.tokenizer, unknown_policy=config.tokenizer.policy)
    return replace(filled, optimizer=optimizer, tokenizer=tokenizer), notices
