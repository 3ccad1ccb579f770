"""`sigmoid`, `sequence_from` and `weight_gradient` are shared by the cells."""

import numpy as np

from treadle.kernels.reference.arrays import Array


def sigmoid(x: Array) -> Array:
    """Computes the logistic function, without overflow for any x.

    s = 1 / (1 + exp(-x)),  ds/dx = s (1 - s)

    The derivative is a function of the result, so a backward pass needs no x.

    Args:
        x: any shape.

    Returns:
        Same shape and dtype.
    """
    small = np.exp(-np.abs(x))  # in (0, 1], whatever the sign of x
    s: Array = np.where(x >= 0, 1, small) / (1 + small)
    return s


def sequence_from(initial: Array, T: int) -> Array:
    """Allocates T+1 states, (T+1, B, H), and sets the first to the initial one, (B, H)."""
    states = np.empty((T + 1, *initial.shape), initial.dtype)
    states[0] = initial
    return states


def weight_gradient(inputs: Array, das: Array) -> Array:
    """Returns dW for a = x W, summed over all steps: dW = sum_t x_t.T da_t.

    The steps share W, so their gradients add up. With all steps and rows stacked, the sum is a
    single matrix product.

    Args:
        inputs: x, (T, B, M).
        das: da, (T, B, N).

    Returns:
        dW, (M, N).
    """
    dW: Array = inputs.reshape(-1, inputs.shape[-1]).T @ das.reshape(-1, das.shape[-1])
    return dW
