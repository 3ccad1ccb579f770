"""Training runs that are small enough for a test, and the results to compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from treadle.model.config import DataConfig, NetworkConfig, ReportConfig, TrainConfig
from treadle.model.enums import Cell
from treadle.model.model import Model
from treadle.model.training.progress import Progress
from treadle.model.training.trainer import Trainer

TEXT = ("the quick brown fox jumps over the lazy dog; " * 40).encode()
NAMES = b"".join(name + b"\n" for name in (b"anna", b"bert", b"carla", b"dora", b"emil") * 8)
QUIET = ReportConfig(progress_interval_s=1e6, sample_tokens=0)
TINY = NetworkConfig(cell=Cell.RNN, hidden_size=4, embedding_size=0)


def config_of(**sections: Any) -> TrainConfig:
    """A tiny RNN on small batches that reports only at validations, without samples."""
    defaults: dict[str, Any] = {
        "network": TINY,
        "data": DataConfig(batch_size=3, window=5),
        "report": QUIET,
    }
    return TrainConfig(**{**defaults, **sections})


def hundred_batches(**sections: Any) -> Trainer:
    """A run with exactly 100 batches an epoch and nothing for validation."""
    data = DataConfig(batch_size=1, window=2, validation_fraction=0)
    return Trainer(b"ab" * 100 + b"a", config_of(data=data, **sections))


def run(trainer: Trainer, stop: Callable[[], bool] | None = None) -> list[Progress]:
    return list(trainer.run() if stop is None else trainer.run(stop))


def weights_of(model: Model) -> bytes:
    return model.parameters.flat.tobytes()


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= steps
