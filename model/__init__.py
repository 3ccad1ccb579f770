"""Train models, generate and score with them, without a server.

from treadle.model import Model, train

model = train("hello", max_steps=300)
model.generate("h", temperature=0, max_new_tokens=4)   # 'ello'
model.score("hello").mean_nats
model.save("hello.safetensors")
model = Model.load("hello.safetensors")
"""

from typing import TYPE_CHECKING, Any
from warnings import warn as _warn

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.enums import (
    Cell,
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    InferencePrecision,
    Keep,
    OptimizerKind,
    Precision,
    Preset,
    Schedule,
    Softmax,
    Split,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import (
    ConfigError,
    CorpusError,
    EncodingError,
    ForeignStateError,
    LayerError,
    LoadError,
    ModelError,
    PackageError,
    StateError,
    TokenError,
    TrainingError,
    UnknownSymbolError,
)
from treadle.model.generation.output import GenerateResult, OutputOptions, Piece, StopReason
from treadle.model.kernel_cache import (
    compiled_for,
    drop_temporary_kernels,
    kernel_folder,
    kernels_ready,
    sweep_temporary_kernels,
    temporary_kernels,
)
from treadle.model.model import Model
from treadle.model.network.layer import RecurrentLayer
from treadle.model.network.session_state import SessionState
from treadle.model.online.config import LearningConfig
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details, TextScore
from treadle.model.scoring.token_score import TokenScore
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.torch_import import import_state_dict
from treadle.model.training.progress import Progress, Started
from treadle.model.training.standalone_adam import Adam
from treadle.model.training.trainer import Trainer, train
from treadle.model.training_record import TrainingRecord
from treadle.model.warmup.groups import warm

__all__ = [
    "Adam",
    "Cell",
    "ConfigError",
    "Corpus",
    "CorpusError",
    "CorpusFile",
    "CorpusFormat",
    "CorpusLayout",
    "CorpusRole",
    "DataConfig",
    "Details",
    "EncodingError",
    "ForeignStateError",
    "GenerateResult",
    "InferencePrecision",
    "Keep",
    "LayerError",
    "Learner",
    "LearningConfig",
    "LimitsConfig",
    "LoadError",
    "Model",
    "ModelError",
    "NetworkConfig",
    "OptimizerConfig",
    "OptimizerKind",
    "OutputOptions",
    "PackageError",
    "Piece",
    "Precision",
    "Preset",
    "Progress",
    "RecurrentLayer",
    "ReportConfig",
    "SamplingConfig",
    "Schedule",
    "SessionState",
    "Softmax",
    "Split",
    "Started",
    "StateError",
    "StopReason",
    "TextScore",
    "TokenError",
    "TokenScore",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerKind",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "TrainingRecord",
    "UnknownPolicy",
    "UnknownSymbolError",
    "build_tokenizer",
    "compiled_for",
    "drop_temporary_kernels",
    "import_state_dict",
    "kernel_folder",
    "kernels_ready",
    "read_corpus",
    "sweep_temporary_kernels",
    "temporary_kernels",
    "train",
    "warm",
]

_RENAMED = {"CheckpointError": "LoadError", "Wanted": "OutputOptions"}
"""Old names of the package's members, which still work, and the new ones."""

if not TYPE_CHECKING:  # to a type checker every name would exist

    def __getattr__(name: str) -> Any:
        """Returns a member by its old name."""
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        new = _RENAMED[name]
        _warn(f"treadle.model.{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return globals()[new]
