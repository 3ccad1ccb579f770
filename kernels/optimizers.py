"""`sgd`, `adagrad` and `adam` update flat parameter buffers; gradients are clipped here as well.

The rules are SGD, Adagrad (Duchi, Hazan and Singer 2011), whose weight decay is added to the
gradient, and Adam (Kingma and Ba 2015) with decoupled weight decay (AdamW, Loshchilov and Hutter
2019): PyTorch's `SGD`, `Adagrad` and `AdamW`. For SGD both kinds of weight decay are the same.
Every element is updated by itself, so any split over threads gives the same bits. Only the norm is
a sum, and its order is fixed.
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
"""Elements whose squares are summed in one go. The bits of the norm depend on it."""

ADAGRAD_EPSILON = np.float32(1e-10)
ADAM_EPSILON = np.float32(1e-8)


@jit
def add_into(source: Array, target: Array) -> None:
    """Adds `source` to `target`, both (N,)."""
    for n in range(target.size):
        target[n] += source[n]


@jit
def move_towards(source: Array, share: np.float32, target: Array) -> None:
    """Moves `target` by a share of its distance to `source`, both (N,)."""
    for n in range(target.size):
        target[n] = fma(share, source[n] - target[n], target[n])


@jit
def clip_by_value(gradient: Array, limit: np.float32) -> None:
    """Clips every element of `gradient` (N,) to [-limit, limit]."""
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
    """Writes the sum of squares of every BLOCK of a gradient.

    Args:
        gradient: (N,).
        out: (ceil(N / BLOCK),) float64, written.
    """
    sums = np.zeros(LANES, np.float64)
    for block in range(out.size):
        out[block] = _sum_of_squares(gradient[block * BLOCK : (block + 1) * BLOCK], sums)


@jit
def sgd(
    weights: Array, gradient: Array, scale: np.float32, rate: np.float32, decay: np.float32
) -> None:
    """Takes a step of gradient descent: w <- w (1 - rate decay) - rate g, g = scale * gradient."""
    keep = ONE - rate * decay
    for n in range(weights.size):
        weights[n] = fma(-rate, scale * gradient[n], weights[n] * keep)


@jit
def adagrad(
    weights: Array,
    gradient: Array,
    squares: Array,
    scale: np.float32,
    rate: np.float32,
    decay: np.float32,
) -> None:
    """Takes a step of Adagrad: s <- s + g^2; w <- w - rate g / (sqrt(s) + 1e-10).

    g is scale * gradient + decay * w, s is `squares`.
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
    """Takes a step of Adam with decoupled weight decay (AdamW).

    m <- beta1 m + (1 - beta1) g,  s <- beta2 s + (1 - beta2) g^2,  g = scale * gradient
    w <- w (1 - rate decay) - rate correction1 m / (sqrt(s) correction2 + 1e-8)

    Args:
        weights: (N,), updated.
        gradient: (N,).
        means: (N,), the running mean m of gradients, updated.
        squares: (N,), the running mean s of squared gradients, updated.
        scale: factor of the gradient: below 1 where its norm is clipped.
        rate: the learning rate.
        decay: the weight decay; 0 for plain Adam.
        beta1: decay of `means`.
        beta2: decay of `squares`.
        rest1: 1 - beta1, taken in float64: a beta near 1 rounds to 1 in float32.
        rest2: 1 - beta2, likewise.
        correction1: 1 / (1 - beta1^t) at step t, from 1.
        correction2: 1 / sqrt(1 - beta2^t).
    """
    keep = ONE - rate * decay
    step = rate * correction1
    for n in range(weights.size):
        g = scale * gradient[n]
        m = fma(beta1, means[n], rest1 * g)
        s = fma(beta2, squares[n], rest2 * g * g)
        means[n] = m
        squares[n] = s
        weights[n] = weights[n] * keep - step * m / fma(np.sqrt(s), correction2, ADAM_EPSILON)
