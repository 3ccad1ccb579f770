"""Finite differences, the measure of every backward pass, without calculus of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def numeric_gradient(loss: Callable[[], float], array: Array, step: float = 1e-3) -> Array:
    """Differentiates `loss` by every element of `array`, which is changed on the way and restored.

    The five-point central difference (8 (f(x+s) - f(x-s)) - (f(x+2s) - f(x-2s))) / 12 s is exact up
    to s^4: with a step of 1e-3 both its own error and that of rounding stay near 1e-12.

    Args:
        loss: computes the number to differentiate from `array` as it is at the call.
        array: float64, any shape.
        step: s, absolute.

    Returns:
        The gradient, in the array's shape.
    """
    assert array.dtype == np.float64, "finite differences need float64"
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = float(array[index])
        samples = {}
        for steps in (-2, -1, 1, 2):
            array[index] = value + steps * step
            samples[steps] = loss()
        array[index] = value
        near = samples[1] - samples[-1]
        far = samples[2] - samples[-2]
        gradient[index] = (8 * near - far) / (12 * step)
    return gradient


def assert_gradients(
    loss: Callable[[], float],
    arrays: dict[str, Array],
    gradients: dict[str, Array],
    rtol: float = 1e-6,
    atol: float = 1e-12,
) -> None:
    """Fails unless every element of every gradient is what finite differences say.

    Args:
        loss: computes the number to differentiate from the arrays as they are at the call.
        arrays: what the loss depends on, by name.
        gradients: what a backward pass claims, by the same names.
        rtol: allowed difference in units of the finite difference.
        atol: allowed difference where the gradient is all but zero.
    """
    assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = numeric_gradient(loss, array)
        assert gradients[name].shape == array.shape, name
        np.testing.assert_allclose(gradients[name], expected, rtol, atol, err_msg=name)
