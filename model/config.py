"""`TrainConfig` and `SamplingConfig` hold every setting of training and of sampling.

All configs are frozen dataclasses that check themselves when they are built, so a config is always
valid. Names, ranges and defaults are those of the wire contract (`treadle/v1/sequence.proto`). A
field that is None takes a default that depends on something else, as its docstring says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from treadle.model.enums import (
    Cell,
    CorpusFormat,
    CorpusLayout,
    Keep,
    MissingPolicy,
    OptimizerKind,
    Precision,
    Preset,
    Schedule,
    Softmax,
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

LEARNING_RATES = {OptimizerKind.ADAM: 0.003, OptimizerKind.ADAGRAD: 0.1, OptimizerKind.SGD: 0.5}
"""The default learning rate of each optimizer."""


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """Settings of the tokenizer."""

    section: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = field(default=TokenizerKind.CHARACTERS, metadata=choice(TokenizerKind))
    """The unit that one token stands for."""
    max_vocabulary_size: int = field(default=10_000, metadata=whole(1, 1_000_000))
    """The most tokens besides special ones, the most frequent; characters and bytes ignore it."""
    unknown_policy: UnknownPolicy | None = field(default=None, metadata=choice(UnknownPolicy))
    """What to do with unknown symbols; None: see `policy`."""
    min_frequency: int = field(default=1, metadata=whole(1, MAX_UINT32))
    """Symbols that occur less often in the corpus are unknown; bytes and subwords ignore it."""
    lower_case: bool = field(default=False, metadata=flag())
    """Whether to read text in lower case; bytes ignore it."""

    @property
    def lowers(self) -> bool:
        """Whether text is read in lower case; bytes are read as they are."""
        return self.lower_case and self.kind is not TokenizerKind.BYTES

    @property
    def policy(self) -> UnknownPolicy:
        """The policy in use; by default UNKNOWN for kinds of words, and ERROR for others."""
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
        """Whether a tokenizer of these settings supports UNKNOWN: it has or needs no unknown token.

        Bytes and subwords express every text; there UNKNOWN reads invalid bytes as U+FFFD.
        """
        needs_none = self.kind in (TokenizerKind.BYTES, TokenizerKind.SUBWORDS)
        return needs_none or self.policy is UnknownPolicy.UNKNOWN


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Settings of the network."""

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
    softmax: Softmax = field(default=Softmax.FULL, metadata=choice(Softmax))
    """Whether probabilities are computed over all tokens at once, or in two levels: FACTORED."""
    softmax_clusters: tuple[int, ...] = field(default=(), metadata=numbers(4096))
    """FACTORED: the first token of every cluster; empty: chosen from the corpus' token counts."""


@dataclass(frozen=True)
class DataConfig(Checked):
    """Settings of the corpus: how it is read, cut into sequences and split."""

    section: ClassVar[str] = "data"

    layout: CorpusLayout = field(default=CorpusLayout.TEXT, metadata=choice(CorpusLayout))
    """How the corpus is cut into sequences."""
    validation_fraction: float = field(default=0.1, metadata=real(below=1))
    """Share kept for validation: the tail of a text, or items drawn by the seed."""
    batch_size: int = field(default=32, metadata=whole(1, 4096))
    """Sequences in a batch; lowered for a corpus that is too small."""
    window: int = field(default=64, metadata=whole(1, 4096))
    """Steps of backpropagation through time; lowered for a corpus that is too small."""
    test_fraction: float = field(default=0.0, metadata=real(below=1))
    """Share kept for a test at the end, chosen in the same way."""
    format: CorpusFormat = field(default=CorpusFormat.PLAIN, metadata=choice(CorpusFormat))
    """The format of the files; JSONL and CSV have the layout LINES."""
    column: str = field(default="text", metadata=text(1, 256))
    """JSONL and CSV: the field or column of the items."""
    encoding: str = field(default="utf-8", metadata=text(1, 40))
    """The encoding of the files; bytes tokenizers ignore it."""
    novelty_index: bool = field(default=False, metadata=flag())
    """Whether the model gets an index of the training part, to find out what is new in a text."""
    missing: MissingPolicy = field(default=MissingPolicy.ERROR, metadata=choice(MissingPolicy))
    """JSONL and CSV: what to do with rows whose field is null or missing."""


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Settings of the optimizer."""

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
    """Weight decay: decoupled, except for ADAGRAD, which adds it to the gradient like PyTorch."""
    clip_norm: float = field(default=1.0, metadata=real())
    """The largest global norm of the gradient; a larger one is scaled down; 0: no limit."""
    clip_value: float = field(default=0.0, metadata=real())
    """Elements of the gradient are first clipped to [-clip_value, clip_value]; 0: no clipping."""
    precision: Precision = field(default=Precision.FP32, metadata=choice(Precision))
    """The numbers that training multiplies; BF16 is faster, less exact, and needs AVX512_BF16."""
    accumulation_steps: int = field(default=1, metadata=whole(1, 4096))
    """Batches whose gradients are added up for one step."""
    plateau_factor: float = field(default=0.5, metadata=real(above=0, below=1))
    """PLATEAU: the factor that the rate is multiplied by."""
    plateau_patience: int = field(default=2, metadata=whole(1, MAX_UINT32))
    """PLATEAU: validations without a better loss before that; PyTorch's patience plus 1."""
    final_rate: float = field(default=0.0, metadata=real(most=1))
    """COSINE: the share of the learning rate at which a run ends."""
    averaging: float = field(default=0.0, metadata=real())
    """The power by which later weights count more in the mean that becomes the model; 0: none."""

    @property
    def rate(self) -> float:
        """The learning rate in use: the one given, or the optimizer's default."""
        given = self.learning_rate
        return LEARNING_RATES[self.kind] if given is None else given


@dataclass(frozen=True)
class LimitsConfig(Checked):
    """Limits of a run, which ends at the first limit that it reaches."""

    section: ClassVar[str] = "limits"

    max_steps: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Optimizer steps."""
    max_epochs: float | None = field(default=None, metadata=real(above=0))
    """Passes over the training part; may be a fraction."""
    max_time_s: float | None = field(default=None, metadata=real(above=0))
    """Seconds of training, validations and the passes at the end included."""
    max_tokens: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Tokens trained on, repeats counted."""
    max_wall_time_s: float | None = field(default=None, metadata=real(above=0))
    """Seconds of wall time while the run was running, everything included."""
    early_stopping_patience: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """Validations without a better loss after which the run ends; 0: it does not end so."""
    max_memory_bytes: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Bytes of memory that the run's process may take; None: no limit."""


@dataclass(frozen=True)
class ReportConfig(Checked):
    """Settings of the reports of a run."""

    section: ClassVar[str] = "report"

    progress_interval_s: float = field(default=1.0, metadata=real(least=0.05))
    """Seconds between progress events."""
    validation_interval_steps: int | None = field(default=None, metadata=whole(1, MAX_UINT64))
    """Steps between validations; None: a tenth of the run."""
    sample_tokens: int = field(default=80, metadata=whole(0, 1000))
    """Tokens of the sample text generated after each validation; 0: no samples."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """All settings of a training run, which define it together with the corpus."""

    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig, metadata=section(TokenizerConfig)
    )
    """Settings of the tokenizer."""
    data: DataConfig = field(default_factory=DataConfig, metadata=section(DataConfig))
    """Settings of the corpus."""
    network: NetworkConfig = field(default_factory=NetworkConfig, metadata=section(NetworkConfig))
    """Settings of the network."""
    optimizer: OptimizerConfig = field(
        default_factory=OptimizerConfig, metadata=section(OptimizerConfig)
    )
    """Settings of the optimizer."""
    limits: LimitsConfig = field(default_factory=LimitsConfig, metadata=section(LimitsConfig))
    """Limits of the run."""
    report: ReportConfig = field(default_factory=ReportConfig, metadata=section(ReportConfig))
    """Settings of the reports."""
    seed: int = field(default=0, metadata=whole(0, MAX_UINT64))
    """Seed of everything random in the run."""
    preset: Preset | None = field(default=None, metadata=choice(Preset))
    """Chooses all settings except those named in `given`."""
    given: tuple[str, ...] = field(default=(), metadata=texts(100, 100))
    """Dotted names of the settings that a preset leaves alone, such as `network.cell`."""
    keep: Keep = field(default=Keep.BEST, metadata=choice(Keep))
    """Which weights become the model."""


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """Settings of generation: how tokens are drawn, and when to stop."""

    temperature: float = field(default=1.0, metadata=real(most=100))
    """Divides the logits before the draw; 0 always takes the likeliest token (greedy)."""
    top_k: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """Draw among the k likeliest tokens only; 0 for all of them."""
    top_p: float = field(default=1.0, metadata=real(above=0, most=1))
    """Draw among the fewest likeliest tokens with this much probability together."""
    min_p: float = field(default=0.0, metadata=real(most=1))
    """Draw among the tokens at least this many times as likely as the likeliest; 0 for all."""
    seed: int | None = field(default=None, metadata=whole(0, MAX_UINT64))
    """Seed of the draws; None: a random seed, which the result reports."""
    max_new_tokens: int = field(default=256, metadata=whole(0, MAX_UINT32))
    """End after this many tokens; 0 draws no token."""
    stop_sequences: tuple[str, ...] = field(default=(), metadata=texts(16, 256))
    """End where one of these appears in the text; it is not part of the result."""
    unknown_policy: UnknownPolicy | None = field(default=None, metadata=choice(UnknownPolicy))
    """What to do with unknown symbols of the prompt; None: the model's own policy."""
    typical_p: float = field(default=1.0, metadata=real(above=0, most=1))
    """Draw among the tokens closest to the expected surprisal, of this much probability."""
    repetition_penalty: float = field(default=1.0, metadata=real(least=0.01, most=100))
    """Divides positive and multiplies negative logits of tokens that have occurred before."""
    presence_penalty: float = field(default=0.0, metadata=real(least=-100, most=100))
    """Subtracted from the logit of every token that occurs in the new text."""
    frequency_penalty: float = field(default=0.0, metadata=real(least=-100, most=100))
    """Subtracted from a token's logit once for each time that it occurs in the new text."""
    token_biases: tuple[tuple[int, float], ...] = field(default=(), metadata=biases(1024))
    """Tokens, and the numbers added to their logits, each -100 to 100."""
    banned_tokens: tuple[int, ...] = field(default=(), metadata=numbers(1024))
    """Tokens never to draw."""
    forced_tokens: tuple[int, ...] = field(default=(), metadata=numbers(1024))
    """The first tokens of the new text, whatever their probabilities."""
    min_new_tokens: int = field(default=0, metadata=whole(0, MAX_UINT32))
    """No end token and no stop sequence ends the text before this many tokens."""
    max_time_s: float | None = field(default=None, metadata=real(above=0))
    """End after this many seconds."""
    ranks: bool = field(default=False, metadata=flag())
    """Whether to report the rank of each token."""
    top_log_probabilities: int = field(default=0, metadata=whole(0, 20))
    """Report so many of the likeliest tokens in the place of each token."""
    regex: str = field(default="", metadata=text(0, 4096))
    """Regular expression that the whole new text must match; empty: any text.

    The probabilities of the tokens that may follow are scaled up to 1 at each token. So matching
    texts are not drawn in proportion to the model's probability of them; docs/constraints.md
    describes what to do if that matters.
    """
    best_of: int = field(default=0, metadata=whole(1, 64, or_off=True))
    """Width of a beam search for the likeliest text; 0: draw tokens instead."""
