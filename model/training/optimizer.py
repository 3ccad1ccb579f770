"""`Optimizer` updates the parameters by their gradient; `learning_rate` is its schedule.

`WeightMean` is the mean of the parameters over the steps, if the settings ask for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.kernels import optimizers, step_series
from treadle.kernels.step_series import Update
from treadle.model.enums import OptimizerKind, Schedule
from treadle.model.errors import TrainingError
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parallel import Pool, parts
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape

if TYPE_CHECKING:
    from treadle.model.config import OptimizerConfig
    from treadle.model.network.ranks.ranks import Ranks

_LARGEST = float(np.finfo(np.float32).max)
Powers = tuple[float, float]
"""`AdamCorrections.powers`."""

AVERAGED_EVERY = 8
"""Steps between two weights that are averaged: neighbours differ little, and each costs time."""


def learning_rate(
    config: OptimizerConfig, step: int, progress: float, warmup: int, lowered: float = 1.0
) -> float:
    """Returns the learning rate of one step.

    Args:
        config: The optimizer's settings.
        step: Steps done before this one.
        progress: The share of the run that is done, 0 to 1.
        warmup: Steps over which the rate rises.
        lowered: The factor by which plateaus have lowered the rate so far.
    """
    rate = config.rate * lowered
    if config.schedule is Schedule.COSINE:
        least = config.final_rate
        rate *= least + (1 - least) * half_cosine(min(progress, 1.0))
    return rate * min(1.0, (step + 1) / (warmup + 1))


def _float32(setting: float) -> np.float32:
    """Returns the nearest float32; the largest one for a larger setting."""
    return np.float32(min(setting, _LARGEST))


def half_cosine(progress: float) -> float:
    """Returns (1 + cos(pi progress)) / 2, for 0 to 1: from 1 down to 0.

    The last bits of the C library's cosine depend on the platform. So this one is summed from the
    sine's series about the middle, with nothing but + - * and /.
    """
    x = math.pi * (0.5 - progress)
    term = total = x
    for k in range(1, 13):
        term *= -x * x / ((2 * k) * (2 * k + 1))
        total += term
    return 0.5 * (1 + total)


class AdamCorrections:
    """Computes the bias corrections of Adam's running means for each step.

    Args:
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of their squares.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self._betas = (beta1, beta2)
        # Products rather than powers, since the last bits of pow depend on the platform.
        self.powers = (1.0, 1.0)
        """Both decays to the power of the steps done: the whole state."""

    def next(self) -> tuple[np.float32, ...]:
        """Returns the kernel arguments of the next step: decays, 1 - decays, and corrections."""
        return tuple(np.float32(number) for number in self.next_numbers())

    def next_numbers(self) -> tuple[float, ...]:
        """Returns what `next` returns before it is rounded to float32.

        Differences and corrections are computed in float64, since a decay such as 0.99999999 is 1
        in float32.
        """
        beta1, beta2 = self._betas
        power1 = self.powers[0] * beta1
        power2 = self.powers[1] * beta2
        self.powers = (power1, power2)
        corrections = (1 / (1 - power1), 1 / math.sqrt(1 - power2))
        return (beta1, beta2, 1 - beta1, 1 - beta2, *corrections)


class WeightMean:
    """The mean of the weights after steps 8, 16, 24, ... of a run; before, the weights themselves.

    Later weights count more: with the power p, the n-th of them by about n**p, so that half of the
    whole is the last 1 - 2**(-1 / (p + 1)) of the run so far, however long it is
    ("polynomial-decay averaging": Shamir and Zhang, "Stochastic gradient descent for non-smooth
    optimization", ICML 2013). The noise of single steps averages out as it does when the learning
    rate falls, but at every moment of the run and not only at its end.

    Args:
        power: p, above 0.
        shape: The network's sizes.
    """

    def __init__(self, power: float, shape: Shape) -> None:
        self.parameters = Parameters(shape)
        """The mean; zeros before the first step."""
        self._power = power
        self._parts = parts(self.parameters.flat.size)

    def share(self, steps: int) -> float:
        """Returns the share of the weights after a step in the mean; 0 if it is not their turn.

        Args:
            steps: Optimizer steps done, at least 1.
        """
        number, rest = divmod(steps, AVERAGED_EVERY)
        if number == 0:
            return 1.0
        return 0.0 if rest else (self._power + 1) / (number + self._power)

    def add(self, parameters: Parameters, steps: int, pool: Pool) -> None:
        """Adds the weights after a step, if its turn has come.

        Args:
            parameters: The weights.
            steps: Optimizer steps done, at least 1.
            pool: The threads that share the work.
        """
        share = np.float32(self.share(steps))
        if not share:
            return
        weights = parameters.flat
        mean = self.parameters.flat
        pool.map(
            lambda part: optimizers.move_towards(weights[part], share, mean[part]), self._parts
        )


class Optimizer:
    """Updates parameters in place: clips the gradient, then takes one step of the rule.

    Args:
        config: The rule and its settings.
        parameters: The parameters to update.
    """

    def __init__(self, config: OptimizerConfig, parameters: Parameters) -> None:
        self.config = config
        self.parameters = parameters
        self.steps = 0
        self._parts = parts(parameters.flat.size)
        kind = config.kind
        self.means = Parameters(parameters.shape) if kind is OptimizerKind.ADAM else None
        self.squares = None if kind is OptimizerKind.SGD else Parameters(parameters.shape)
        self.corrections = AdamCorrections(config.beta1, config.beta2)
        self.mean = WeightMean(config.averaging, parameters.shape) if config.averaging else None
        """The mean of the parameters; None if the settings ask for none."""
        self._ranks: Ranks | None = None

    def share(self, ranks: Ranks) -> None:
        """Has the other ranks take every step from now on as well, each on its own weights.

        Args:
            ranks: The processes of the run, whose engine has been made; this one is rank 0.
        """
        self._ranks = ranks
        ranks.command("optimize", self.config, self.steps, self.corrections.powers)
        ranks.check()
        for buffer in self.buffers():
            ranks.broadcast(buffer.flat)

    def step(self, gradient: Parameters, rate: float, pool: Pool | None = None) -> float:
        """Takes one step.

        Args:
            gradient: The gradient of the mean loss; clipped in place by value, if so configured.
            rate: The learning rate.
            pool: The threads that share the work; None: the calling thread alone.

        Returns:
            The gradient's global norm before it was clipped by norm.

        Raises:
            TrainingError: The norm is not finite; the parameters are unchanged.
        """
        pool = pool or Pool(1)
        if self._ranks is not None:
            self._ranks.command("update", rate)
        if self.config.clip_value:
            limit = _float32(self.config.clip_value)
            pool.map(lambda part: optimizers.clip_by_value(gradient.flat[part], limit), self._parts)
        norm = self.norm(gradient, pool)
        if not math.isfinite(norm):
            raise self.not_finite(norm)
        limit_norm = self.config.clip_norm
        scale = limit_norm / norm if limit_norm and norm > limit_norm else 1.0
        self.steps += 1
        self._update(gradient, np.float32(scale), _float32(rate), pool)
        if self.mean is not None:
            self.mean.add(self.parameters, self.steps, pool)
        return norm

    def update(self, gradient: Parameters) -> Update:
        """Returns what the kernels of a series of steps change, and by which rule.

        Args:
            gradient: The gradient that every step leaves.
        """
        config = self.config
        size = gradient.flat.size
        nothing: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        rules = {
            OptimizerKind.SGD: step_series.SGD,
            OptimizerKind.ADAGRAD: step_series.ADAGRAD,
            OptimizerKind.ADAM: step_series.ADAM,
        }
        return Update(
            weights=self.parameters.flat,
            gradient=gradient.flat,
            means=nothing if self.means is None else self.means.flat,
            squares=nothing if self.squares is None else self.squares.flat,
            mean=nothing if self.mean is None else self.mean.parameters.flat,
            norms=np.zeros(-(-size // optimizers.BLOCK)),
            rule=rules[config.kind],
            clip_value=_float32(config.clip_value or -1.0),
            clip_norm=float(config.clip_norm),
            decay=_float32(config.weight_decay),
        )

    def plan(self, rates: Sequence[float]) -> tuple[npt.NDArray[np.float32], list[Powers]]:
        """Returns the settings of the next steps, and Adam's powers after each of them.

        Args:
            rates: The learning rates of the steps.

        Returns:
            Rows of `step_series.Series.settings`, and `AdamCorrections.powers`.
        """
        before = self.corrections.powers
        settings = np.zeros((len(rates), step_series.SETTINGS), np.float32)
        powers = []
        rows = []
        for n, rate in enumerate(rates):
            share = 0.0 if self.mean is None else self.mean.share(self.steps + n + 1)
            corrections = self.corrections.next_numbers() if self.means is not None else (0.0,) * 6
            rows.append((min(rate, _LARGEST), share, *corrections))
            powers.append(self.corrections.powers)
        settings[:] = rows
        self.corrections.powers = before
        return settings, powers

    def not_finite(self, norm: float) -> TrainingError:
        """Returns the error of a step whose gradient has a norm that is not finite."""
        return TrainingError(
            f"the gradient's norm became {norm} at step {self.steps + 1}; "
            "lower the learning rate or set clip_norm"
        )

    def buffers(self) -> list[Parameters]:
        """Returns what it holds besides the parameters: moments, and the mean of the parameters."""
        mean = None if self.mean is None else self.mean.parameters
        return [each for each in (self.means, self.squares, mean) if each is not None]

    def restore(self, steps: int, powers: tuple[float, float]) -> None:
        """Continues from a stored state; the moments are restored by the caller.

        Args:
            steps: Optimizer steps done.
            powers: `AdamCorrections.powers` after these steps.
        """
        self.steps = steps
        self.corrections.powers = powers

    def norm(self, gradient: Parameters, pool: Pool) -> float:
        """Returns the global norm of a gradient; it does not depend on the number of threads.

        Args:
            gradient: The gradient.
            pool: The threads that share the work. Their sums are added block by block, in order.
        """
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
        weights = self.parameters.flat
        decay = _float32(self.config.weight_decay)
        buffers = [p.flat for p in (gradient, self.means, self.squares) if p is not None]
        rule: Callable[..., None] = optimizers.sgd
        settings: tuple[np.float32, ...] = (scale, rate, decay)
        if self.means is not None:
            rule = optimizers.adam
            settings = (*settings, *self.corrections.next())
        elif self.squares is not None:
            rule = optimizers.adagrad
        pool.map(
            lambda part: rule(weights[part], *(flat[part] for flat in buffers), *settings),
            self._parts,
        )
