"""`check_memory` estimates the memory of a training run and refuses one that does not fit."""

from __future__ import annotations

import math
import os
from pathlib import Path

from treadle.kernels import structs
from treadle.kernels.dropout import keep_bytes
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.structs import ROW_BLOCK
from treadle.model.config import TrainConfig
from treadle.model.enums import OptimizerKind
from treadle.model.errors import ConfigError, TrainingError
from treadle.model.network.engine import rows_of_table
from treadle.model.network.memory_estimate import (
    FLOAT_BYTES,
    MOMENTS,
    packed_floats,
    step_floats,
)
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS

_ITEM_BYTES = 72
"""Bytes of an item: its offset and length, its place in each order, and copies while these are
made. It is the most that was measured, with items of one character."""
_SYMBOL_BYTES = 250
"""Bytes of a symbol of the vocabulary: a string, its table entry, its count while it is built."""


def training_bytes(
    shape: Shape,
    rows: int,
    window: int,
    kind: OptimizerKind,
    drops: bool = False,
    accumulates: bool = False,
    drops_top: bool = False,
    averages: bool = False,
) -> int:
    """Returns the memory of the arrays of a run without its corpus, in bytes.

    Args:
        shape: The network's sizes.
        rows: Sequences in a batch.
        window: Steps of a batch.
        kind: The optimizer, which keeps moments as large as the parameters.
        drops: Whether units are dropped between layers.
        accumulates: Whether gradients of several batches are added up for a step.
        drops_top: Whether units are dropped before the output layer.
        averages: Whether a mean of the weights is kept.
    """
    H = shape.H
    L = shape.L
    G = shape.G
    dropping = H + (L - 1) * keep_bytes(H) / FLOAT_BYTES if drops and L > 1 else 0
    parameters = shape.parameter_count
    table = rows_of_table(shape.V, rows * window) * G
    shards = math.ceil(rows / SHARD_ROWS)
    # parameters, gradient, moments; the best ones; a copy that is validated or saved
    buffers = 2 + MOMENTS[kind] + 1 + 2 + accumulates + averages
    once = parameters * buffers + packed_floats(shape) + table
    work = rows * window * (step_floats(shape) + H + dropping)
    work += 2 * rows * L * H  # the states before a step, in case it is dropped
    logit_rows = min(structs.LOGIT_ROWS, rows * window)
    work += logit_rows * shards * shape.logit_width
    if shape.clusters:  # rows gathered for a cluster, and their gradient
        work += 2 * logit_rows * shards * H
    if drops_top:
        top = rows * window if shape.clusters else logit_rows * shards
        work += rows * window * keep_bytes(H) / FLOAT_BYTES + top * H
    if shape.tied:  # the gradient of the output weights is a separate array
        work += shards * H * shape.V
    block = ROW_BLOCK * PANEL * (panel_count(max(H, shape.E)) + panel_count(G))
    # The first shard's gradient is the sum itself.
    shard = shards * (table + block) + (shards - 1) * parameters
    return int(FLOAT_BYTES * (once + shard + work))


def corpus_bytes(items: int, vocabulary_size: int, tokens_in_memory: int = 0) -> int:
    """Returns the memory of a corpus after it was read, in bytes, from measurements.

    Args:
        items: Independent sequences in all its parts; 0 for one text.
        vocabulary_size: Tokens in the vocabulary.
        tokens_in_memory: Bytes of its tokens, if they are not in a file.
    """
    return items * _ITEM_BYTES + vocabulary_size * _SYMBOL_BYTES + tokens_in_memory


def check_memory(
    config: TrainConfig, vocabulary_size: int, limit_bytes: int, indexing: int = 0, corpus: int = 0
) -> None:
    """Refuses a run that does not fit in memory.

    Args:
        config: The run's settings.
        vocabulary_size: Tokens in the vocabulary; 1 if it is not known yet.
        limit_bytes: The most memory that it may take.
        indexing: Bytes for building its novelty index, at the end of the run.
        corpus: Bytes of its corpus; see `corpus_bytes`.

    Raises:
        ConfigError: It takes more; names the setting to lower.
    """
    shape = Shape.of(config.network, vocabulary_size)
    data = config.data
    kind = config.optimizer.kind
    needed = training_bytes(
        shape,
        data.batch_size,
        data.window,
        kind,
        drops=config.network.dropout > 0,
        accumulates=config.optimizer.accumulation_steps > 1,
        drops_top=config.network.output_dropout > 0,
        averages=config.optimizer.averaging > 0,
    )
    if needed + corpus + indexing <= limit_bytes:
        return
    own = config.limits.max_memory_bytes
    higher = "raise limits.max_memory_bytes, or " if own is not None and own <= limit_bytes else ""
    if needed <= limit_bytes < needed + corpus:
        raise ConfigError(
            f"training would take {_gibibytes(needed)} of memory, and {_gibibytes(corpus)} more "
            f"for the places and orders of the corpus' items, and may take "
            f"{_gibibytes(limit_bytes)}: {higher}give less data, or fewer and longer items",
            "data.layout",
        )
    needed += corpus
    if needed <= limit_bytes:
        raise ConfigError(
            f"training would take {_gibibytes(needed)} of memory, and {_gibibytes(indexing)} more "
            f"to make the novelty index, and may take {_gibibytes(limit_bytes)}: {higher}leave "
            "novelty_index out, or give less data",
            "data.novelty_index",
        )
    smallest = training_bytes(shape, 1, 1, kind)
    field = "network.hidden_size" if smallest > limit_bytes / 2 else "data.batch_size"
    remedy = (
        "lower network.hidden_size, network.layers or tokenizer.max_vocabulary_size"
        if field == "network.hidden_size"
        else "lower data.batch_size or data.window"
    )
    raise ConfigError(
        f"training would take {_gibibytes(needed)} of memory and may take "
        f"{_gibibytes(limit_bytes)}: {higher}{remedy}",
        field,
    )


def resident_bytes() -> int:
    """Returns the memory that this process takes now, in bytes; 0 where it is not known."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def check_resident(taken: int, limit_bytes: int | None) -> None:
    """Ends a run that takes more memory than allowed.

    Args:
        taken: The memory of the process in bytes, from `resident_bytes`.
        limit_bytes: The most that the process may take; None: no limit.

    Raises:
        TrainingError: It takes more; names the settings to lower.
    """
    if limit_bytes is not None and taken > limit_bytes:
        raise TrainingError(
            f"training takes {_gibibytes(taken)} of memory and max_memory_bytes allows "
            f"{_gibibytes(limit_bytes)}: lower data.batch_size, data.window or "
            "network.hidden_size"
        )


def _gibibytes(count: int) -> str:
    if count < 2**20 / 10:
        return "1 byte" if count == 1 else f"{count:,} bytes"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"
