"""`load_corpus`, `check_fits`, `initial_parameters` and others prepare a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from treadle.model import model_file
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.data.token_array import memory_bytes
from treadle.model.enums import Softmax
from treadle.model.generation.novelty import indexed_tokens, indexing_bytes
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS, shard_count
from treadle.model.network.softmax_clusters import check_clusters_fit, choose_clusters
from treadle.model.training import fine_tuning
from treadle.model.training.optimizer import Optimizer
from treadle.model.training_memory import check_memory, corpus_bytes

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.data.batching import Batches
    from treadle.model.model import Model
    from treadle.model.scratch_files import Folder

_COUNTED = 10_000_000
"""Tokens that are counted for the clusters of a factored softmax, at most."""
_COUNTED_AT_ONCE = 1 << 20

CorpusSource = bytes | os.PathLike[str] | Sequence[CorpusFile] | Corpus
"""Sources of a training corpus: data, a file, several files, or a corpus already read."""


def load_corpus(
    source: CorpusSource, config: TrainConfig, init_from: Model | None, folder: Folder | None
) -> Corpus:
    """Returns the corpus of a run, in the tokens of its base model, if it has one.

    Args:
        source: The corpus, or its files.
        config: The run's settings.
        init_from: The model that the run starts from; None: random weights.
        folder: The folder of the unnamed temporary files that hold the tokens; None: the tokens are
            held in memory.

    Raises:
        ModelError: See `read_corpus`.
        ConfigError: The corpus is already read, with other tokens than the model's.
    """
    if init_from is None:
        if isinstance(source, Corpus):
            return source
        return read_corpus(source, config.tokenizer, config.data, config.seed, folder=folder)
    if isinstance(source, Corpus):
        corpus = source
    else:
        corpus = read_corpus(
            source,
            data_config=config.data,
            seed=config.seed,
            folder=folder,
            fixed=init_from.tokenizer,
            unknown_policy=config.tokenizer.unknown_policy,
        )
    fine_tuning.check_vocabulary(corpus, init_from)
    return corpus


def with_clusters(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """Returns the settings with the clusters of a factored softmax, chosen where none are given.

    Args:
        config: The run's settings.
        corpus: The corpus that is trained on.

    Raises:
        ConfigError: The vocabulary is too small for clusters, or for those that are given.
    """
    network = config.network
    V = corpus.tokenizer.vocabulary_size
    if network.softmax is Softmax.FACTORED and not network.softmax_clusters:
        counts = np.zeros(V, np.int64)
        for first in range(0, min(corpus.train.tokens.size, _COUNTED), _COUNTED_AT_ONCE):
            part = np.asarray(corpus.train.tokens[first : first + _COUNTED_AT_ONCE])
            counts += np.bincount(part, minlength=V)
        if corpus.tokenizer.end is not None:
            counts[corpus.tokenizer.end] += corpus.train.items
        network = replace(network, softmax_clusters=choose_clusters(counts))
    check_clusters_fit(network.softmax_clusters, V)
    return replace(config, network=network)


def check_fits(corpus: Corpus, config: TrainConfig, limit_bytes: int | None) -> Shape:
    """Checks that the network fits in memory, and its vocabulary in a file.

    Args:
        corpus: The corpus that is trained on.
        config: The resolved settings.
        limit_bytes: Upper limit of the memory of the run; None: no limit.

    Returns:
        The network's sizes.

    Raises:
        ConfigError: The run needs more memory than that, or than `limits.max_memory_bytes`.
        CorpusError: No model file could hold the vocabulary.
    """
    shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
    limits = (limit_bytes, config.limits.max_memory_bytes)
    limit = min((known for known in limits if known is not None), default=None)
    if limit is not None:
        check_memory(config, shape.V, limit, _indexing_bytes(corpus, config), _corpus_bytes(corpus))
    model_file.check_vocabulary(corpus.tokenizer)
    return shape


def _corpus_bytes(corpus: Corpus) -> int:
    """Returns the memory of a corpus, in bytes; tokens in a file do not count."""
    parts = [part for part in (corpus.train, corpus.valid, corpus.test) if part is not None]
    items = sum(part.items for part in parts if part.offsets is not None)
    kept = sum(memory_bytes(part.tokens) for part in parts)
    return corpus_bytes(items, corpus.tokenizer.vocabulary_size, kept)


def _indexing_bytes(corpus: Corpus, config: TrainConfig) -> int:
    """Returns the memory for making the novelty index, in bytes; 0 if none is made."""
    if not config.data.novelty_index:
        return 0
    return indexing_bytes(indexed_tokens(corpus.train.tokens, corpus.train.offsets))


def thread_notices(
    corpus: Corpus, batches: Batches, threads: int, processes: int = 1
) -> tuple[str, ...]:
    """Returns a notice if the batches are too small for all threads, and the corpus is not.

    Args:
        corpus: The corpus that is trained on.
        batches: The batches.
        threads: Threads that the kernels may use.
        processes: Processes that share the work, each with so many threads.
    """
    threads *= processes
    rows = batches.batch_size
    used = shard_count(rows)
    needed_rows = threads * SHARD_ROWS
    train = corpus.train
    most = train.items if train.offsets is not None else train.predicted // batches.window
    if used >= threads or most < needed_rows:
        return ()
    return (
        f"a batch of {rows:,} rows keeps {used:,} of {threads:,} threads busy, with {SHARD_ROWS} "
        f"rows each: batches of {needed_rows:,} rows would use them all",
    )


def initial_parameters(shape: Shape, seed: int, init_from: Model | None) -> Parameters:
    """Returns the initial weights of a run.

    Args:
        shape: The network's sizes.
        seed: Seed of random weights.
        init_from: The model whose weights are copied; None: random weights.
    """
    if init_from is None:
        return Parameters.initial(shape, seed)
    parameters = Parameters(shape)
    parameters.flat[:] = init_from.parameters.flat
    return parameters


def load_kernels(config: TrainConfig) -> None:
    """Compiles or loads the kernels of a step, on a tiny network, before the clock starts."""
    parameters = Parameters(Shape(config.network.cell, V=2, E=1, H=1, L=1))
    # One shard is one call. Two shards take calls of their own, which differ for a large network.
    for rows, is_small in ((1, True), (SHARD_ROWS + 1, True), (SHARD_ROWS + 1, False)):
        engine = Engine(parameters, rows, 1, Pool(1), precision=config.optimizer.precision)
        engine.is_small = is_small
        zeros = np.zeros((1, rows), np.int32)
        engine.loss_and_gradient(zeros, zeros, np.ones(rows, np.bool_))
    optimizer = Optimizer(replace(config.optimizer, clip_norm=1e-9), parameters)
    optimizer.step(engine.gradient, 0.0)
    if config.optimizer.accumulation_steps == 1:
        _load_series(
            Engine(parameters, 1, 1, Pool(1), precision=config.optimizer.precision), optimizer
        )


def _load_series(engine: Engine, optimizer: Optimizer) -> None:
    """Does what `load_kernels` does for a series of steps, of one step."""
    if not engine.takes_series:
        return
    zeros = np.zeros((1, 1), np.int32)
    lengths = np.ones(1, np.int32)
    counts = engine.count_series(zeros, zeros, lengths)
    settings, _ = optimizer.plan([0.0])
    update = optimizer.update(engine.gradient)
    engine.train_series(
        zeros, zeros, np.ones((1, 1), np.bool_), lengths, counts, settings, update, optimizer.steps
    )
