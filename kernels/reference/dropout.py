"""`dropout_masks` draws the units that are dropped in training."""

import numpy as np
from numpy.typing import DTypeLike

from treadle.kernels.reference.arrays import Array


def dropout_masks(
    p: float,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Draws the factors of the states that a layer passes on, in training (Srivastava et al. 2014).

    mask = 0 with probability p, else 1 / (1 - p), so that the expected value of mask h is h

    A network should not rely on any single unit, so some are dropped while it trains. As in
    PyTorch's nn.LSTM and in Zaremba et al. (2014), the recurrence inside a layer is not changed.
    There are no masks outside of training.

    Args:
        p: share of the units to drop, in [0, 1).
        shape: (L-1, T, B, H) between layers, (L, T, B, H) to drop before the output layer as well.
        rng: source of the random numbers.
        dtype: of the result.

    Returns:
        Masks of that shape: 0 where a unit is dropped, 1 / (1 - p) where not.
    """
    kept = rng.random(shape) >= p
    masks: Array = kept.astype(dtype) / (1 - p)
    return masks
