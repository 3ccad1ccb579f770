"""The gradient of one optimizer step: that of a batch, or of several as if they were one."""

from __future__ import annotations

import itertools

import numpy as np

from treadle.model.batches import Batch, Batches
from treadle.model.engine import Engine
from treadle.model.parameters import Parameters
from treadle.model.pool import parts


class Accumulation:
    """Draws batches and adds up their gradients, in order."""

    def __init__(self, engine: Engine, batches: Batches, together: int) -> None:
        """Prepare for a run.

        Args:
            engine: computes the gradients.
            batches: where the batches come from.
            together: batches for one step.
        """
        self._engine = engine
        self._batches = batches
        self._together = together
        self.gradient = engine.gradient if together == 1 else Parameters(engine.shape)
        """After `run`, the gradient of the mean loss over all targets of the step's batches."""

    def run(self, step: int) -> tuple[float, int]:
        """Run the batches of one step.

        Args:
            step: optimizer steps done before; no two batches of a run drop the same units.

        Returns:
            The sum of -log p(target) in nats, and the number of targets counted.
        """
        if self._together == 1:
            return self._one(next(self._batches), step)
        batches = list(itertools.islice(self._batches, self._together))
        counts = [int(np.count_nonzero(b.targets[: b.steps] >= 0)) for b in batches]
        total, loss = sum(counts), 0.0
        self.gradient.flat[:] = 0
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            loss += self._one(batch, step * self._together + number)[0]
            self._add(np.float32(count / max(total, 1)))
        return loss, total

    def _one(self, batch: Batch, number: int) -> tuple[float, int]:
        tokens, targets = batch.tokens[: batch.steps], batch.targets[: batch.steps]
        return self._engine.loss_and_gradient(tokens, targets, batch.fresh, number)

    def _add(self, weight: np.float32) -> None:
        """Add the engine's gradient, which is that of one batch's mean, with its weight."""
        source, target = self._engine.gradient.flat, self.gradient.flat

        def add(part: slice) -> None:
            source[part] *= weight
            target[part] += source[part]

        self._engine.pool.map(add, parts(source.size))
