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
    from treadle.client.options import GenerateOptions, ScoreOptions, TrainOptions
    from treadle.client.runs import TrainingRun
    from treadle.client.streams import Generation

__all__ = [
    "CancelledError",
    "Client",
    "CorpusFile",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "GenerateOptions",
    "Generation",
    "InputError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "ScoreOptions",
    "ServerError",
    "TrainOptions",
    "TrainingRun",
    "TreadleError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
]

# These load gRPC, and the command line prints its help without it.
_LATE = {
    "Client": "treadle.client.client",
    "CorpusFile": "treadle.client.corpus",
    "Generation": "treadle.client.streams",
    "GenerateOptions": "treadle.client.options",
    "ScoreOptions": "treadle.client.options",
    "TrainOptions": "treadle.client.options",
    "TrainingRun": "treadle.client.runs",
}


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
