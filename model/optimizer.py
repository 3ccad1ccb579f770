"""The learning rate's schedule, and the optimizer with its state."""

from __future__ import annotations

import math

import numpy as np

from treadle.kernels import optimizers
from treadle.model.config import OptimizerConfig, OptimizerKind, Schedule
from treadle.model.errors import TrainingError
from treadle.model.parameters import Parameters

_LARGEST = float(np.finfo(np.float32).max)


def learning_rate(config: OptimizerConfig, step: int, progress: float, warmup: int) -> float:
    """Return the rate of one step.

    Args:
        config: the optimizer's settings.
        step: steps done before this one.
        progress: the share of the run that is done, 0 to 1.
        warmup: steps over which the rate rises.
    """
    rate = config.rate
    if config.schedule is Schedule.COSINE:
        rate *= half_cosine(min(progress, 1.0))
    return rate * min(1.0, (step + 1) / (warmup + 1))


def _float32(setting: float) -> np.float32:
    """Return the nearest float32; a setting beyond them is as good as the largest of them."""
    return np.float32(min(setting, _LARGEST))


def half_cosine(progress: float) -> float:
    """Return (1 + cos(pi progress)) / 2 for 0 to 1: from 1 down to 0.

    A platform's cosine differs between processors in its last bits, so this one is summed from the
    sine's series about the middle, with nothing but + - * and /.
    """
    x = math.pi * (0.5 - progress)
    term = total = x
    for k in range(1, 13):
        term *= -x * x / ((2 * k) * (2 * k + 1))
        total += term
    return 0.5 * (1 + total)


class Optimizer:
    """Updates parameters in place: clips the gradient, then takes one step of the rule."""

    def __init__(self, config: OptimizerConfig, parameters: Parameters) -> None:
        """Make the state of a run at its beginning.

        Args:
            config: rule and settings.
            parameters: what is updated.
        """
        self.config = config
        self.parameters = parameters
        self.steps = 0
        kind = config.kind
        self.means = Parameters(parameters.shape) if kind is OptimizerKind.ADAM else None
        self.squares = None if kind is OptimizerKind.SGD else Parameters(parameters.shape)
        # Products rather than powers: a platform's pow would decide on their last bits.
        self._power1 = self._power2 = 1.0

    def step(self, gradient: Parameters, rate: float) -> float:
        """Take one step.

        Args:
            gradient: of the mean loss; clipped in place.
            rate: the learning rate.

        Returns:
            The gradient's global norm before it was clipped.

        Raises:
            TrainingError: the norm is no finite number; the parameters are left as they were.
        """
        norm = self._clip(gradient)
        self.steps += 1
        self._update(gradient, _float32(rate), _float32(self.config.weight_decay))
        return norm

    def _clip(self, gradient: Parameters) -> float:
        if self.config.clip_value:
            optimizers.clip_by_value(gradient.flat, _float32(self.config.clip_value))
        norm = optimizers.global_norm(gradient.flat)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm became {norm} at step {self.steps + 1}; "
                "lower the learning rate or set clip_norm"
            )
        if self.config.clip_norm and norm > self.config.clip_norm:
            optimizers.scale(gradient.flat, np.float32(self.config.clip_norm / norm))
        return norm

    def _update(self, gradient: Parameters, rate: np.float32, decay: np.float32) -> None:
        weights = self.parameters.flat
        if self.squares is None:
            optimizers.sgd(weights, gradient.flat, rate, decay)
        elif self.means is None:
            optimizers.adagrad(weights, gradient.flat, self.squares.flat, rate, decay)
        else:
            config = self.config
            self._power1 *= config.beta1
            self._power2 *= config.beta2
            optimizers.adam(
                weights, gradient.flat, self.means.flat, self.squares.flat, rate, decay,
                np.float32(config.beta1), np.float32(config.beta2),
                np.float32(1 / (1 - self._power1)),
                np.float32(1 / math.sqrt(1 - self._power2)),
            )  # fmt: skip
