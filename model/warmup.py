"""`warm` compiles every kernel, or loads it from the disk cache, before a request needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.substring_match import longest_match_by_ranks
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, InferencePrecision, OptimizerKind, Precision
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.model import Model
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details
from treadle.model.training.trainer import train


def warm() -> None:
    """Trains tiny models, scores and generates with them, so that every kernel is compiled."""
    config = TrainConfig(
        data=DataConfig(validation_fraction=0.4, novelty_index=True),
        network=NetworkConfig(hidden_size=2, layers=2, embedding_size=2),
        limits=LimitsConfig(max_steps=1),
    )
    corpus = b"warm " * 20  # enough for a validation part
    kinds = list(OptimizerKind)
    for number, cell in enumerate(Cell):
        # Every optimizer once, whatever the number of cells.
        kind = kinds[number % len(kinds)]
        # clip_value and a tiny clip_norm call the clipping kernels as well
        optimizer = OptimizerConfig(kind=kind, clip_value=1.0, clip_norm=1e-6, averaging=1.0)
        network = replace(config.network, cell=cell, embedding_size=2 * (cell is not Cell.RNN))
        model = train(corpus, replace(config, network=network, optimizer=optimizer))
        _warm_inference(model)
    tokens = np.zeros(2, np.int32)
    for text in (tokens.astype(np.uint8), tokens.astype(np.uint16), tokens):
        NoveltyIndex(text, tokens).novelty([0], model.tokenizer)
        longest_match_by_ranks(text, tokens, tokens, np.arange(3))
    if not BF16_MISSING:
        train(corpus, replace(config, optimizer=OptimizerConfig(precision=Precision.BF16)))


def _warm_inference(model: Model) -> None:
    """Generates and scores in every way that has its own kernels."""
    reported: dict[str, Any] = {"ranks": True, "top_log_probabilities": 2, "max_new_tokens": 2}
    changed: dict[str, Any] = {"repetition_penalty": 2, "min_p": 0.1, "typical_p": 0.5}
    for view in map(model.at, InferencePrecision):
        view.generate("warm", top_p=0.5, **reported, **changed, forced_tokens=(0,))
        view.generate("warm", best_of=2, **reported)
        view.score("warm", details=Details(ranks=True, alternatives=2))
    for _ in Learner(model).feed("warm", end=True, learn=True):
        pass
