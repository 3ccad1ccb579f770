"""`sgd`, `adagrad` and `adam` update flat parameter buffers; gradients are clipped here as well.

The rules are SGD, Adagrad (Duchi, Hazan and Singer 2011), whose weight decay is added to the
gradient, and Adam (Kingma and Ba 2015) with decoupled weight decay (AdamW, Loshchilov and Hutter
2019): PyTorch's `SGD`, `Adagrad` and `AdamW`. For SGD both kinds of weight decay are the same.
Every element is updated by itself, so any split over threads gives the same bits. Only the norm is
a sum, and its order is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from treadle.kernels.activations import ONE
from treadle.kernels.intrinsics import fma
from treadle.kernels.jit import PYTHON_MODE, jit, jit_apart, jit_views_apart
from treadle.kernels.simd import LANES, VECTOR, check_range

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


@jit_views_apart
def move_towards(source: Array, share: np.float32, target: Array) -> None:
    """Moves `target` by a share of its distance to `source`, both (N,); 1 copies `source`."""
    if share == ONE:
        for n in range(target.size):
            target[n] = source[n]
        return
    for n in range(target.size):
        target[n] = fma(share, source[n] - target[n], target[n])


@jit_views_apart
def clip_by_value(gradient: Array, limit: np.float32) -> None:
    """Clips every element of `gradient` (N,) to [-limit, limit]."""
    for n in range(gradient.size):
        g = gradient[n]
        g = limit if g > limit else g
        gradient[n] = -limit if g < -limit else g


def _add_squares(typing_context: Any, values: Any, count: Any, sums: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = context.make_array(signature.args[0])(context, builder, arguments[0])
        taken = context.make_array(signature.args[2])(context, builder, arguments[2])
        count = arguments[1]
        zero = ir.Constant(count.type, 0)
        check_range(context, builder, given.nitems, zero, count)
        check_range(context, builder, taken.nitems, zero, ir.Constant(count.type, LANES))
        wide = ir.VectorType(ir.DoubleType(), LANES)
        place = builder.bitcast(taken.data, wide.as_pointer())
        before = builder.load(place)
        before.align = 8
        entry = builder.block
        body = builder.append_basic_block("squares")
        done = builder.append_basic_block("squares_end")
        builder.cbranch(builder.icmp_signed(">", count, zero), body, done)
        builder.position_at_end(body)
        n = builder.phi(count.type)
        total = builder.phi(wide)
        value = builder.load(builder.bitcast(builder.gep(given.data, [n]), VECTOR.as_pointer()))
        value.align = 4
        value = builder.fpext(value, wide)
        result = builder.fadd(total, builder.fmul(value, value))
        following = builder.add(n, ir.Constant(count.type, LANES))
        for phi, first, later in ((n, zero, following), (total, before, result)):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, body)
        builder.cbranch(builder.icmp_signed("<", following, count), body, done)
        builder.position_at_end(done)
        after = builder.phi(wide)
        after.add_incoming(before, entry)
        after.add_incoming(result, body)
        builder.store(after, place).align = 8
        return context.get_dummy_value()

    return types.void(values, types.intp, sums), generate


def python_add_squares(values: Array, count: int, sums: npt.NDArray[np.float64]) -> None:
    """Stands in for `add_squares`."""
    for row in values[:count].reshape(-1, LANES).astype(np.float64):
        sums += row * row


add_squares: Callable[[Array, int, npt.NDArray[np.float64]], None] = (
    python_add_squares if PYTHON_MODE else intrinsic(_add_squares)
)
"""add_squares(values, count, sums): adds the squares of the first `count` values, a multiple of
LANES, to LANES sums in float64, value n to sum n % LANES. The sums stay in registers, which LLVM
does not dare where the loop is written in Python."""


@jit
def _sum_of_squares(gradient: Array, sums: npt.NDArray[np.float64]) -> float:
    sums[:] = 0.0
    whole = gradient.size // LANES * LANES
    add_squares(gradient, whole, sums)
    for n in range(whole, gradient.size):
        value = np.float64(gradient[n])
        sums[n - whole] += value * value
    result = 0.0
    for lane in range(LANES):
        result += sums[lane]
    return result


@jit_apart
def sums_of_squares(gradient: Array, out: npt.NDArray[np.float64]) -> None:
    """Writes the sum of squares of every BLOCK of a gradient.

    Args:
        gradient: (N,).
        out: (ceil(N / BLOCK),) float64, written.
    """
    sums = np.zeros(LANES, np.float64)
    for block in range(out.size):
        out[block] = _sum_of_squares(gradient[block * BLOCK : (block + 1) * BLOCK], sums)


@jit_views_apart
def sgd(
    weights: Array, gradient: Array, scale: np.float32, rate: np.float32, decay: np.float32
) -> None:
    """Takes a step of gradient descent: w <- w (1 - rate decay) - rate g, g = scale * gradient."""
    keep = ONE - rate * decay
    for n in range(weights.size):
        weights[n] = fma(-rate, scale * gradient[n], weights[n] * keep)


@jit_views_apart
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


@jit_views_apart
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
