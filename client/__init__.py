"""A thin client of the Treadle service: grpcio and protobuf only.

from pathlib import Path
from treadle.client import Client

with Client("127.0.0.1:50051") as client:
    client.train(Path("names.txt"), model="names", layout="lines", max_steps=500).result()
    print(client.generate_text("names", "Ma", temperature=0.8, seed=1))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.corpus import CorpusFile
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

# These load gRPC, and the command line prints its help without it.
_LATE = {
    "Client": "treadle.client.client",
    "CorpusFile": "treadle.client.corpus",
    "END": "treadle.client.tokens",
    "EmbedOptions": "treadle.client.options",
    "GenerateOptions": "treadle.client.options",
    "Generation": "treadle.client.texts",
    "Items": "treadle.client.items",
    "LearnStream": "treadle.client.learn_streams",
    "LearnStreamOptions": "treadle.client.options",
    "LearntPieces": "treadle.client.learn_streams",
    "Piece": "treadle.client.pieces",
    "ScoreOptions": "treadle.client.options",
    "ScoreStream": "treadle.client.score_streams",
    "ScoreStreamOptions": "treadle.client.options",
    "ScoredPieces": "treadle.client.score_streams",
    "Session": "treadle.client.session",
    "Text": "treadle.client.texts",
    "TrainOptions": "treadle.client.options",
    "TrainingRun": "treadle.client.runs",
    "read_lines": "treadle.client.text_input",
    "read_text": "treadle.client.text_input",
}


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
