"""`Started`, `Progress` and `Validation` are the reports of a training run."""

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
    """The resolved settings and the sizes of a run."""

    config: TrainConfig
    """The resolved settings: with all defaults, and with sizes after shrinking."""
    notices: tuple[str, ...]
    """Notices about settings that were shrunk or chosen."""
    train_tokens: int
    """Tokens trained on."""
    valid_tokens: int
    """Tokens kept for validation."""
    vocabulary_size: int
    """Tokens in the vocabulary."""
    parameter_count: int
    """Number of trained parameters."""
    total_steps: int
    """Optimizer steps planned; 0 if the run is not limited by steps."""
    test_tokens: int = 0
    """Tokens kept for the test."""
    valid_split: Split | None = None
    """The source of the validation part; None without one."""
    test_split: Split | None = None
    """The source of the test part; None without one."""
    baseline_loss: float | None = None
    """Validation loss of an n-gram, in nats per token; None without a validation part."""
    baseline_order: int = 0
    """The n of that n-gram; 0 without a validation part."""


@dataclass(frozen=True)
class Progress:
    """How far a run has progressed, and its losses."""

    step: int
    """Optimizer steps done."""
    epoch: float
    """Passes over the training part done."""
    tokens_seen: int
    """Tokens trained on, repeats counted."""
    train_loss: float
    """Mean training loss since the last progress, in nats per token."""
    valid_loss: float | None
    """Mean validation loss in nats per token; None if no validation was made."""
    tokens_per_second: float
    """Tokens trained on per second since the last progress."""
    elapsed_s: float
    """Seconds of training, validations and samples included."""
    time_left_s: float | None
    """Estimated seconds until the nearest limit; None without an estimate."""
    gradient_norm: float
    """The gradient's global norm at the last step, before clipping."""
    learning_rate: float
    """The learning rate of the last step."""
    sample: str | None
    """Text drawn from the current model; None if no text was drawn."""
    valid_perplexity: float | None = None
    """exp(valid_loss); None without it."""
    valid_bits_per_character: float | None = None
    """Validation loss in bits per code point; None without valid_loss."""
    best_valid_loss: float | None = None
    """The lowest valid_loss so far; None before the first."""
    memory_bytes: int = 0
    """Memory of the process in bytes; 0 if unknown."""
    sample_is_new: bool | None = None
    """Whether the sample differs from all training items; None if it is not a whole item."""
    valid_tokens: int = 0
    """Number of tokens in the mean valid_loss; 0 without it."""
    notices: tuple[str, ...] = ()
    """Notices about the run since the last progress."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Builds a progress from what `dataclasses.asdict` returned, read from JSON."""
        values = typed(cls, data)
        return cls(**{**values, "notices": tuple(map(str, values.get("notices", ())))})


@dataclass(frozen=True)
class Validation:
    """How far a validation has progressed."""

    tokens_done: int
    """Tokens that were read."""
    tokens_total: int
    """Tokens to read."""
    role: CorpusRole
    """The part that is read: VALID, or TEST at the end."""
    is_final: bool
    """Whether this is the pass at the end of the run."""
