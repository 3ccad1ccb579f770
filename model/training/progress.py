"""`Started`, `Progress` and `Validation` are what a training run reports as it proceeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from treadle.model.field_checks import typed

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.enums import CorpusRole, Split


@dataclass(frozen=True)
class Started:
    """The settings and the corpus as a run uses them."""

    config: TrainConfig
    """The settings as used: every default filled in, every shrunk value as shrunk."""
    notices: tuple[str, ...]
    """Sentences about settings that were shrunk or chosen."""
    train_tokens: int
    """Tokens trained on."""
    valid_tokens: int
    """Tokens kept for validation."""
    vocabulary_size: int
    """Tokens in the vocabulary."""
    parameter_count: int
    """Numbers trained."""
    total_steps: int
    """Optimizer steps planned; 0 where no number of steps ends the run."""
    test_tokens: int = 0
    """Tokens kept for the test."""
    valid_split: Split | None = None
    """What valid_loss is measured on; None without a validation part."""
    test_split: Split | None = None
    """What the test loss is measured on; None without a test part."""
    baseline_loss: float | None = None
    """An n-gram's mean nats a token of the validation part; None without one."""
    baseline_order: int = 0
    """The n of that n-gram; 0 without one."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and how good it is."""

    step: int
    """Optimizer steps done."""
    epoch: float
    """Passes over the training part done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean nats a token since the last progress."""
    valid_loss: float | None
    """Mean nats a token of what validations read; None where no validation was done."""
    tokens_per_second: float
    """Tokens trained on a second since the last progress."""
    elapsed_s: float
    """Seconds of training, validations and samples included."""
    time_left_s: float | None
    """Estimated seconds until the nearest limit; None where there is no estimate."""
    gradient_norm: float
    """The gradient's global norm at the last step, before clipping."""
    learning_rate: float
    """The learning rate of the last step."""
    sample: str | None
    """Text drawn from the model as it is now; None where no text was drawn."""
    valid_perplexity: float | None = None
    """exp(valid_loss); None without it."""
    valid_bits_per_character: float | None = None
    """Bits a code point of the validation part; None without valid_loss."""
    best_valid_loss: float | None = None
    """The lowest valid_loss so far; None before the first."""
    memory_bytes: int = 0
    """Bytes of memory that the process takes; 0 where that is not known."""
    sample_is_new: bool | None = None
    """Whether the sample equals no item trained on; None where it is not a whole item."""
    valid_tokens: int = 0
    """Tokens that valid_loss is the mean of; 0 without it."""
    notices: tuple[str, ...] = ()
    """Sentences about what the run found since the last progress."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Builds a progress from what `dataclasses.asdict` returned, read from JSON."""
        values = typed(cls, data)
        return cls(**{**values, "notices": tuple(map(str, values.get("notices", ())))})


@dataclass(frozen=True)
class Validation:
    """How far a validation has come."""

    tokens_done: int
    """Tokens that were read."""
    tokens_total: int
    """Tokens to read."""
    role: CorpusRole
    """The part that is read: VALID, or TEST at the end."""
    is_final: bool
    """Whether this is the pass at the end of the run."""
