"""`ModelSelection` keeps the best weights, and decides on plateaus and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.enums import Schedule
from treadle.model.training.progress import Progress

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig

Array = npt.NDArray[np.float32]


class ModelSelection:
    """Keeps the best weights, and counts the validations since.

    Args:
        config: The run's settings: both patiences and the plateau's factor.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._stopping = config.limits.early_stopping_patience
        self._plateau = config.optimizer.schedule is Schedule.PLATEAU
        self._patience = config.optimizer.plateau_patience
        self._factor = config.optimizer.plateau_factor
        self.best: Progress | None = None
        """The progress with the lowest validation loss; None before the first."""
        self.weights: Array | None = None
        """A copy of the weights at that progress, (n,) float32."""
        self.lowered = 1.0
        """The factor by which plateaus have lowered the learning rate so far."""
        self._since_best = 0
        self._since_lowered = 0

    def lowest(self, loss: float | None) -> float | None:
        """Returns the lowest validation loss so far, in nats per token.

        Args:
            loss: A new loss to include; None: no new loss.
        """
        best = None if self.best is None else self.best.valid_loss
        losses = [known for known in (best, loss) if known is not None]
        return min(losses, default=None)

    def offer(self, progress: Progress, weights: Array) -> None:
        """Records a validation.

        Args:
            progress: The progress with the validation's loss.
            weights: The weights, (n,) float32; copied if they are the best so far.
        """
        best = None if self.best is None else self.best.valid_loss
        assert progress.valid_loss is not None
        if best is None or progress.valid_loss < best:
            self.best = progress
            self.weights = weights.copy()
            self._since_best = 0
            self._since_lowered = 0
            return
        self._since_best += 1
        self._since_lowered += 1
        if self._plateau and self._since_lowered >= self._patience:
            self.lowered *= self._factor
            self._since_lowered = 0

    def over(self, steps: int) -> str:
        """Returns why the run is to end early, as a sentence; empty if it is not.

        Args:
            steps: Optimizer steps done.
        """
        if not self._stopping or self._since_best < self._stopping or self.best is None:
            return ""
        return (
            f"early_stopping_patience reached after {steps} steps: the lowest validation loss "
            f"was that of step {self.best.step}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the weights as JSON values."""
        return {
            "best": None if self.best is None else asdict(self.best),
            "lowered": self.lowered,
            "since_best": self._since_best,
            "since_lowered": self._since_lowered,
        }

    def restore(self, data: Mapping[str, Any], weights: Array | None) -> None:
        """Continues from a stored selection.

        Args:
            data: The values that `to_json` returned.
            weights: The best weights, (n,) float32; None before the first validation.
        """
        self.best = None if data["best"] is None else Progress.from_json(data["best"])
        self.weights = weights
        self.lowered = float(data["lowered"])
        self._since_best = int(data["since_best"])
        self._since_lowered = int(data["since_lowered"])
