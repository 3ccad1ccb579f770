"""`ModelError` and its subclasses are all errors of `treadle.model`.

::

    ModelError
    ├── ConfigError               a setting that is out of its range
    │   └── EffortError           a setting that needs more time or memory than allowed
    ├── CorpusError               a corpus that nothing can be learned from
    │   └── EncodingError         corpus bytes that are not UTF-8
    ├── UnknownSymbolError        a symbol that the vocabulary lacks
    ├── LoadError                 a model file, state dict or checkpoint that cannot be used
    ├── LayerError                an array that a layer cannot take
    ├── StateError                a session's state that is damaged or not authentic
    │   └── ForeignStateError     a state that another model has made
    ├── TokenError                a token that is not in the vocabulary
    ├── PackageError              a package that is missing, or that failed where it must not
    └── TrainingError             a run that cannot continue

Every message is one sentence for a human reader: it says what is wrong and how to fix it. The extra
arguments have defaults so that errors can be pickled between processes.
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors of `treadle.model`."""


class ConfigError(ModelError):
    """A setting is out of its range or contradicts another one.

    Args:
        message: One sentence.
        field: The setting, dotted from the config's root, such as `network.hidden_size`.

    `others` holds the other errors of the same config.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.others: tuple[ConfigError, ...] = ()

    @property
    def faults(self) -> tuple[ConfigError, ...]:
        """This error and all others of the same config, one for each field."""
        return (self, *self.others)


class EffortError(ConfigError):
    """A setting needs more time or memory than allowed, and might work with more."""


class CorpusError(ModelError):
    """The corpus is empty, or too small to make one step of training."""


class EncodingError(CorpusError):
    """The corpus is not UTF-8.

    Args:
        message: One sentence.
        offset: Position of the first bad byte, in bytes from the start of the corpus.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class UnknownSymbolError(ModelError):
    """A text holds a symbol that the vocabulary lacks.

    Args:
        message: One sentence.
        symbol: The symbol: a character or a word.
        position: Position of its start in the text, in code points.
    """

    def __init__(self, message: str, symbol: str = "", position: int = 0) -> None:
        super().__init__(message)
        self.symbol = symbol
        self.position = position


class LoadError(ModelError):
    """A model file, a state dict or a checkpoint is damaged, foreign or of another version."""


class LayerError(ModelError):
    """An array for a `RecurrentLayer` has the wrong shape or type, or comes at the wrong time."""


class TrainingError(ModelError):
    """A run cannot continue, for instance because its loss is no longer a number."""


class StateError(ModelError):
    """The bytes of a session's state are damaged, or not authentic."""


class ForeignStateError(StateError):
    """The state of a session belongs to another model."""


class TokenError(ModelError):
    """A token is not in the vocabulary of the model that is to read it."""


class PackageError(ModelError):
    """A package that Treadle calls is missing, or has failed in a way that it does not document."""
