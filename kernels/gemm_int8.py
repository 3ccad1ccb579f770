"""`matmul` multiplies int8 numbers and adds them exactly: a quarter of the bytes of float32.

Weights are whole numbers of steps of their column: s = max|w| / 127, and a weight is the nearest of
the 255 multiples of s. Activations, here the states of a network, are in -1 to 1 and are rounded to
steps of 1/127, whatever the model or the text: nothing is calibrated.

    C[i, j] (+)= scale[j] sum_k q[i, k] w[k, j],  q = round(127 a),  scale = s / 127

The sum is an exact int32, so that it does not depend on the order of its terms, and neither on
rows, threads or instructions. `reference.matmul_int8` is the same in plain NumPy.

Packed panels, (panel, ceil(K / 4) + 2, PANEL), are one int32 array, by which `gemm_dispatch`
distinguishes them from other panels. An int32 of the first ceil(K / 4) rows holds the four weights
k to k + 3 of a column, the first in the lowest byte. The next row holds a column's correction, -128
times the sum of its weights, since activations are multiplied as bytes q + 128 (the instructions
take bytes without a sign on one side). The last row holds the bits of the scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from treadle.kernels import simd
from treadle.kernels.int8_tile import EXTRA_ROWS, ROWS, make_int8_tile
from treadle.kernels.intrinsics import fma, maximum, minimum
from treadle.kernels.jit import PYTHON_MODE, TARGET, jit_inline, jit_views, jit_views_apart
from treadle.kernels.simd import LANES, load

Array = npt.NDArray[np.float32]
Quads = npt.NDArray[np.int32]

PANEL = TARGET.panel

STEPS = 127
"""Steps from 0 to the largest weight of a column, and from 0 to an activation of 1."""

_LINE = 16
"""Numbers in a cache line."""

_LEFT_ROWS = 32
"""Rows of A that are rounded at once; they stay in the cache while the panels stream past."""

_ONE = np.float32(1.0)
_STEPS = np.float32(STEPS)
_SHIFT = np.float32(1.5 * 2**23 + 128)
"""Adding it leaves a whole number, whose lowest byte is the byte to multiply."""

_tile = make_int8_tile(ROWS, 1)
_tile4 = make_int8_tile(4, 1)
_row1 = make_int8_tile(1, 1)
_row2 = make_int8_tile(1, 2)
_row4 = make_int8_tile(1, 4)


def quad_count(K: int) -> int:
    """Returns the number of int32 that hold K int8 numbers."""
    return -(-K // 4)


def row_count(K: int) -> int:
    """Returns the rows of a panel of K weights a column."""
    return quad_count(K) + EXTRA_ROWS


def allocate_panels(*stack: int) -> Quads:
    """Returns zeros (*stack, PANEL) that begin at a cache line."""
    size = math.prod(stack) * PANEL
    buffer = np.zeros(size + _LINE, np.int32)
    first = -(buffer.ctypes.data // buffer.itemsize) % _LINE
    return buffer[first : first + size].reshape(*stack, PANEL)


def quantize_weights(matrix: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Rounds each weight to a step of its column.

    Args:
        matrix: (K, N).

    Returns:
        The weights in steps, (K, N), from -127 to 127, and the scale of each column, (N,). A column
        that holds NaN or an infinity gets zeros and the scale NaN.
    """
    wide = matrix.astype(np.float64)
    largest = np.abs(wide).max(axis=0, initial=0)
    finite = np.isfinite(largest)
    divisor = np.where(finite & (largest > 0), largest, 1.0)
    # In float64 the product is exact, so that the quotient is the only rounding before the last.
    steps = np.rint(np.where(finite, wide, 0) * STEPS / divisor).astype(np.int8)
    scale = np.where(finite, largest / STEPS**2, np.nan)
    return steps, scale.astype(np.float32)


def pack(matrix: Array) -> Quads:
    """Packs a matrix; runs once, when a model is loaded.

    Args:
        matrix: (K, N).

    Returns:
        Panels (ceil(N / PANEL), ceil(K / 4) + 2, PANEL), all zeros past column N; aligned, so that
        no load of a vector touches two cache lines.
    """
    K, N = matrix.shape
    quads = quad_count(K)
    panels = -(-N // PANEL)
    steps, scale = quantize_weights(matrix)
    whole = np.zeros((4 * quads, panels * PANEL), np.int8)
    whole[:K, :N] = steps
    extra = np.zeros((EXTRA_ROWS, panels * PANEL), np.int32)
    extra[0, :N] = -128 * steps.sum(axis=0, dtype=np.int32)
    extra[1, :N] = scale.view(np.int32)
    packed = allocate_panels(panels, quads + EXTRA_ROWS)
    packed[:, quads:] = extra.reshape(EXTRA_ROWS, panels, PANEL).transpose(1, 0, 2)
    bytes_of_quads = packed.view(np.int8).reshape(*packed.shape, 4)[:, :quads]
    bytes_of_quads[...] = whole.reshape(quads, 4, panels, PANEL).transpose(2, 0, 3, 1)
    return packed


def _stack_quads(typing_context: Any, count: Any) -> Any:
    kind = types.Array(types.int32, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = builder.alloca(simd.INT, size=arguments[0])
        memory.align = 64
        size = context.get_constant(types.intp, 4)
        array = arrayobj.make_array(kind)(context, builder)
        arrayobj.populate_array(
            array, data=memory, shape=[arguments[0]], strides=[size], itemsize=size, meminfo=None
        )
        return array._getvalue()

    return kind(types.intp), generate


def _python_stack_quads(count: int) -> Quads:
    return np.full(count, -1, np.int32)


stack_quads: Callable[[int], Quads] = (
    _python_stack_quads if PYTHON_MODE else intrinsic(_stack_quads)
)
"""stack_quads(count): int32 numbers, not filled, that exist until the caller returns: `np.empty`
would cost as much as a small product."""


def _store_bytes(typing_context: Any, quads: Any, at: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = arguments[1]
        size = builder.mul(array.nitems, ir.Constant(at.type, 4))
        simd.check_range(context, builder, size, at, ir.Constant(at.type, LANES))
        byte = ir.IntType(8)
        kind = ir.VectorType(byte, LANES)
        value = builder.trunc(builder.bitcast(arguments[2], simd.INTS), kind)
        place = builder.gep(builder.bitcast(array.data, byte.as_pointer()), [at])
        builder.store(value, builder.bitcast(place, kind.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(quads, types.intp, simd.vector_type), generate


def _python_store_bytes(quads: Quads, at: int, vector: Array) -> None:
    quads.reshape(-1).view(np.uint8)[at : at + LANES] = vector.view(np.uint32) & 0xFF


store_bytes: Callable[[Quads, int, Array], None] = (
    _python_store_bytes if PYTHON_MODE else intrinsic(_store_bytes)
)
"""store_bytes(quads, at, vector): writes the lowest byte of each element's bits, from byte `at`."""


@jit_inline
def _quantize(A: Array, start: int, count: int, steps: Quads, to: int) -> None:
    """Writes up to LANES activations of A.flat[start:] as bytes; NaN as if it were 1."""
    a = maximum(minimum(_ONE, load(A, start, count)), -_ONE)
    store_bytes(steps, to, fma(a, _STEPS, _SHIFT))


@jit_views
def _quantize_rows(A: Array, first: int, rows: int, quads: int, steps: Quads) -> None:
    """Writes rows of A (M, K), from row `first` on, as rows of `quads` int32.

    A vector may reach into the next row, which is written after it, and behind the last row.
    """
    K = A.shape[1]
    whole = K // LANES * LANES
    for m in range(rows):
        start = (first + m) * K
        to = 4 * m * quads
        for k in range(0, whole, LANES):
            _quantize(A, start + k, LANES, steps, to + k)
        if whole < K:
            _quantize(A, start + whole, K - whole, steps, to + whole)


@jit_inline
def _one_row(
    steps: Quads, row: int, panels: Quads, C: Array, at: int, quads: int, add: bool
) -> None:
    """Computes one row of C from element `at` on, several panels at a time.

    A tile of one row and one panel has too few sums to hide the latency of an instruction.
    """
    N = C.shape[1]
    count = panels.shape[0]
    j = 0
    while j + 4 <= count:
        _row4(steps, panels, C, row, j, at + j * PANEL, N, N - j * PANEL, quads, add)
        j += 4
    if j + 2 <= count:
        _row2(steps, panels, C, row, j, at + j * PANEL, N, N - j * PANEL, quads, add)
        j += 2
    if j < count:
        _row1(steps, panels, C, row, j, at + j * PANEL, N, N - j * PANEL, quads, add)


@jit_views_apart
def matmul(A: Array, panels: Quads, C: Array, add: bool) -> None:
    """Computes C (+)= A B.

    Args:
        A: (M, K), rounded to steps of 1/127 on the way; below -1 counts as -1, above 1 as 1.
        panels: B (K, N), packed.
        C: (M, N), written.
        add: add to the values in C rather than to 0.
    """
    M = A.shape[0]
    N = C.shape[1]
    quads = panels.shape[1] - EXTRA_ROWS
    block = min(M, _LEFT_ROWS)
    steps = stack_quads(block * quads + LANES // 4)
    for first in range(0, M, _LEFT_ROWS):
        rows = min(_LEFT_ROWS, M - first)
        fours = rows // 4 * 4
        _quantize_rows(A, first, rows, quads, steps)
        if fours:
            for j in range(panels.shape[0]):
                at = first * N + j * PANEL
                columns = N - j * PANEL
                i = 0
                while i + ROWS <= fours:
                    _tile(steps, panels, C, i, j, at + i * N, N, columns, quads, add)
                    i += ROWS
                while i < fours:
                    _tile4(steps, panels, C, i, j, at + i * N, N, columns, quads, add)
                    i += 4
        for row in range(fours, rows):
            _one_row(steps, row, panels, C, (first + row) * N, quads, add)
