"""Every setting of training and sampling, with its range and default.

All are frozen dataclasses, checked when they are built: a config that exists is legal. Names,
ranges and defaults are those of the wire contract (`treadle/v1/sequence.proto`). A field left
at None takes a default that depends on something else, named in its docstring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from treadle.model.enums import (
    Cell,
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    Keep,
    MissingPolicy,
    OptimizerKind,
    Precision,
    Preset,
    Schedule,
    Split,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.field_checks import (
    MAX_UINT32,
    MAX_UINT64,
    Checked,
    biases,
    choice,
    flag,
    numbers,
    real,
    section,
    text,
    texts,
    whole,
)

__all__ = [
    "LEARNING_RATES",
    "Cell",
    "CorpusFormat",
    "CorpusLayout",
    "CorpusRole",
    "DataConfig",
    "Keep",
    "LimitsConfig",
    "MissingPolicy",
    "NetworkConfig",
    "OptimizerConfig",
    "OptimizerKind",
    "Precision",
    "Preset",
    "ReportConfig",
    "SamplingConfig",
    "Schedule",
    "Split",
    "TokenizerConfig",
    "TokenizerKind",
    "TrainConfig",
    "UnknownPolicy",
]

LEARNING_RATES = {OptimizerKind.ADAM: 0.003, OptimizerKind.ADAGRAD: 0.1, OptimizerKind.SGD: 0.5}
"""The learning rate that holds where none is given."""


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """How text becomes tokens."""

    section: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = field(default=TokenizerKind.CHARACTERS, metadata=choice(TokenizerKind))
    """What one token is."""
    max_vocabulary_size: int = field(default=10_000, metadata=whole(1, 1_000_000))
    """All but characters and bytes: this many of the most frequent are kept, special ones apart."""
    unknown_policy: UnknownPolicy | None = field(default=None, metadata=choice(UnknownPolicy))
    """What to do with unknown symbols; None: see `policy`."""
    min_frequency: int = field(default=1, metadata=whole(1, MAX_UINT32))
    """All but bytes and subwords: those that the corpus holds fewer times are unknown."""
    lower_case: bool = field(default=False, metadata=flag())
    """All but bytes: read text in lower case."""

    @property
    def lowers(self) -> bool:
        """Whether text is read in lower case; bytes are read as they are."""
        return self.lower_case and self.kind is not TokenizerKind.BYTES

    @property
    def policy(self) -> UnknownPolicy:
        """The policy that holds: where none is set, UNKNOWN for kinds of words, else ERROR."""
        if self.unknown_policy is not None:
            return self.unknown_policy
        open_ended = self.kind in (
            TokenizerKind.WORDS,
            TokenizerKind.EVENTS,
            TokenizerKind.WHITESPACE,
        )
        return UnknownPolicy.UNKNOWN if open_ended else UnknownPolicy.ERROR

    @property
    def obeys_unknown(self) -> bool:
        """Whether a tokenizer built by this can obey UNKNOWN: it has a token for it, or needs none.

        Every text is bytes and subwords; there UNKNOWN reads what is no text as U+FFFD.
        """
        needs_none = self.kind in (TokenizerKind.BYTES, TokenizerKind.SUBWORDS)
        return needs_none or self.policy is UnknownPolicy.UNKNOWN


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """The shape of the network."""

    section: ClassVar[str] = "network"

    cell: Cell = field(default=Cell.LSTM, metadata=choice(Cell))
    """The recurrent cell."""
    hidden_size: int = field(default=128, metadata=whole(1, 4096))
    """Hidden units in each layer."""
    layers: int = field(default=1, metadata=whole(1, 8))
    """Recurrent layers."""
    embedding_size: int = field(default=64, metadata=whole(0, 4096))
    """Length of a token's embedding vector; 0 feeds tokens one-hot."""
    dropout: float = field(default=0.0, metadata=real(below=1))
    """Share of the units dropped between layers in training; 0 drops none."""
    output_dropout: float = field(default=0.0, metadata=real(below=1))
    """Share of the last layer's units dropped before the output layer in training."""
    tied_weights: bool = field(default=False, metadata=flag())
    """Whether the output layer's weights are the embedding's; needs equal sizes."""


@dataclass(frozen=True)
class DataConfig(Checked):
    """How the corpus is cut, and how much of it is kept for validation."""

    section: ClassVar[str] = "data"

    layout: CorpusLayout = field(default=CorpusLayout.TEXT, metadata=choice(CorpusLayout))
    """How the corpus is cut into sequences."""
    validation_fraction: float = field(default=0.1, metadata=real(below=1))
    """Share kept for validation: the tail of a text, or items drawn by the seed."""
    batch_size: int = field(default=32, metadata=whole(1, 4096))
    """Sequences trained side by side; a corpus too small for it shrinks it."""
    window: int = field(default=64, metadata=whole(1, 4096))
    """Steps of backpropagation through time; a corpus too small for it shrinks it."""
    test_fraction: float = field(default=0.0, metadata=real(below=1))
    """Share kept for a test at the end, in the same way."""
    format: CorpusFormat = field(default=CorpusFormat.PLAIN, metadata=choice(CorpusFormat))
    """What the bytes of the files are; JSONL and CSV have the layout LINES."""
    column: str = field(default="text", metadata=text(1, 256))
    """JSONL and CSV: the field or column of the items."""
    encoding: str = field(default="utf-8", metadata=text(1, 40))
    """How files encode text; bytes tokenizers ignore it."""
    novelty_index: bool = field(default=False, metadata=flag())
    """Whether the model gets an index of the training part, to tell what is new by."""
    missing: MissingPolicy = field(default=MissingPolicy.ERROR, metadata=choice(MissingPolicy))
    """JSONL and CSV: what to do with rows whose field is null or not there."""


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """How the weights learn."""

    section: ClassVar[str] = "optimizer"

    kind: OptimizerKind = field(default=OptimizerKind.ADAM, metadata=choice(OptimizerKind))
    """The update rule."""
    learning_rate: float | None = field(default=None, metadata=real(above=0))
    """The highest learning rate; None: see `rate`."""
    schedule: Schedule = field(default=Schedule.COSINE, metadata=choice(Schedule))
    """How the rate changes over the run."""
    warmup_steps: int | None = field(default=None, metadata=whole(0, MAX_UINT32))
    """Steps over which the rate rises from 0; None: 100, or a tenth of a shorter run."""
    beta1: float = field(default=0.9, metadata=real(below=1))
    """Adam's decay of the mean of gradients."""
    beta2: float = field(default=0.99, metadata=real(below=1))
    """Adam's decay of the mean of squared gradients."""
    weight_decay: float = field(default=0.0, metadata=real())
    """Weight decay: decoupled, but for ADAGRAD, which adds it to the gradient as PyTorch does."""
    clip_norm: float = field(default=1.0, metadata=real())
    """The gradient's global norm is scaled down to this; 0 leaves it."""
    clip_value: float = field(default=0.0, metadata=real())
    """Each element of the gradient is first clipped to [-clip_value, clip_value]; 0 clips none."""
    precision: Precision = field(default=Precision.FP32, metadata=choice(Precision))
    """What training multiplies; BF16 is faster, less exact, and needs AVX512_BF16 to run."""
    accumulation_steps: int = field(default=1, metadata=whole(1, 4096))
    """Batches whose gradients are added up for one step."""
    plateau_factor: float = field(default=0.5, metadata=real(above=0, below=1))
    """PLATEAU: what the rate is multiplied by."""
    plateau_patience: int = field(default=2, metadata=whole(1, MAX_UINT32))
    """PLATEAU: validations without a better loss before that; PyTorch's patience and one."""

    @property
    def rate(self) -> float:
        """The learning rate that holds: the one given, or the optimizer's own default."""
        given = self.learning_rate
        return LEARNING_RATES[self.kind] if given is None else given


@dataclass(frozen=True)
class LimitsConfig(Checked):
    """When a run ends: at the first limit that it meets."""

    section: ClassVar[str] = "limits"

    max_steps: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Optimizer steps."""
    max_epochs: float | None = field(default=None, metadata=real(above=0))
    """Passes over the training part; fractions are legal."""
    max_time_s: float | None = field(default=None, metadata=real(above=0))
    """Seconds of training, validations and the passes at the end included."""
    max_tokens: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Tokens trained on, repeats counted."""
    max_wall_time_s: float | None = field(default=None, metadata=real(above=0))
    """Seconds by the clock in which the run ran, everything counted."""
    early_stopping_patience: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """Validations without a better loss after which the run ends; 0: never."""
    max_memory_bytes: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Memory that the run's process may take; None: whatever there is."""


@dataclass(frozen=True)
class ReportConfig(Checked):
    """How often a run reports."""

    section: ClassVar[str] = "report"

    progress_interval_s: float = field(default=1.0, metadata=real(least=0.05))
    """Seconds between progress events."""
    validation_interval_steps: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Steps between validations; None: a tenth of the run."""
    sample_tokens: int = field(default=80, metadata=whole(0, 1000))
    """Tokens in each sample of text made after a validation; 0 makes none."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Everything that defines a training run but the corpus itself."""

    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig, metadata=section(TokenizerConfig)
    )
    """How text becomes tokens."""
    data: DataConfig = field(default_factory=DataConfig, metadata=section(DataConfig))
    """How the corpus is cut."""
    network: NetworkConfig = field(default_factory=NetworkConfig, metadata=section(NetworkConfig))
    """The shape of the network."""
    optimizer: OptimizerConfig = field(
        default_factory=OptimizerConfig, metadata=section(OptimizerConfig)
    )
    """How the weights learn."""
    limits: LimitsConfig = field(default_factory=LimitsConfig, metadata=section(LimitsConfig))
    """When the run ends."""
    report: ReportConfig = field(default_factory=ReportConfig, metadata=section(ReportConfig))
    """How often the run reports."""
    seed: int = field(default=0, metadata=whole(0, MAX_UINT64))
    """Seed of everything random in the run."""
    preset: Preset | None = field(default=None, metadata=choice(Preset))
    """Settings to pick as a whole, but for those named in `given`."""
    given: tuple[str, ...] = field(default=(), metadata=texts(100, 100))
    """Dotted names of the settings that a preset leaves alone, such as `network.cell`."""
    keep: Keep = field(default=Keep.BEST, metadata=choice(Keep))
    """Which weights become the model."""


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """How tokens are drawn from a model, and when to stop."""

    temperature: float = field(default=1.0, metadata=real(most=100))
    """Divides the scores before the draw; 0 always takes the likeliest token (greedy)."""
    top_k: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """Draw among the k likeliest tokens only; 0 for all of them."""
    top_p: float = field(default=1.0, metadata=real(above=0, most=1))
    """Draw among the fewest likeliest tokens that hold this much probability."""
    min_p: float = field(default=0.0, metadata=real(most=1))
    """Draw among the tokens at least this many times as likely as the likeliest; 0 for all."""
    seed: int | None = field(default=None, metadata=whole(0, MAX_UINT64))
    """Seed of the draw; None: one is picked and returned."""
    max_new_tokens: int = field(default=256, metadata=whole(0, MAX_UINT32))
    """End after this many tokens; 0 makes none."""
    stop_sequences: tuple[str, ...] = field(default=(), metadata=texts(16, 256))
    """End where one of these appears in the text; it is not part of the result."""
    unknown_policy: UnknownPolicy | None = field(default=None, metadata=choice(UnknownPolicy))
    """What to do with unknown symbols of the prompt; None: the model's own policy."""
    typical_p: float = field(default=1.0, metadata=real(above=0, most=1))
    """Draw among the tokens of nearest to expected surprisal that hold this much probability."""
    repetition_penalty: float = field(default=1.0, metadata=real(least=0.01, most=100))
    """Divides positive logits, and multiplies negative ones, of tokens that were there before."""
    presence_penalty: float = field(default=0.0, metadata=real(least=-100, most=100))
    """Taken from the logit of every token that the new text holds."""
    frequency_penalty: float = field(default=0.0, metadata=real(least=-100, most=100))
    """Taken from a token's logit once for every time that the new text holds it."""
    token_biases: tuple[tuple[int, float], ...] = field(default=(), metadata=biases(1024))
    """Tokens and what is added to their logits, each -100 to 100."""
    banned_tokens: tuple[int, ...] = field(default=(), metadata=numbers(1024))
    """Tokens never to draw."""
    forced_tokens: tuple[int, ...] = field(default=(), metadata=numbers(1024))
    """The first tokens of the new text, whatever the model makes of them."""
    min_new_tokens: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """No end token and no stop sequence ends the text before this many tokens."""
    max_time_s: float | None = field(default=None, metadata=real(above=0))
    """End after this many seconds."""
    ranks: bool = field(default=False, metadata=flag())
    """Give each token's rank."""
    top_log_probabilities: int = field(default=0, metadata=whole(0, 20))
    """Give so many of the likeliest tokens in each one's place."""
    regex: str = field(default="", metadata=text(0, 4096))
    """What the whole new text must match; empty: anything.

    The probabilities of the tokens that may follow are scaled up to 1 at each token. So matching
    texts are not drawn in proportion to the model's probability of them: docs/constraints.md says
    what to do where that matters.
    """
    best_of: int = field(default=0, metadata=whole(0, 64))
    """Width of a beam search for the likeliest text; 0: draw."""
