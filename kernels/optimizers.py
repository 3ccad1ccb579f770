"""Clipping and update rules over flat parameter and gradient buffers.

SGD; Adagrad (Duchi, Hazan and Singer 2011), whose weight decay is added to the gradient; Adam
(Kingma and Ba 2015) with decoupled weight decay (AdamW, Loshchilov and Hutter 2019): each is
PyTorch's `SGD`, `Adagrad` and `AdamW`. For SGD both kinds of weight decay are the same. Every
element is on its own, so any split over threads gives the same bits; only the norm is a sum, and
it has a fixed shape.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE
from treadle.kernels.intrinsics import fma
from treadle.kernels.jit import jit
from treadle.kernels.simd import LANES

Array = npt.NDArray[np.float32]

BLOCK = 65_536
"""Elements whose squares are summed as one; part of the norm's bits."""

ADAGRAD_EPSILON = np.float32(1e-10)
ADAM_EPSILON = np.float32(1e-8)


@jit
def add_into(source: Array, target: Array) -> None:
    """target += source, both (N,)."""
    for n in range(target.size):
        target[n] += source[n]


@jit
def clip_by_value(gradient: Array, limit: np.float32) -> None:
    """Clip every element of `gradient` (N,) to [-limit, limit]."""
    for n in range(gradient.size):
        g = gradient[n]
        g = limit if g > limit else g
        gradient[n] = -limit if g < -limit else g


@jit
def _sum_of_squares(gradient: Array, sums: npt.NDArray[np.float64]) -> float:
    sums[:] = 0.0
    whole = gradient.size // LANES * LANES
    for first in range(0, whole, LANES):
        part = gradient[first : first + LANES]
        for lane in range(LANES):
            value = np.float64(part[lane])
            sums[lane] += value * value
    for n in range(whole, gradient.size):
        value = np.float64(gradient[n])
        sums[n - whole] += value * value
    result = 0.0
    for lane in range(LANES):
        result += sums[lane]
    return result


@jit
def sums_of_squares(gradient: Array, out: npt.NDArray[np.float64]) -> None:
    """Write the sum of squares of every BLOCK of `gradient` (N,), in float64."""
    sums = np.zeros(LANES, np.float64)
    for block in range(out.size):
        out[block] = _sum_of_squares(gradient[block * BLOCK : (block + 1) * BLOCK], sums)


@jit
def sgd(
    weights: Array, gradient: Array, scale: np.float32, rate: np.float32, decay: np.float32
) -> None:  # fmt: skip
    """One step of gradient descent: w <- w (1 - rate decay) - rate g, g = scale * gradient."""
    keep = ONE - rate * decay
    for n in range(weights.size):
        weights[n] = fma(-rate, scale * gradient[n], weights[n] * keep)


@jit
def adagrad(
    weights: Array, gradient: Array, squares: Array, scale: np.float32,
    rate: np.float32, decay: np.float32,
) -> None:  # fmt: skip
    """One step of Adagrad: s <- s + g^2; w <- w - rate g / (sqrt(s) + 1e-10).

    g is scale * gradient + decay * w.
    """
    for n in range(weights.size):
        g = fma(decay, weights[n], scale * gradient[n])
        s = fma(g, g, squares[n])
        squares[n] = s
        weights[n] -= rate * g / (np.sqrt(s) + ADAGRAD_EPSILON)


@jit
def adam(
    weights: Array, gradient: Array, means: Array, squares: Array, scale: np.float32,
    rate: np.float32, decay: np.float32, beta1: np.float32, beta2: np.float32,
    rest1: np.float32, rest2: np.float32, correction1: np.float32, correction2: np.float32,
) -> None:  # fmt: skip
    """One step of Adam with decoupled weight decay.

    Args:
        weights: (N,), updated.
        gradient: (N,).
        means: (N,), the running mean of gradients, updated.
        squares: (N,), the running mean of squared gradients, updated.
        scale: what the gradient is multiplied by: below 1 where its norm is clipped.
        rate: the learning rate.
        decay: the weight decay; 0 for plain Adam.
        beta1: decay of `means`.
        beta2: decay of `squares`.
        rest1: 1 - beta1, taken in float64: a beta near 1 rounds to 1 in float32.
        rest2: 1 - beta2, likewise.
        correction1: 1 / (1 - beta1^t) at step t, from 1.
        correction2: 1 / sqrt(1 - beta2^t).
    """
    keep, step = ONE - rate * decay, rate * correction1
    for n in range(weights.size):
        g = scale * gradient[n]
        m = fma(beta1, means[n], rest1 * g)
        s = fma(beta2, squares[n], rest2 * g * g)
        means[n] = m
        squares[n] = s
        weights[n] = weights[n] * keep - step * m / fma(np.sqrt(s), correction2, ADAM_EPSILON)
