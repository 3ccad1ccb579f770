"""`permutation` draws an order from a seed.

An order depends only on (seed, purpose, round): not on earlier draws, and not on the version of
NumPy. It sorts the raw output of Philox (Salmon et al. 2011), whose stream is fixed,
rather than the output of `Generator`.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Purpose(enum.IntEnum):
    """The use of an order; orders for different purposes are independent."""

    VALIDATION_ITEMS = 1
    TRAINING_ITEMS = 2
    TRAINING_GROUPS = 3
    WEIGHTED_ITEMS = 4


def permutation(count: int, seed: int, purpose: Purpose, round_: int = 0) -> NDArray[np.int64]:
    """Returns 0 to `count` - 1 in an order drawn from the seed, (count,) int64.

    Args:
        count: The number of elements.
        seed: 0 to 2**64 - 1.
        purpose: The use of the order.
        round_: Number of the order for this purpose, such as the epoch.
    """
    key = np.array([seed, (int(purpose) << 56) | round_], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(count)
    # Stable, so that even equal draws have one order.
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)
