"""A thin client of the Treadle service: grpcio and protobuf only.

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
    from treadle.client.client import Client
    from treadle.client.corpus import CorpusFile
    from treadle.client.errors import (
        CancelledError,
        DeadlineExceededError,
        FailedPreconditionError,
        InputError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        ServerError,
        TreadleError,
        UnavailableError,
        UnimplementedError,
        Violation,
    )
    from treadle.client.items import Items
    from treadle.client.learn_streams import LearnStream, LearntPieces
    from treadle.client.options import (
        EmbedOptions,
        GenerateOptions,
        LearnStreamOptions,
        ScoreOptions,
        ScoreStreamOptions,
        TrainOptions,
    )
    from treadle.client.pieces import Piece
    from treadle.client.runs import TrainingRun
    from treadle.client.score_streams import ScoredPieces, ScoreStream
    from treadle.client.session import Session
    from treadle.client.text_input import read_lines, read_text
    from treadle.client.texts import Generation, Text
    from treadle.client.tokens import END

__all__ = [
    "END",
    "CancelledError",
    "Client",
    "CorpusFile",
    "DeadlineExceededError",
    "EmbedOptions",
    "FailedPreconditionError",
    "GenerateOptions",
    "Generation",
    "InputError",
    "InternalError",
    "InvalidArgumentError",
    "Items",
    "LearnStream",
    "LearnStreamOptions",
    "LearntPieces",
    "NotFoundError",
    "PermissionDeniedError",
    "Piece",
    "ResourceExhaustedError",
    "ScoreOptions",
    "ScoreStream",
    "ScoreStreamOptions",
    "ScoredPieces",
    "ServerError",
    "Session",
    "Text",
    "TrainOptions",
    "TrainingRun",
    "TreadleError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "read_lines",
    "read_text",
]

# Some load gRPC, without which the command line prints its help. And until the command has taken
# Ctrl-C for itself, which it does after this module, Ctrl-C ends in a traceback.
_LATE = {
    "CancelledError": "treadle.client.errors",
    "Client": "treadle.client.client",
    "CorpusFile": "treadle.client.corpus",
    "DeadlineExceededError": "treadle.client.errors",
    "END": "treadle.client.tokens",
    "EmbedOptions": "treadle.client.options",
    "FailedPreconditionError": "treadle.client.errors",
    "GenerateOptions": "treadle.client.options",
    "Generation": "treadle.client.texts",
    "InputError": "treadle.client.errors",
    "InternalError": "treadle.client.errors",
    "InvalidArgumentError": "treadle.client.errors",
    "Items": "treadle.client.items",
    "LearnStream": "treadle.client.learn_streams",
    "LearnStreamOptions": "treadle.client.options",
    "LearntPieces": "treadle.client.learn_streams",
    "NotFoundError": "treadle.client.errors",
    "PermissionDeniedError": "treadle.client.errors",
    "Piece": "treadle.client.pieces",
    "ResourceExhaustedError": "treadle.client.errors",
    "ScoreOptions": "treadle.client.options",
    "ScoreStream": "treadle.client.score_streams",
    "ScoreStreamOptions": "treadle.client.options",
    "ScoredPieces": "treadle.client.score_streams",
    "ServerError": "treadle.client.errors",
    "Session": "treadle.client.session",
    "Text": "treadle.client.texts",
    "TrainOptions": "treadle.client.options",
    "TrainingRun": "treadle.client.runs",
    "TreadleError": "treadle.client.errors",
    "UnavailableError": "treadle.client.errors",
    "UnimplementedError": "treadle.client.errors",
    "Violation": "treadle.client.errors",
    "read_lines": "treadle.client.text_input",
    "read_text": "treadle.client.text_input",
}


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
