"""`OnlineWeights` is a session's own copy of a model's weights, updated one window at a time.

All that the next update depends on can be kept in a snapshot and restored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treadle.kernels.weight_packing import pack_weights
from treadle.model.errors import TrainingError
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shards import CONTINUED
from treadle.model.network.workspace import allocate_weights
from treadle.model.online.config import LearningConfig
from treadle.model.training.optimizer import Optimizer

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass
class _Snapshot:
    """Weights and optimizer as they were."""

    buffers: list[Array]
    steps: int
    powers: tuple[float, float]


class OnlineWeights:
    """Weights that learn, with the optimizer's state."""

    def __init__(self, beginning: Parameters, config: LearningConfig, pool: Pool) -> None:
        """Copies the weights to begin with.

        Args:
            beginning: The weights to begin with; only read. `roll_back` returns to them as long as
                there is no snapshot.
            config: The update rule and its settings.
            pool: Runs parts of an update; the number of its threads changes no bit.
        """
        shape = beginning.shape
        self.parameters = Parameters(shape)
        """The weights as they are now."""
        self._beginning = beginning
        self._config = config
        self._pool = pool
        self._optimizer = Optimizer(config.rule, self.parameters)
        # The table of a large vocabulary takes longer than the few rows of it that a window needs.
        whole = shape.E == 0 or config.window >= shape.V
        table_rows = shape.V if whole else 0
        self.packed = allocate_weights(shape, table_rows, backward=False)
        """The same weights as scoring reads them, packed in place after every change."""
        self._engine = Engine(self.parameters, 1, config.window, pool, packed=self.packed)
        self._table_tokens = np.arange(table_rows, dtype=np.int32)
        self._snapshot: _Snapshot | None = None
        self._unit: _Snapshot | None = None
        self._in_unit = False
        self._changed = False
        self.roll_back()

    @property
    def updates(self) -> int:
        """Updates made to the weights so far."""
        return self._optimizer.steps

    def learn(self, hs: Array, cs: Array, tokens: Ints, targets: Ints) -> float:
        """Takes one step down the gradient of a window's mean loss.

        Args:
            hs: (L, H), the hidden states before the window.
            cs: (L, H), the LSTM's cell states.
            tokens: (T,), the tokens that the network reads, T up to the window's length.
            targets: (T,), the tokens that it is to predict.

        Returns:
            The sum of -log p(target) in nats, under the weights before the step.

        Raises:
            TrainingError: The loss, the gradient or a new weight is not a finite number. In the
                last case the weights are useless until they are rolled back; otherwise they are as
                before.
        """
        self._engine.carry(hs[:, None], cs[:, None])
        loss, _ = self._engine.loss_and_gradient(
            tokens.reshape(-1, 1), targets.reshape(-1, 1), CONTINUED, self.updates
        )
        if not math.isfinite(loss):
            raise self.not_finite("the loss")
        if self._in_unit and not self._changed:
            self._unit = self._copied_into(self._unit)
            self._changed = True
        try:
            self._optimizer.step(self._engine.gradient, self._config.rate, self._pool)
        except TrainingError as error:
            raise self.not_finite("the gradient") from error
        if not math.isfinite(self._optimizer.norm(self.parameters, self._pool)):
            raise self.not_finite("a weight")
        self._pack()
        return loss

    def not_finite(self, quantity: str) -> TrainingError:
        """Returns the error of learning that has diverged.

        Args:
            quantity: The quantity that is not a finite number any more, with its article.
        """
        return TrainingError(
            f"{quantity} is not a finite number after {self.updates} updates: lower "
            f"learning_rate, which is {self._config.rate:g}, or set clip_norm"
        )

    def snapshot(self) -> None:
        """Keeps everything as it is now, in place of the last snapshot."""
        self._snapshot = self._copied_into(self._snapshot)

    def roll_back(self) -> None:
        """Goes back to the last snapshot, which stays, or to the beginning."""
        if self._snapshot is not None:
            self._restore(self._snapshot)
            return
        weights, *moments = self._buffers()
        weights[:] = self._beginning.flat
        for buffer in moments:
            buffer[:] = 0
        self._optimizer.restore(0, (1.0, 1.0))
        self._pack()

    def begin_unit(self) -> None:
        """Makes `take_back` return to this point; nothing is copied before an update is made."""
        self._in_unit = True
        self._changed = False

    def take_back(self) -> None:
        """Goes back to the last call of `begin_unit`; the snapshot stays what it is."""
        if self._changed and self._unit is not None:
            self._restore(self._unit)
        self._changed = False

    def copied(self) -> Parameters:
        """Returns a copy of the weights as they are now."""
        parameters = Parameters(self.parameters.shape)
        parameters.flat[:] = self.parameters.flat
        return parameters

    def _copied_into(self, snapshot: _Snapshot | None) -> _Snapshot:
        """Copies everything as it is now into the memory of a snapshot, or into new memory."""
        if snapshot is None:
            snapshot = _Snapshot([np.empty_like(flat) for flat in self._buffers()], 0, (1.0, 1.0))
        for copy, flat in zip(snapshot.buffers, self._buffers(), strict=True):
            copy[:] = flat
        snapshot.steps = self._optimizer.steps
        snapshot.powers = self._optimizer.corrections.powers
        return snapshot

    def _restore(self, snapshot: _Snapshot) -> None:
        for flat, copy in zip(self._buffers(), snapshot.buffers, strict=True):
            flat[:] = copy
        self._optimizer.restore(snapshot.steps, snapshot.powers)
        self._pack()

    def _buffers(self) -> list[Array]:
        """Returns the weights and the optimizer's moments."""
        optimizer = self._optimizer
        moments = [buffer for buffer in (optimizer.means, optimizer.squares) if buffer is not None]
        return [self.parameters.flat, *(buffer.flat for buffer in moments)]

    def _pack(self) -> None:
        pack_weights(self.parameters.stacks, self.packed, self._table_tokens)
