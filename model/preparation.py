"""What happens before the first step: the corpus, a preset's picks, weights, kernels."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from treadle.model import checkpoint, fine_tuning
from treadle.model.config import TrainConfig
from treadle.model.corpus import Corpus, read_corpus
from treadle.model.engine import SHARD_ROWS, Engine
from treadle.model.memory import check_memory
from treadle.model.model import Model
from treadle.model.optimizer import Optimizer
from treadle.model.parameters import Parameters, Shape
from treadle.model.pool import Pool


def read(
    corpus: bytes | os.PathLike[str] | Corpus, config: TrainConfig, init_from: Model | None
) -> Corpus:
    """Return the corpus, in the tokens of the model to begin from."""
    if init_from is None:
        if isinstance(corpus, Corpus):
            return corpus
        return read_corpus(corpus, config.tokenizer, config.data, config.seed)
    if not isinstance(corpus, Corpus):
        corpus = read_corpus(
            corpus, config.tokenizer, config.data, config.seed,
            fixed=init_from.tokenizer,  # type: ignore[call-arg]
        )  # fmt: skip
    fine_tuning.check_vocabulary(corpus, init_from)
    return corpus


def settle(
    config: TrainConfig, corpus: Corpus, threads: int
) -> tuple[TrainConfig, tuple[str, ...]]:  # fmt: skip
    """Return the settings with the preset's picks in them, which then are settings like any other.

    TO BE WIRED to `treadle.model.auto.pick`: its config must come back with preset None, since
    what was picked by today's speed has to hold when the run goes on tomorrow.
    """
    return config, ()


def check_fits(corpus: Corpus, config: TrainConfig, limit_bytes: int | None) -> Shape:
    """Return the network's sizes, if it fits in memory and its vocabulary in a file.

    Args:
        corpus: what is trained on.
        config: the settings as filled in.
        limit_bytes: the most that the run's arrays may take; None: whatever there is.

    Raises:
        ConfigError: the run would take more than that, or than `limits.max_memory_bytes`.
        CorpusError: no model file could hold the vocabulary.
    """
    shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
    limits = (limit_bytes, config.limits.max_memory_bytes)
    limit = min((known for known in limits if known is not None), default=None)
    if limit is not None:
        check_memory(config, shape.V, limit)
    checkpoint.check_vocabulary(corpus.tokenizer)
    return shape


def initial(shape: Shape, seed: int, init_from: Model | None) -> Parameters:
    """Return the weights that a run begins with."""
    if init_from is None:
        return Parameters.initial(shape, seed)
    parameters = Parameters(shape)
    parameters.flat[:] = init_from.parameters.flat
    return parameters


def load_kernels(config: TrainConfig) -> None:
    """Compile or load what a step needs, on a network of nothing, before the clock starts."""
    parameters = Parameters(Shape(config.network.cell, V=2, E=1, H=1, L=1))
    rows = SHARD_ROWS + 1  # two shards, for what adds them
    engine = Engine(parameters, rows, 1, Pool(1), precision=config.optimizer.precision)
    nothing = np.zeros((1, rows), np.int32)
    engine.loss_and_gradient(nothing, nothing, np.ones(rows, np.bool_))
    Optimizer(replace(config.optimizer, clip_norm=1e-9), parameters).step(engine.gradient, 0.0)
