"""`Accumulation` computes the gradient of an optimizer step from one or more batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from treadle.model.network.engine import Engine, InterruptedRunError
from treadle.model.network.parallel import parts
from treadle.model.network.parameters import Parameters

if TYPE_CHECKING:
    from treadle.model.data.batch import Batch
    from treadle.model.data.batching import Batches


class Accumulation:
    """Takes the batches of a step and adds up their gradients, in order.

    Args:
        engine: Computes the gradient of a batch.
        batches: The batches.
        together: Batches per step.
    """

    def __init__(self, engine: Engine, batches: Batches, together: int) -> None:
        self._engine = engine
        self._batches = batches
        self._together = together
        self.gradient = engine.gradient if together == 1 else Parameters(engine.shape)
        """After `run`, the gradient of the mean loss over all targets of the step's batches."""

    def run(self, step: int) -> tuple[float, int]:
        """Runs the batches of one step.

        Args:
            step: Optimizer steps done before; it selects the dropout masks, which differ between
                all batches of a run.

        Returns:
            The sum of -log p(target) in nats, and the number of targets counted.

        Raises:
            InterruptedRunError: The engine was interrupted. Batches and hidden states are as they
                were before the step.
        """
        position = self._batches.position
        self._engine.remember()
        try:
            return self._run(step, position)
        except InterruptedRunError:
            self._batches.seek(position)
            self._engine.go_back()
            raise

    def _run(self, step: int, position: Mapping[str, int]) -> tuple[float, int]:
        """Runs the batches of one step, the first of which is at `position`."""
        if self._together == 1:
            return self._gradient_of(next(self._batches), step)
        # A batch's weight depends on the targets of all batches. These are counted first, and the
        # batches are then made again, since so many at once may not fit in memory.
        counts = [self._count(next(self._batches)) for _ in range(self._together)]
        self._batches.seek(position)
        total = sum(counts)
        loss = 0.0
        self._begin()
        for number, count in enumerate(counts):
            loss += self._gradient_of(next(self._batches), step * self._together + number)[0]
            self._add(np.float32(count / max(total, 1)))
        return loss, total

    def _count(self, batch: Batch) -> int:
        """Returns the number of targets of a batch."""
        if self._engine.interrupted():
            raise InterruptedRunError
        return int(np.count_nonzero(batch.targets[: batch.steps] >= 0))

    def _gradient_of(self, batch: Batch, number: int) -> tuple[float, int]:
        tokens = batch.tokens[: batch.steps]
        targets = batch.targets[: batch.steps]
        return self._engine.loss_and_gradient(tokens, targets, batch.fresh, number)

    def _begin(self) -> None:
        """Begins the gradient of a step, on all ranks."""
        self.gradient.flat[:] = 0
        if self._engine.ranks is not None:
            self._engine.ranks.command("begin_accumulation")

    def _add(self, weight: np.float32) -> None:
        """Adds the engine's gradient, which is that of one batch's mean, with its weight."""
        if self._engine.ranks is not None:
            self._engine.ranks.command("accumulate", weight)
        add_weighted(self._engine, weight, self.gradient)


def add_weighted(engine: Engine, weight: np.float32, total: Parameters) -> None:
    """Adds an engine's gradient, which is overwritten, with a weight to a sum of several.

    Args:
        engine: Has the gradient of a batch.
        weight: Its weight.
        total: The sum.
    """
    source = engine.gradient.flat
    target = total.flat

    def add(part: slice) -> None:
        source[part] *= weight
        target[part] += source[part]

    engine.pool.map(add, parts(source.size))
