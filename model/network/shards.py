"""`shard_slices` splits the rows of a batch into shards, whatever the number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SHARD_ROWS = 16
"""Rows of one shard; they determine the bits of a gradient."""

CONTINUED: Bools = np.zeros(1, np.bool_)
"""The `fresh` of a batch of one row that continues from its state, not from zeros."""


def shard_count(rows: int) -> int:
    """Returns the number of shards of a batch: the most threads that can work on it."""
    return -(-rows // SHARD_ROWS)


def shard_slices(rows: int) -> list[slice]:
    """Returns the rows of every shard of a batch."""
    return [slice(i, min(rows, i + SHARD_ROWS)) for i in range(0, rows, SHARD_ROWS)]


def cut_rows(
    rows: slice,
    tokens: Ints,
    targets: Ints,
    fresh: Bools,
) -> tuple[Ints, Ints, Bools]:
    """Returns a shard's part of a batch, contiguous as kernels require it.

    Args:
        rows: The shard's rows.
        tokens: (T, B), the tokens to read.
        targets: (T, B), the tokens to predict.
        fresh: (B,), rows that begin from zeros.
    """
    return (
        np.ascontiguousarray(tokens[:, rows]),
        np.ascontiguousarray(targets[:, rows]),
        np.ascontiguousarray(fresh[rows]),
    )
