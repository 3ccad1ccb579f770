"""Compiles every kernel, or loads it from the disk cache, before anyone waits for it."""

from __future__ import annotations

from dataclasses import replace

from treadle.kernels.compile import BF16_MISSING, TARGET
from treadle.model.config import (
    Cell,
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    OptimizerKind,
    Precision,
    TrainConfig,
)
from treadle.model.scores import Details
from treadle.model.trainer import train


def warm() -> None:
    """Train, score and generate with tiny models, so that every kernel is compiled and loaded."""
    config = TrainConfig(
        data=DataConfig(validation_fraction=0.4),
        network=NetworkConfig(hidden_size=2, layers=2, embedding_size=2),
        limits=LimitsConfig(max_steps=1),
    )
    corpus = b"warm " * 20  # enough for a validation part
    for kind, cell in zip(OptimizerKind, Cell, strict=True):
        # clip_value and a tiny clip_norm call the clipping kernels as well
        optimizer = OptimizerConfig(kind=kind, clip_value=1.0, clip_norm=1e-6)
        network = replace(config.network, cell=cell, embedding_size=2 * (cell is not Cell.RNN))
        model = train(corpus, replace(config, network=network, optimizer=optimizer))
        model.generate("warm", max_new_tokens=2, top_p=0.5)
        model.score("warm")
        model.score("warm", "warm", details=Details(ranks=True, alternatives=2))
    if not BF16_MISSING:
        train(corpus, replace(config, optimizer=OptimizerConfig(precision=Precision.BF16)))


def compiled_for() -> str:
    """Return the processor that kernels are compiled for, in LLVM's naming."""
    return TARGET.name
