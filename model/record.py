"""What a training run leaves on record in its model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from treadle.model.config import TrainConfig
from treadle.model.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class TrainingRecord:
    """How a model came to be."""

    config: TrainConfig
    """The run's settings as used, defaults filled in."""
    steps: int
    """Optimizer steps done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean nats a token over the last progress interval; NaN where there was none."""
    valid_loss: float | None
    """Mean nats a token of the validation part at the end; None without one."""
    elapsed_s: float
    """Seconds of training, validation not counted."""
    ended_by: str
    """What ended the run, in a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        loss = self.train_loss if math.isfinite(self.train_loss) else None  # JSON has no NaN
        return {**asdict(self), "config": self.config.to_json(), "train_loss": loss}

    @classmethod
    def from_json(cls, data: object) -> TrainingRecord:
        """Build a record from what `to_json` returned.

        Raises:
            CheckpointError: `data` is not that.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError("the training record cannot be read: it is no mapping")
        try:
            loss, valid = data["train_loss"], data["valid_loss"]
            return cls(
                config=TrainConfig.from_json(data["config"]),
                steps=int(data["steps"]),
                tokens_seen=int(data["tokens_seen"]),
                train_loss=math.nan if loss is None else float(loss),
                valid_loss=None if valid is None else float(valid),
                elapsed_s=float(data["elapsed_s"]),
                ended_by=str(data["ended_by"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as fault:
            raise CheckpointError(f"the training record cannot be read: {fault}") from fault
