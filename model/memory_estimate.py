"""How much memory a training run, a learner or a scorer will take, before it takes it."""

from __future__ import annotations

import math
import os
from pathlib import Path

from treadle.kernels import structures
from treadle.kernels.dropout import keep_bytes
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.matmul import panel_count
from treadle.kernels.transposed import ROW_BLOCK
from treadle.model.config import TrainConfig
from treadle.model.enums import Cell, OptimizerKind
from treadle.model.errors import ConfigError, TrainingError
from treadle.model.network.engine import rows_of_table
from treadle.model.network.prefill import WINDOW
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS
from treadle.model.online.config import LearningConfig

_FLOAT = 4
_ITEM_BYTES = 72
"""Where an item begins and how long it is, its place in each order, and copies while these are
made: at most so much was measured, of items of a character each."""
_SYMBOL_BYTES = 250
"""A symbol of the vocabulary: a string, its place in a table, its count while it is built."""
_MOMENTS = {OptimizerKind.SGD: 0, OptimizerKind.ADAGRAD: 1, OptimizerKind.ADAM: 2}


def training_bytes(
    shape: Shape, rows: int, window: int, kind: OptimizerKind, drops: bool = False,
    accumulates: bool = False, drops_top: bool = False,
) -> int:  # fmt: skip
    """Return what the arrays of a run take, in bytes, the corpus not counted.

    Args:
        shape: the network's sizes.
        rows: sequences in a batch.
        window: steps of a batch.
        kind: the optimizer, which keeps moments beside the parameters.
        drops: whether units are dropped between layers.
        accumulates: whether gradients of several batches are added up for a step.
        drops_top: whether units are dropped before the output layer.
    """
    H, L, G = shape.H, shape.L, shape.G
    dropping = H + (L - 1) * keep_bytes(H) / _FLOAT if drops and L > 1 else 0
    parameters = shape.parameter_count
    table = rows_of_table(shape.V, rows * window) * G
    shards = math.ceil(rows / SHARD_ROWS)
    # parameters, gradient, moments; the best ones; a copy that is validated or saved
    buffers = 2 + _MOMENTS[kind] + 1 + 2 + accumulates
    once = parameters * buffers + _packed_floats(shape) + table
    work = rows * window * (_step_floats(shape) + H + dropping)
    work += 2 * rows * L * H  # the states before a step, in case it is dropped
    logit_rows = min(structures.LOGIT_ROWS, rows * window)
    work += logit_rows * shards * shape.V
    if drops_top:
        work += rows * window * keep_bytes(H) / _FLOAT + logit_rows * shards * H
    if shape.tied:  # the gradient of the embedding's use as output weights stands by itself
        work += shards * H * shape.V
    block = ROW_BLOCK * PANEL * (panel_count(max(H, shape.E)) + panel_count(G))
    # The first shard's gradient lies where the sum is wanted.
    shard = shards * (table + block) + (shards - 1) * parameters
    return int(_FLOAT * (once + shard + work))


def learner_bytes(shape: Shape, config: LearningConfig, units: bool = False) -> int:
    """Return what a learner takes beside the model that it begins with, in bytes.

    Args:
        shape: the network's sizes.
        config: how it learns.
        units: whether a unit may be taken back, which keeps a copy of what it changes.
    """
    H, V, G = shape.H, shape.V, shape.G
    rows = rows_of_table(V, config.window)
    # The scorer's input, folded or not, and the engine's table with its gradient.
    tables = V * max(shape.E, G if shape.E == 0 or config.window >= V else 0) + 2 * rows * G
    work = config.window * (_step_floats(shape) + H) + min(structures.LOGIT_ROWS, config.window) * V
    block = ROW_BLOCK * PANEL * (panel_count(max(H, shape.E)) + panel_count(G))
    own = H * V if shape.tied else 0
    once = 2 * shape.parameter_count + _packed_floats(shape) + tables + work + block + own
    moments = _MOMENTS[config.optimizer] * shape.parameter_count
    copies = snapshot_bytes(shape, config) if units else 0
    return _FLOAT * (once + moments) + copies + scorer_bytes(shape)


def snapshot_bytes(shape: Shape, config: LearningConfig) -> int:
    """Return what a snapshot of a learner takes, in bytes."""
    return _FLOAT * shape.parameter_count * (1 + _MOMENTS[config.optimizer])


def scorer_bytes(shape: Shape) -> int:
    """Return what a scorer of one sequence takes beside the model, in bytes."""
    return _FLOAT * (WINDOW * (_step_floats(shape) + shape.V) + 4 * shape.L * shape.H)


def _step_floats(shape: Shape) -> int:
    """What a workspace holds of gates and states for a step of a row."""
    states = {Cell.LSTM: 2, Cell.GRU: 4, Cell.RNN: 1}[shape.cell]
    return shape.L * (shape.G + states * shape.H)


def _packed_floats(shape: Shape) -> int:
    """What the panels of all weights hold, both ways."""
    H, G, V = shape.H, shape.G, shape.V

    def panels(K: int, N: int) -> int:
        return K * panel_count(N) * PANEL

    layers = (2 * shape.L - 1) * (panels(H, G) + panels(G, H))
    return panels(shape.E, G) + layers + panels(H, V) + panels(V, H)


def corpus_bytes(items: int, vocabulary_size: int, tokens_in_memory: int = 0) -> int:
    """Return what a corpus that was read takes, in bytes; measured.

    Args:
        items: independent sequences in all its parts; 0 where it is one text.
        vocabulary_size: tokens in the vocabulary.
        tokens_in_memory: bytes of its tokens, where they are in no file.
    """
    return items * _ITEM_BYTES + vocabulary_size * _SYMBOL_BYTES + tokens_in_memory


def check_memory(
    config: TrainConfig, vocabulary_size: int, limit_bytes: int, indexing: int = 0, corpus: int = 0
) -> None:
    """Refuse a run that will not fit.

    Args:
        config: the run's settings.
        vocabulary_size: tokens in the vocabulary; 1 where it is not known yet.
        limit_bytes: the most that its arrays may take.
        indexing: bytes that its novelty index takes while it is made, at the end of the run.
        corpus: bytes that its corpus takes; see `corpus_bytes`.

    Raises:
        ConfigError: it takes more; names what to lower.
    """
    shape = Shape.of(config.network, vocabulary_size)
    data = config.data
    kind, drops = config.optimizer.kind, config.network.dropout > 0
    accumulates = config.optimizer.accumulation_steps > 1
    needed = training_bytes(
        shape, data.batch_size, data.window, kind, drops, accumulates,
        drops_top=config.network.output_dropout > 0,
    )  # fmt: skip
    if needed + corpus + indexing <= limit_bytes:
        return
    if needed <= limit_bytes < needed + corpus:
        raise ConfigError(
            f"training would take {_gibibytes(needed)} of memory, and {_gibibytes(corpus)} more "
            f"for the places and orders of the corpus' items, and may take "
            f"{_gibibytes(limit_bytes)}: give less data, or fewer and longer items",
            "data.layout",
        )
    needed += corpus
    if needed <= limit_bytes:
        raise ConfigError(
            f"training would take {_gibibytes(needed)} of memory, and {_gibibytes(indexing)} more "
            f"to make the novelty index, and may take {_gibibytes(limit_bytes)}: leave "
            "novelty_index out, or give less data",
            "data.novelty_index",
        )
    lone = training_bytes(shape, 1, 1, kind)
    field = "network.hidden_size" if lone > limit_bytes / 2 else "data.batch_size"
    remedy = (
        "lower network.hidden_size, network.layers or tokenizer.max_vocabulary_size"
        if field == "network.hidden_size"
        else "lower data.batch_size or data.window"
    )
    raise ConfigError(
        f"training would take {_gibibytes(needed)} of memory and may take "
        f"{_gibibytes(limit_bytes)}: {remedy}",
        field,
    )


def resident_bytes() -> int:
    """Return the memory that this process takes now, in bytes; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def check_resident(taken: int, limit_bytes: int | None) -> None:
    """End a run that has come to take more memory than it may.

    Args:
        taken: what `resident_bytes` returned.
        limit_bytes: the most that the process may take; None: whatever there is.

    Raises:
        TrainingError: it takes more; says how much, and what to lower.
    """
    if limit_bytes is not None and taken > limit_bytes:
        raise TrainingError(
            f"training takes {_gibibytes(taken)} of memory and max_memory_bytes allows "
            f"{_gibibytes(limit_bytes)}: lower data.batch_size, data.window or "
            "network.hidden_size"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"
