"""`Client` calls a Treadle server; this package needs grpcio and protobuf only.

from pathlib import Path
from treadle.client import Client

with Client("127.0.0.1:50051") as client:
    client.train(Path("names.txt"), model="names", layout="lines", max_steps=500).result()
    print(client.generate_text("names", "Ma", temperature=0.8, seed=1))
"""

from __future__ import annotations

# Known to type checkers by its name: loading `typing` takes longer than all else here.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from treadle.client.access.bearer_token import TokenFile
    from treadle.client.client import Client
    from treadle.client.errors import (
        CancelledError,
        DeadlineExceededError,
        FailedPreconditionError,
        InputError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        QuotaExceededError,
        QuotaViolation,
        ResourceExhaustedError,
        ServerError,
        TreadleError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        Violation,
    )
    from treadle.client.files.corpus import CorpusFile
    from treadle.client.files.decoding import read_lines, read_text
    from treadle.client.generate_many import Items
    from treadle.client.generation import GeneratedText, Generation
    from treadle.client.learn_stream import LearnedPieces, LearnStream
    from treadle.client.messages.tokens import END
    from treadle.client.options import (
        EmbedOptions,
        GenerateOptions,
        LearnStreamOptions,
        ScoreOptions,
        ScoreStreamOptions,
        TrainOptions,
    )
    from treadle.client.score_stream import ScoredPieces, ScoreStream
    from treadle.client.session import Session
    from treadle.client.streaming import StreamPiece
    from treadle.client.sweep.spec import SweepSpec
    from treadle.client.sweep.sweep import Sweep, SweepEvent
    from treadle.client.sweep.trial import Trial
    from treadle.client.training_run import TrainingRun

__all__ = [
    "END",
    "CancelledError",
    "Client",
    "CorpusFile",
    "DeadlineExceededError",
    "EmbedOptions",
    "FailedPreconditionError",
    "GenerateOptions",
    "GeneratedText",
    "Generation",
    "InputError",
    "InternalError",
    "InvalidArgumentError",
    "Items",
    "LearnStream",
    "LearnStreamOptions",
    "LearnedPieces",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "QuotaViolation",
    "ResourceExhaustedError",
    "ScoreOptions",
    "ScoreStream",
    "ScoreStreamOptions",
    "ScoredPieces",
    "ServerError",
    "Session",
    "StreamPiece",
    "Sweep",
    "SweepEvent",
    "SweepSpec",
    "TokenFile",
    "TrainOptions",
    "TrainingRun",
    "TreadleError",
    "Trial",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "read_lines",
    "read_text",
]

# Imported when first used: the command line prints its help without gRPC, which some of these
# modules load. And Ctrl-C ends in a traceback until the command handles it, after this module.
_LATE = {
    "CancelledError": "treadle.client.errors",
    "Client": "treadle.client.client",
    "CorpusFile": "treadle.client.files.corpus",
    "DeadlineExceededError": "treadle.client.errors",
    "END": "treadle.client.messages.tokens",
    "EmbedOptions": "treadle.client.options",
    "FailedPreconditionError": "treadle.client.errors",
    "GenerateOptions": "treadle.client.options",
    "Generation": "treadle.client.generation",
    "InputError": "treadle.client.errors",
    "InternalError": "treadle.client.errors",
    "InvalidArgumentError": "treadle.client.errors",
    "Items": "treadle.client.generate_many",
    "LearnStream": "treadle.client.learn_stream",
    "LearnStreamOptions": "treadle.client.options",
    "LearnedPieces": "treadle.client.learn_stream",
    "NotFoundError": "treadle.client.errors",
    "PermissionDeniedError": "treadle.client.errors",
    "QuotaExceededError": "treadle.client.errors",
    "QuotaViolation": "treadle.client.errors",
    "StreamPiece": "treadle.client.streaming",
    "Sweep": "treadle.client.sweep.sweep",
    "SweepEvent": "treadle.client.sweep.sweep",
    "SweepSpec": "treadle.client.sweep.spec",
    "Trial": "treadle.client.sweep.trial",
    "ResourceExhaustedError": "treadle.client.errors",
    "ScoreOptions": "treadle.client.options",
    "ScoreStream": "treadle.client.score_stream",
    "ScoreStreamOptions": "treadle.client.options",
    "ScoredPieces": "treadle.client.score_stream",
    "ServerError": "treadle.client.errors",
    "Session": "treadle.client.session",
    "GeneratedText": "treadle.client.generation",
    "TokenFile": "treadle.client.access.bearer_token",
    "TrainOptions": "treadle.client.options",
    "TrainingRun": "treadle.client.training_run",
    "TreadleError": "treadle.client.errors",
    "UnauthenticatedError": "treadle.client.errors",
    "UnavailableError": "treadle.client.errors",
    "UnimplementedError": "treadle.client.errors",
    "Violation": "treadle.client.errors",
    "read_lines": "treadle.client.files.decoding",
    "read_text": "treadle.client.files.decoding",
}


_DEPRECATED = {
    "LearntPieces": "LearnedPieces",
    "Piece": "StreamPiece",
    "Text": "GeneratedText",
}
"""Public names of earlier versions, and the names that replace them."""


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used; a deprecated one with a warning."""
    from importlib import import_module

    if name in _DEPRECATED:
        import warnings

        warnings.warn(
            f"treadle.client.{name} is now called {_DEPRECATED[name]}",
            DeprecationWarning,
            stacklevel=2,
        )
        name = _DEPRECATED[name]
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
