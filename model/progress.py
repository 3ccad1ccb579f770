"""What a training run tells as it goes."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.model.config import TrainConfig


@dataclass(frozen=True)
class Started:
    """What became of the settings and the corpus."""

    config: TrainConfig
    """The settings as used: every default filled in, every shrunk value as shrunk."""
    notices: tuple[str, ...]
    """Sentences about what was shrunk or chosen."""
    train_tokens: int
    """Tokens trained on."""
    valid_tokens: int
    """Tokens kept for validation."""
    vocabulary_size: int
    """Tokens in the vocabulary."""
    parameter_count: int
    """Numbers trained."""
    total_steps: int
    """Optimizer steps planned; 0 where only time ends the run."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    """Optimizer steps done."""
    epoch: float
    """Passes over the training part done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean nats a token since the last progress."""
    valid_loss: float | None
    """Mean nats a token of the validation part; None where none was done."""
    tokens_per_second: float
    """Tokens trained on a second since the last progress."""
    elapsed_s: float
    """Seconds of training, validation not counted."""
    time_left_s: float | None
    """Seconds until the nearest limit, as far as can be told."""
    gradient_norm: float
    """The gradient's global norm at the last step, before clipping."""
    learning_rate: float
    """The learning rate of the last step."""
    sample: str | None
    """Text drawn from the model as it is now; None where none was."""
