"""`warm` compiles kernels, or loads them from the disk cache, before anything needs them.

They come in groups, in the order in which a server needs them. A group is made of tasks, each of
which calls kernels in the way that everything else does, with as little data as possible. Several
processes may run the tasks of a group at the same time: a kernel is compiled by the one that comes
first, and the others wait for it. Tasks that begin with different kernels therefore come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from functools import cache
from typing import Any

import numpy as np

from treadle.kernels.dispatcher import no_collection
from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.substring_match import longest_match_by_ranks
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, CorpusLayout, InferencePrecision, OptimizerKind, Precision
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.model import Model
from treadle.model.network.layer import RecurrentLayer
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.training.trainer import train


class KernelGroup(Enum):
    """Kernels that are needed together, in the order in which they are compiled."""

    INFERENCE = "generating and scoring"
    """Generating and scoring in float32, with every cell and every setting but those below."""
    TRAINING = "training"
    """Training in float32, with every cell and optimizer."""
    BF16 = "bfloat16"
    """Training in bfloat16, which AUTO measures; nothing where the processor lacks it."""
    DETAILS = "ranks, alternatives and the best of several texts"
    """Ranks and alternatives of tokens in generating and scoring, and beam search."""
    LEARNING = "learning from a stream"
    """Online learning."""
    INT8 = "int8"
    """Inference in int8, also with ranks, alternatives and beam search."""
    NOVELTY = "novelty"
    """Indexing a corpus, and finding the longest match in it."""


_CORPUS = b"warm " * 20  # enough for a validation part


def _tiny(cell: Cell, embedding_size: int) -> NetworkConfig:
    return NetworkConfig(cell=cell, hidden_size=2, layers=2, embedding_size=embedding_size)


@cache
def _models() -> tuple[Model, ...]:
    """Returns untrained models: one-hot, with a table of inputs, and without one."""
    tokenizer = ByteTokenizer(TokenizerConfig(), CorpusLayout.TEXT)
    made = []
    for cell, size in ((Cell.LSTM, 0), (Cell.GRU, 2), (Cell.RNN, 2)):
        network = _tiny(cell, size)
        shape = Shape.of(network, tokenizer.vocabulary_size)
        made.append(Model(network, tokenizer, Parameters.initial(shape, seed=1)))
    return tuple(made)


def _cells() -> None:
    for cell in Cell:
        layer = RecurrentLayer(cell, 2, 2)
        layer.forward(np.zeros((2, 2, 2), np.float32))


def _generate(model: Model) -> None:
    changed: dict[str, Any] = {"repetition_penalty": 2, "min_p": 0.1, "typical_p": 0.5}
    model.generate("warm", top_p=0.5, max_new_tokens=2, **changed, forced_tokens=(0,))


def _generation() -> None:
    for model in _models():
        _generate(model)


def _scores() -> None:
    for model in _models():
        model.score("warm")


def _gradients() -> None:
    for cell in Cell:
        layer = RecurrentLayer(cell, 2, 2)
        layer.forward(np.zeros((2, 2, 2), np.float32))
        layer.backward(np.zeros((2, 2, 2), np.float32))


def _config(cell: Cell, optimizer: OptimizerConfig, *, novelty: bool = False) -> TrainConfig:
    # clip_value and a tiny clip_norm call the clipping kernels as well
    return TrainConfig(
        data=DataConfig(validation_fraction=0.4, novelty_index=novelty),
        network=_tiny(cell, 2 * (cell is not Cell.RNN)),
        optimizer=replace(optimizer, clip_value=1.0, clip_norm=1e-6, averaging=1.0),
        limits=LimitsConfig(max_steps=1),
    )


def _training() -> None:
    kinds = list(OptimizerKind)
    cells = list(Cell)
    for number in range(max(len(kinds), len(cells))):  # each of both at least once
        optimizer = OptimizerConfig(kind=kinds[number % len(kinds)])
        for together in (1, 2):  # a series of steps; then one step, kernel by kernel
            settings = replace(optimizer, accumulation_steps=together)
            train(_CORPUS, _config(cells[number % len(cells)], settings))


def _details_of(model: Model) -> None:
    reported: dict[str, Any] = {"ranks": True, "top_log_probabilities": 2, "max_new_tokens": 2}
    model.generate("warm", **reported)
    model.generate("warm", best_of=2, **reported)
    model.score("warm", details=Details(ranks=True, alternatives=2))


def _details() -> None:
    for model in _models():
        _details_of(model)


def _learning() -> None:
    for model in _models():
        for _ in Learner(model).feed("warm", end=True, learn=True):
            pass


def _int8() -> None:
    for model in _models():
        view = model.at(InferencePrecision.INT8)
        _generate(view)
        view.score("warm")
        _details_of(view)


def _bf16() -> None:
    if not BF16_MISSING:
        for cell in Cell:
            train(_CORPUS, _config(cell, OptimizerConfig(precision=Precision.BF16)))


def _novelty() -> None:
    train(_CORPUS, _config(Cell.LSTM, OptimizerConfig(), novelty=True))
    tokens = np.zeros(2, np.int32)
    for text in (tokens.astype(np.uint8), tokens.astype(np.uint16), tokens):
        NoveltyIndex(text, tokens).novelty([0], _models()[0].tokenizer)
        longest_match_by_ranks(text, tokens, tokens, np.arange(3))


TASKS: dict[KernelGroup, tuple[Callable[[], None], ...]] = {
    KernelGroup.INFERENCE: (_cells, _generation, _scores),
    KernelGroup.TRAINING: (_gradients, _training),
    KernelGroup.BF16: (_bf16,),
    KernelGroup.DETAILS: (_details,),
    KernelGroup.LEARNING: (_learning,),
    KernelGroup.INT8: (_int8,),
    KernelGroup.NOVELTY: (_novelty,),
}
"""What calls the kernels of each group."""


def warm(groups: Iterable[KernelGroup] = tuple(KernelGroup)) -> None:
    """Compiles kernels in this process, or loads them from the disk cache.

    Args:
        groups: Which; all unless given.
    """
    with no_collection():
        for group in groups:
            for task in TASKS[group]:
                task()
