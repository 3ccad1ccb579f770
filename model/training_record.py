"""`TrainingRecord` records in a model how it was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from treadle.model.config import TrainConfig
from treadle.model.enums import Split
from treadle.model.errors import ConfigError, LoadError
from treadle.model.field_checks import MAX_UINT64

DIVERGED = 3.0
"""A run whose loss is this many times that of guessing has diverged."""


@dataclass(frozen=True)
class TrainingRecord:
    """The settings, the course and the results of a training run."""

    config: TrainConfig
    """The run's settings as used, with defaults filled in."""
    steps: int
    """Optimizer steps done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean nats per token over the progress interval before these weights; NaN without one."""
    valid_loss: float | None
    """Mean nats per token of the validation part, or of a sample of it, under these weights; None
    without a validation part."""
    elapsed_s: float
    """Seconds of training, validations and samples included."""
    ended_by: str
    """Why the run ended, in a sentence."""
    weights_step: int = 0
    """Optimizer steps behind these weights: fewer than `steps` if they are not the last ones."""
    valid_split: Split | None = None
    """The split that valid_loss was measured on; None if it is not known."""
    test_loss: float | None = None
    """Mean nats per token of the test part under these weights; None without a test part."""
    test_split: Split | None = None
    """The split that test_loss was measured on; None without a test part."""
    baseline_loss: float | None = None
    """An n-gram's mean nats per token of the validation part; None without a validation part."""
    notices: tuple[str, ...] = ()
    """Remarks on how the run went, in sentences."""
    valid_tokens: int = 0
    """Tokens that valid_loss is the mean of; 0 without it, or if it is not known."""
    test_tokens: int = 0
    """Tokens that test_loss is the mean of; 0 without it, or if it is not known."""

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON values."""
        loss = self.train_loss if math.isfinite(self.train_loss) else None  # JSON has no NaN
        return {**asdict(self), "config": self.config.to_json(), "train_loss": loss}

    @classmethod
    def from_json(cls, data: object) -> TrainingRecord:
        """Builds a record from JSON values.

        Args:
            data: The values that `to_json` returned.

        Returns:
            The record.

        Raises:
            LoadError: `data` is something else.
        """
        if not isinstance(data, Mapping):
            raise LoadError("the training record cannot be read: it is not a mapping")
        try:
            loss = data["train_loss"]
            elapsed = float(data["elapsed_s"])
            if not (math.isfinite(elapsed) and elapsed >= 0):
                raise ValueError(f"elapsed_s is {elapsed}, and must be 0 or more")
            splits = [data.get(name) for name in ("valid_split", "test_split")]
            return cls(
                config=TrainConfig.from_json(data["config"]),
                steps=_count(data, "steps"),
                tokens_seen=_count(data, "tokens_seen"),
                train_loss=math.nan if loss is None else float(loss),
                valid_loss=_float(data["valid_loss"]),
                elapsed_s=elapsed,
                ended_by=str(data["ended_by"]),
                # Older files lack it: their weights are the last ones.
                weights_step=_count(data, "weights_step" if "weights_step" in data else "steps"),
                valid_split=None if splits[0] is None else Split(splits[0]),
                test_loss=_float(data.get("test_loss")),
                test_split=None if splits[1] is None else Split(splits[1]),
                baseline_loss=_float(data.get("baseline_loss")),
                notices=tuple(map(str, data.get("notices", ()))),
                valid_tokens=_count(data, "valid_tokens", 0),
                test_tokens=_count(data, "test_tokens", 0),
            )
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as fault:
            raise LoadError(f"the training record cannot be read: {fault}") from fault


def divergence_notices(loss: float, V: int) -> tuple[str, ...]:
    """Returns a notice if a run's last loss is far above that of guessing, or none.

    Args:
        loss: The last loss, in mean nats per token.
        V: Tokens in the vocabulary.
    """
    guessing = math.log(max(V, 2))
    if not loss > DIVERGED * guessing:
        return ()
    return (
        f"the run diverged: at its end the loss was {loss:.3g} nats per token, where guessing "
        f"costs {guessing:.3g}; lower the learning rate",
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _count(data: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Returns a field that is a count.

    Raises:
        KeyError: It is missing, and there is no default.
        ValueError: It is below 0, or does not fit into 64 bits.
    """
    count = int(data[name] if default is None else data.get(name, default))
    if not 0 <= count <= MAX_UINT64:
        raise ValueError(f"{name} is {count}, and must be 0 to {MAX_UINT64}")
    return count
