"""A session's own copy of a model's weights, and one update of it from one window.

Everything that the next update depends on can be kept, once, and gone back to.
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
from treadle.model.network.workspace import allocate_weights
from treadle.model.online.config import LearningConfig
from treadle.model.training.optimizer import Optimizer

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_GOES_ON = np.zeros(1, np.bool_)


@dataclass
class _Kept:
    """What a snapshot holds of weights and optimizer."""

    buffers: list[Array]
    steps: int
    powers: tuple[float, float]


class OnlineWeights:
    """Weights that learn, with the optimizer's state."""

    def __init__(self, beginning: Parameters, config: LearningConfig, pool: Pool) -> None:
        """Copies the weights to begin with.

        Args:
            beginning: Only ever read; they are also what `roll_back` goes back to first.
            config: The update rule and its settings.
            pool: Takes parts of an update; its threads change no bit.
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
        self.packed = allocate_weights(shape, shape.V if whole else 0, backward=False)
        """The same as scoring reads them, packed in place after every change."""
        self._engine = Engine(self.parameters, 1, config.window, pool, packed=self.packed)
        self._folded = np.arange(shape.V if whole else 0, dtype=np.int32)
        self._kept: _Kept | None = None
        self._undo: _Kept | None = None
        self._guarded = self._changed = False
        self.roll_back()

    @property
    def updates(self) -> int:
        """Updates behind the weights."""
        return self._optimizer.steps

    def learn(self, hs: Array, cs: Array, tokens: Ints, targets: Ints) -> float:
        """Takes one step down the gradient of a window's mean loss.

        Args:
            hs: (L, H), the hidden states before the window.
            cs: (L, H), the LSTM's cell states.
            tokens: (T,), what the network reads, T up to the window's length.
            targets: (T,), what it is to predict.

        Returns:
            The sum of -log p(target) in nats, under the weights before the step.

        Raises:
            TrainingError: The loss, the gradient or a new weight is no finite number. In the last
                case the weights are useless until they are rolled back; else they are as before.
        """
        self._engine.carry(hs[:, None], cs[:, None])
        batch = tokens.reshape(-1, 1), targets.reshape(-1, 1)
        loss, _ = self._engine.loss_and_gradient(*batch, _GOES_ON, self.updates)
        if not math.isfinite(loss):
            raise self.fault("the loss")
        if self._guarded and not self._changed:
            self._undo = self._copied_into(self._undo)
            self._changed = True
        try:
            self._optimizer.step(self._engine.gradient, self._config.rate, self._pool)
        except TrainingError as error:
            raise self.fault("the gradient") from error
        if not math.isfinite(self._optimizer.norm(self.parameters, self._pool)):
            raise self.fault("a weight")
        self._pack()
        return loss

    def fault(self, what: str) -> TrainingError:
        """Returns the error of learning that went out of bounds.

        Args:
            what: What is no finite number any more.
        """
        return TrainingError(
            f"{what} is no finite number after {self.updates} updates: lower learning_rate, "
            f"which is {self._config.rate:g}, or set clip_norm"
        )

    def snapshot(self) -> None:
        """Keeps everything as it is now, in place of the last snapshot."""
        self._kept = self._copied_into(self._kept)

    def roll_back(self) -> None:
        """Goes back to the last snapshot, which stays, or to the beginning."""
        if self._kept is not None:
            self._restore(self._kept)
            return
        weights, *others = self._buffers()
        weights[:] = self._beginning.flat
        for moments in others:
            moments[:] = 0
        self._optimizer.steps = 0
        self._optimizer.corrections.powers = (1.0, 1.0)
        self._pack()

    def guard(self) -> None:
        """Makes `undo` come back to here; nothing is copied before an update is made."""
        self._guarded, self._changed = True, False

    def undo(self) -> None:
        """Goes back to where `guard` was called last; the snapshot stays what it is."""
        if self._changed and self._undo is not None:
            self._restore(self._undo)
        self._changed = False

    def copied(self) -> Parameters:
        """Returns a copy of the weights as they are now."""
        parameters = Parameters(self.parameters.shape)
        parameters.flat[:] = self.parameters.flat
        return parameters

    def _copied_into(self, kept: _Kept | None) -> _Kept:
        """Copies everything as it is now, into the memory of a copy that is needed no more."""
        if kept is None:
            kept = _Kept([np.empty_like(flat) for flat in self._buffers()], 0, (1.0, 1.0))
        for copy, flat in zip(kept.buffers, self._buffers(), strict=True):
            copy[:] = flat
        kept.steps = self._optimizer.steps
        kept.powers = self._optimizer.corrections.powers
        return kept

    def _restore(self, kept: _Kept) -> None:
        for flat, copy in zip(self._buffers(), kept.buffers, strict=True):
            flat[:] = copy
        self._optimizer.steps = kept.steps
        self._optimizer.corrections.powers = kept.powers
        self._pack()

    def _buffers(self) -> list[Array]:
        """The weights and the optimizer's moments."""
        optimizer = self._optimizer
        moments = [buffer for buffer in (optimizer.means, optimizer.squares) if buffer is not None]
        return [self.parameters.flat, *(buffer.flat for buffer in moments)]

    def _pack(self) -> None:
        pack_weights(self.parameters.stacks, self.packed, self._folded)
