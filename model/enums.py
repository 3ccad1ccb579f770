"""`Cell`, `TokenizerKind` and the other enums are the settings with a few named values.

The values are those that a config takes as strings and that a model file stores.
"""

from __future__ import annotations

import enum


class UnknownPolicy(enum.StrEnum):
    """What to do with a symbol that the vocabulary lacks, and with bytes that are not UTF-8."""

    ERROR = "error"
    SKIP = "skip"
    UNKNOWN = "unknown"


class TokenizerKind(enum.StrEnum):
    """The unit that one token stands for."""

    CHARACTERS = "characters"
    BYTES = "bytes"
    WORDS = "words"
    SUBWORDS = "subwords"
    EVENTS = "events"
    WHITESPACE = "whitespace"

    @property
    def plural(self) -> str:
        """The plural for several tokens, in sentences."""
        return "words" if self is TokenizerKind.WHITESPACE else self.value


class Cell(enum.StrEnum):
    """The recurrent cell of a network."""

    RNN = "rnn"
    GRU = "gru"
    LSTM = "lstm"


class Softmax(enum.StrEnum):
    """How logits become probabilities: over all tokens at once, or in two levels."""

    FULL = "full"
    FACTORED = "factored"


class CorpusLayout(enum.StrEnum):
    """How a corpus is cut into sequences: one long text, or one item per line."""

    TEXT = "text"
    LINES = "lines"


class CorpusFormat(enum.StrEnum):
    """The format of a corpus file."""

    PLAIN = "plain"
    JSONL = "jsonl"
    CSV = "csv"


class MissingPolicy(enum.StrEnum):
    """What to do with a row of JSON lines or CSV that has no text."""

    ERROR = "error"
    SKIP = "skip"


class CorpusRole(enum.StrEnum):
    """The part of the data that a corpus file belongs to."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


class Split(enum.StrEnum):
    """The origin of the tokens of a loss: a tail, items drawn by the seed, or separate files."""

    TAIL = "tail"
    ITEMS = "items"
    FILES = "files"


class OptimizerKind(enum.StrEnum):
    """The rule by which gradients update weights."""

    SGD = "sgd"
    ADAGRAD = "adagrad"
    ADAM = "adam"


class Schedule(enum.StrEnum):
    """How the learning rate changes over a run."""

    CONSTANT = "constant"
    COSINE = "cosine"
    PLATEAU = "plateau"


class Precision(enum.StrEnum):
    """The numbers that matrix products of training multiply; all sums are in float32."""

    FP32 = "fp32"
    BF16 = "bf16"


class InferencePrecision(enum.StrEnum):
    """The numbers that matrix products of generating and scoring multiply.

    INT8 takes the nearest of 255 steps for weights and states; sums are exact, all else is in
    float32.
    """

    FP32 = "fp32"
    INT8 = "int8"


class Preset(enum.StrEnum):
    """A preset, which chooses settings together."""

    AUTO = "auto"


class Keep(enum.StrEnum):
    """Which weights of a run become the model: the best by validation, or the last."""

    BEST = "best"
    LAST = "last"
