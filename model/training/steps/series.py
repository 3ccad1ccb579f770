"""`StepSeries` takes several training steps of a small network in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from treadle.kernels.step_series import COMPLETE
from treadle.model.network.engine import Engine, InterruptedRunError, Ints

if TYPE_CHECKING:
    from treadle.model.data.batch import BatchSeries
    from treadle.model.data.batching import Batches
    from treadle.model.training.optimizer import Optimizer

MOST_STEPS = 64
"""The most steps of a call."""

MOST_WORK = 3 << 29
"""Multiply-adds of a call, about: 10 ms of two cores. Nothing interrupts a call."""

MOST_TOKENS = 1 << 16
"""Tokens of a call: for a tiny network they take longer than its multiply-adds."""


class TakenStep(NamedTuple):
    """What came out of one step."""

    loss: float
    """Sum of the losses of its tokens, in nats."""
    tokens: int
    """Tokens trained on."""
    norm: float
    """The gradient's norm."""
    rate: float
    """The learning rate."""


class StepSeries:
    """Takes steps of one batch each.

    Args:
        engine: Computes the gradients.
        optimizer: Applies them.
        batches: The batches.
    """

    def __init__(self, engine: Engine, optimizer: Optimizer, batches: Batches) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._batches = batches
        self._update = optimizer.update(engine.gradient)
        tokens = batches.batch_size * batches.window
        work = 3 * engine.gradient.flat.size * tokens
        most = min(MOST_STEPS, MOST_WORK // work, MOST_TOKENS // tokens)
        self.most_steps = max(1, most) if engine.takes_series else 0
        """The most steps of a call; 0 where the network is not one for this class."""
        self.tokens_per_step = tokens
        """The most tokens of a step."""
        self.failure: TakenStep | None = None
        """What came out of a step that was not taken, its loss or norm not finite."""

    def next(self, steps: int) -> tuple[BatchSeries, Ints]:
        """Returns the batches of the next steps, and the number of targets of each.

        Args:
            steps: How many, at most; at the end of an epoch there may be fewer.

        Raises:
            TokenError: A token is not in the vocabulary.
            InterruptedRunError: The engine was interrupted; nothing has changed.
        """
        if self._engine.interrupted():
            raise InterruptedRunError
        batches = self._batches.series(steps)
        return batches, self._engine.count_series(batches.tokens, batches.targets, batches.lengths)

    def run(self, batches: BatchSeries, counts: Ints, rates: Sequence[float]) -> list[TakenStep]:
        """Takes steps, up to the first whose loss or gradient is not finite.

        Args:
            batches: From `next`.
            counts: From `next`.
            rates: The learning rate of every step.

        Returns:
            The steps taken. If they are fewer than asked for, `failure` has what came out of the
            next one, and the engine's gradient is that step's.
        """
        optimizer = self._optimizer
        settings, powers = optimizer.plan(rates)
        results = self._engine.train_series(
            batches.tokens,
            batches.targets,
            batches.fresh,
            batches.lengths,
            counts,
            settings,
            self._update,
            optimizer.steps,
        )
        taken = [
            TakenStep(one + two, count, norm, rate)
            for (one, two, norm, _), count, rate in zip(
                results.tolist(), counts.tolist(), rates, strict=True
            )
        ]
        complete = int(results[:, COMPLETE].sum())
        if complete:
            optimizer.restore(optimizer.steps + complete, powers[complete - 1])
        self.failure = taken[complete] if complete < len(taken) else None
        return taken[:complete]
