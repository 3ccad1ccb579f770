"""`Plan` computes when a run ends, when it evaluates its model, and how far it has progressed.

`fill_in` fills in the defaults of the settings.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.model.config import LimitsConfig, TrainConfig
    from treadle.model.data.batching import Batches
    from treadle.model.data.corpus import Corpus

DEFAULT_EPOCHS = 10.0
"""Passes of a run without limits."""
DEFAULT_STEPS = (300, 20_000)
"""The fewest and the most steps of a run without limits."""
MAX_STEPS = 2**53
"""Most steps planned; no run makes more."""
VALIDATIONS = 10
"""Default number of evaluations of a run."""
DEFAULT_WARMUP_STEPS = 100
"""Default number of warmup steps."""


class Plan:
    """Derives from the limits when a run ends and evaluates, and how far it has progressed.

    Args:
        config: The settings.
        batches: The batches of the corpus.
    """

    def __init__(self, config: TrainConfig, batches: Batches) -> None:
        limits = config.limits
        together = config.optimizer.accumulation_steps
        steps = {} if limits.max_steps is None else {"max_steps": limits.max_steps}
        if limits.max_epochs is not None:
            asked = min(limits.max_epochs * batches.batches_in(0) / together, MAX_STEPS)
            steps["max_epochs"] = math.ceil(asked * (1 - 1e-12))  # 1.1 * 10 is above 11
        self._nearest = min(steps, key=lambda name: steps[name], default="")
        self.total_steps = steps.get(self._nearest)
        self._limits = limits
        self._interval = config.report.validation_interval_steps
        expected = self.total_steps or DEFAULT_WARMUP_STEPS * 10
        if limits.max_tokens is not None:
            a_step = batches.tokens_per_epoch / batches.batches_in(0) * together
            expected = min(expected, math.ceil(limits.max_tokens / a_step))
        given = config.optimizer.warmup_steps
        self.warmup_steps = min(DEFAULT_WARMUP_STEPS, expected // 10) if given is None else given

    def over(self, steps: int, elapsed: float, tokens: int = 0, wall: float = 0.0) -> str:
        """Returns why the run is over, as a sentence; empty if it is not.

        Args:
            steps: Optimizer steps done.
            elapsed: Seconds of training, including validations.
            tokens: Tokens trained on.
            wall: Wall-clock seconds of the run, everything included.
        """
        limits = self._limits
        met = ""
        if self.total_steps is not None and steps >= self.total_steps:
            met = self._nearest
        elif limits.max_tokens is not None and tokens >= limits.max_tokens:
            met = "max_tokens"
        elif limits.max_time_s is not None and elapsed >= limits.max_time_s:
            met = "max_time_s"
        elif limits.max_wall_time_s is not None and wall >= limits.max_wall_time_s:
            met = "max_wall_time_s"
        return f"{met} reached after {steps} steps" if met else ""

    def progress(self, steps: int, elapsed: float, tokens: int = 0, wall: float = 0.0) -> float:
        """Returns the share of the run that is done, 0 to 1.

        Args:
            steps: Optimizer steps done.
            elapsed: Seconds of training.
            tokens: Tokens trained on.
            wall: Wall-clock seconds of the run.
        """
        limits = self._limits
        share = steps / self.total_steps if self.total_steps else 0.0
        if limits.max_time_s is not None:
            share = max(share, elapsed / limits.max_time_s)
        if limits.max_tokens is not None:
            share = max(share, tokens / limits.max_tokens)
        if limits.max_wall_time_s is not None:
            share = max(share, wall / limits.max_wall_time_s)
        return min(1.0, share)

    def time_left(
        self, steps: int, elapsed: float, tokens: int = 0, wall: float = 0.0
    ) -> float | None:
        """Returns the estimated seconds until the nearest limit; None without an estimate.

        Args:
            steps: Optimizer steps done.
            elapsed: Seconds of training.
            tokens: Tokens trained on.
            wall: Wall-clock seconds of the run.
        """
        left = []
        limits = self._limits
        if self.total_steps is not None and steps:
            left.append((self.total_steps - steps) * elapsed / steps)
        if limits.max_tokens is not None and tokens:
            left.append(max(0, limits.max_tokens - tokens) * elapsed / tokens)
        if limits.max_time_s is not None:
            left.append(max(0.0, limits.max_time_s - elapsed))
        if limits.max_wall_time_s is not None:
            left.append(max(0.0, limits.max_wall_time_s - wall))
        return min(left) if left else None

    def evaluations_due(
        self, steps: int, elapsed: float, tokens: int = 0, wall: float = 0.0
    ) -> int:
        """Returns the number of evaluations that were due so far.

        Args:
            steps: Optimizer steps done.
            elapsed: Seconds of training.
            tokens: Tokens trained on.
            wall: Wall-clock seconds of the run.
        """
        if self._interval is not None:
            return steps // self._interval
        return int(self.progress(steps, elapsed, tokens, wall) * VALIDATIONS)


def fill_in(
    config: TrainConfig, corpus: Corpus, batches: Batches
) -> tuple[TrainConfig, tuple[str, ...]]:
    """Returns the settings with all defaults filled in, and notices about chosen values.

    Args:
        config: The settings as given.
        corpus: The corpus that is trained on.
        batches: Its batches.
    """
    limits, notices = _limits(config, batches)
    data = replace(
        config.data, layout=corpus.layout, batch_size=batches.batch_size, window=batches.window
    )
    filled = replace(config, limits=limits, data=data)
    plan = Plan(filled, batches)
    optimizer = replace(
        config.optimizer, learning_rate=config.optimizer.rate, warmup_steps=plan.warmup_steps
    )
    used = corpus.tokenizer.config  # a corpus that is already read has its own settings
    tokenizer = replace(used, unknown_policy=used.policy)
    return replace(filled, optimizer=optimizer, tokenizer=tokenizer), notices


def _limits(config: TrainConfig, batches: Batches) -> tuple[LimitsConfig, tuple[str, ...]]:
    """Returns the limits, with a default limit if the settings have none."""
    limits = config.limits
    ends = (
        limits.max_steps,
        limits.max_epochs,
        limits.max_time_s,
        limits.max_tokens,
        limits.max_wall_time_s,
    )
    if any(limit is not None for limit in ends):
        return limits, ()
    fewest, most = DEFAULT_STEPS
    together = config.optimizer.accumulation_steps
    steps = min(max(math.ceil(DEFAULT_EPOCHS * batches.batches_in(0) / together), fewest), most)
    return replace(limits, max_steps=steps), (f"no limit given: training for {steps:,} steps",)
