"""What happens before the first step: the corpus, a preset's picks, weights, kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from treadle.model import model_file
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.data.token_array import in_memory
from treadle.model.generation.novelty import indexed_tokens, indexing_bytes
from treadle.model.memory_estimate import check_memory, corpus_bytes
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS
from treadle.model.training import fine_tuning
from treadle.model.training.optimizer import Optimizer

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.model import Model
    from treadle.model.scratch_files import Folder

Source = bytes | os.PathLike[str] | Sequence[CorpusFile] | Corpus
"""What a run may be given to train on: data, a file, several files, or a corpus already read."""


def read(
    source: Source, config: TrainConfig, init_from: Model | None, folder: Folder | None
) -> Corpus:
    """Return the corpus, in the tokens of the model to begin from."""
    if init_from is None:
        if isinstance(source, Corpus):
            return source
        return read_corpus(source, config.tokenizer, config.data, config.seed, folder=folder)
    if isinstance(source, Corpus):
        corpus = source
    else:
        corpus = read_corpus(
            source, data_config=config.data, seed=config.seed, folder=folder,
            fixed=init_from.tokenizer, unknown_policy=config.tokenizer.unknown_policy,
        )  # fmt: skip
    fine_tuning.check_vocabulary(corpus, init_from)
    return corpus


def check_fits(corpus: Corpus, config: TrainConfig, limit_bytes: int | None) -> Shape:
    """Return the network's sizes, if it fits in memory and its vocabulary in a file.

    Args:
        corpus: what is trained on.
        config: the settings as filled in.
        limit_bytes: the most that the run may take; None: whatever there is.

    Raises:
        ConfigError: the run would take more than that, or than `limits.max_memory_bytes`.
        CorpusError: no model file could hold the vocabulary.
    """
    shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
    limits = (limit_bytes, config.limits.max_memory_bytes)
    limit = min((known for known in limits if known is not None), default=None)
    if limit is not None:
        taken = _corpus_bytes(corpus)
        check_memory(config, shape.V, limit, _indexing(corpus, config), taken)
    model_file.check_vocabulary(corpus.tokenizer)
    return shape


def _corpus_bytes(corpus: Corpus) -> int:
    """Return what a corpus takes, in bytes; tokens that lie in a file do not count."""
    parts = [part for part in (corpus.train, corpus.valid, corpus.test) if part is not None]
    items = sum(part.items for part in parts if part.offsets is not None)
    kept = sum(in_memory(part.tokens) for part in parts)
    return corpus_bytes(items, corpus.tokenizer.vocabulary_size, kept)


def _indexing(corpus: Corpus, config: TrainConfig) -> int:
    """Return what making the novelty index takes, in bytes; 0 where none is made."""
    if not config.data.novelty_index:
        return 0
    return indexing_bytes(indexed_tokens(corpus.train.tokens, corpus.train.offsets))


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
