"""`Int8Matrix` multiplies as the kernels of int8 numbers do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.kernels.reference.arrays import Array, Parameters
from treadle.kernels.reference.network import output_weights


def int8_activations(a: Array) -> NDArray[np.int64]:
    """Rounds activations to steps of 1/127, and cuts them off at -1 and 1.

    q = round(127 a), halves to even

    Args:
        a: activations of any shape.

    Returns:
        Steps from -127 to 127, in the same shape.
    """
    return np.rint(127 * np.clip(a.astype(np.float64), -1, 1)).astype(np.int64)


class Int8Matrix:
    """Weights (K, N) that multiply as int8 numbers: h @ Int8Matrix(W) in the place of h @ W.

    w = round(W / s),  s = max|W| / 127 of each column
    h W = (q w) s / 127,  q = round(127 h)

    The sum q w is one of integers, so that it is exact in any order.
    """

    __array_ufunc__ = None  # so that NumPy leaves the product to this class

    def __init__(self, W: Array) -> None:
        W = W.astype(np.float64)
        largest = np.abs(W).max(axis=0)
        self.steps = np.rint(W * 127 / np.where(largest > 0, largest, 1)).astype(np.int64)
        """The weights in steps, (K, N), from -127 to 127."""
        self.scale = (largest / 127**2).astype(np.float32)
        """What one step of a product is worth, (N,)."""

    def sums(self, h: Array) -> NDArray[np.int64]:
        """Returns the exact sums q w, (..., N)."""
        return int8_activations(h) @ self.steps

    def __rmatmul__(self, h: Array) -> Array:
        product: Array = self.sums(h).astype(np.float32) * self.scale
        return product.astype(h.dtype)


def with_int8_weights(parameters: Parameters) -> dict[str, Any]:
    """Returns parameters that `network_forward` multiplies as int8 numbers.

    The input of layer 0, Wx0 and the embedding, and all biases stay as they are.

    Args:
        parameters: the network.

    Returns:
        The same with an Int8Matrix for each Wh, for Wx1 and up, and for Wy, tied or not.
    """
    several: dict[str, Any] = dict(parameters)
    for name, array in parameters.items():
        if name.startswith("W") and name not in ("Wx0", "Wy"):
            several[name] = Int8Matrix(array)
    return several | {"Wy": Int8Matrix(output_weights(parameters))}
