"""The learning rate's schedule, and the optimizer with its state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from treadle.kernels import optimizers
from treadle.model.enums import OptimizerKind, Schedule
from treadle.model.errors import TrainingError
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parallel import Pool, parts
from treadle.model.network.parameters import Parameters

if TYPE_CHECKING:
    from treadle.model.config import OptimizerConfig

_LARGEST = float(np.finfo(np.float32).max)


def learning_rate(
    config: OptimizerConfig, step: int, progress: float, warmup: int, lowered: float = 1.0
) -> float:
    """Return the rate of one step.

    Args:
        config: the optimizer's settings.
        step: steps done before this one.
        progress: the share of the run that is done, 0 to 1.
        warmup: steps over which the rate rises.
        lowered: what plateaus have multiplied the rate by so far.
    """
    rate = config.rate * lowered
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


class AdamCorrections:
    """What a step of Adam divides its running means by, step after step."""

    def __init__(self, beta1: float, beta2: float) -> None:
        """Begin at step 0, with the decays of both means."""
        self._betas = beta1, beta2
        # Products rather than powers: a platform's pow would decide on their last bits.
        self.powers = (1.0, 1.0)
        """Both decays to the power of the steps done: all that there is to carry on."""

    def next(self) -> tuple[np.float32, ...]:
        """Return the next step's decays, what each leaves of 1, and corrections, for the kernel.

        What is left, and with it the corrections, is taken before rounding to float32, in which a
        decay such as 0.99999999 is 1.
        """
        beta1, beta2 = self._betas
        power1, power2 = self.powers[0] * beta1, self.powers[1] * beta2
        self.powers = (power1, power2)
        corrections = 1 / (1 - power1), 1 / math.sqrt(1 - power2)
        settings = (beta1, beta2, 1 - beta1, 1 - beta2, *corrections)
        return tuple(np.float32(number) for number in settings)


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
        self._parts = parts(parameters.flat.size)
        kind = config.kind
        self.means = Parameters(parameters.shape) if kind is OptimizerKind.ADAM else None
        self.squares = None if kind is OptimizerKind.SGD else Parameters(parameters.shape)
        self.corrections = AdamCorrections(config.beta1, config.beta2)

    def step(self, gradient: Parameters, rate: float, pool: Pool | None = None) -> float:
        """Take one step.

        Args:
            gradient: of the mean loss; clipped in place by value, where that is asked for.
            rate: the learning rate.
            pool: takes parts of the parameters; None: the caller works alone.

        Returns:
            The gradient's global norm before it was clipped by norm.

        Raises:
            TrainingError: the norm is no finite number; the parameters are left as they were.
        """
        pool = pool or Pool(1)
        if self.config.clip_value:
            limit = _float32(self.config.clip_value)
            pool.map(lambda part: optimizers.clip_by_value(gradient.flat[part], limit), self._parts)
        norm = self.norm(gradient, pool)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm became {norm} at step {self.steps + 1}; "
                "lower the learning rate or set clip_norm"
            )
        limit_norm = self.config.clip_norm
        scale = limit_norm / norm if limit_norm and norm > limit_norm else 1.0
        self.steps += 1
        self._update(gradient, np.float32(scale), _float32(rate), pool)
        return norm

    def restore(self, steps: int, powers: tuple[float, float]) -> None:
        """Continues from the steps done and from Adam's `AdamCorrections.powers` then."""
        self.steps = steps
        self.corrections.powers = powers

    def norm(self, gradient: Parameters, pool: Pool) -> float:
        """Return the global norm, summed block by block in order, whichever thread sums one."""
        block = optimizers.BLOCK
        sums = np.zeros(-(-gradient.flat.size // block))

        def run(part: slice) -> None:  # parts end where blocks do
            own = sums[part.start // block : -(-part.stop // block)]
            optimizers.sums_of_squares(gradient.flat[part], own)

        pool.map(run, self._parts)
        return math.sqrt(in_order(sums.tolist()))

    def _update(
        self, gradient: Parameters, scale: np.float32, rate: np.float32, pool: Pool
    ) -> None:
        weights, decay = self.parameters.flat, _float32(self.config.weight_decay)
        buffers = [p.flat for p in (gradient, self.means, self.squares) if p is not None]
        rule: Callable[..., None] = optimizers.sgd
        settings: tuple[np.float32, ...] = (scale, rate, decay)
        if self.means is not None:
            rule, settings = optimizers.adam, (*settings, *self.corrections.next())
        elif self.squares is not None:
            rule = optimizers.adagrad
        pool.map(
            lambda part: rule(weights[part], *(flat[part] for flat in buffers), *settings),
            self._parts,
        )
