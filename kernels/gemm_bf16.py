"""Matrix products of bfloat16 numbers, added up in float32: half the bytes, twice the speed.

A bfloat16 number is a float32 number without its last 16 bits, rounded to the nearest, ties to
even; numbers below float32's normal range become 0. Two of them, k and k + 1, fill the 32 bits of
a pair, the first in the lower half, and one instruction multiplies and adds LANES pairs:
AVX512_BF16's VDPBF16PS. Without it there is nothing here (see `jit.BF16_MISSING`).

Packed panels, (panel, pair, PANEL), are uint32; by that `products` tells them from float32 ones.
Every element of a product is one chain over its pairs in ascending order, whatever the tile; an
odd K has a last number of 0. Inside, pairs travel as the float32 numbers of their bits, which
nobody calculates with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels.gemm_packing import pack_transposed as pack_transposed_float32
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PAIRS, PANEL, ROWS, make_gemm_tile
from treadle.kernels.jit import PYTHON_MODE, jit, jit_inline
from treadle.kernels.simd import INT, LANES, VECTOR, load, store, vector_type
from treadle.kernels.structs import ROW_BLOCK, RowBlock

Array = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.uint32]

PAIR_BLOCK = ROW_BLOCK
"""Pairs of rows of a block, twice the rows of a float32 one in the same bytes: the fewer times C
is read and written for it, the better."""

_LEFT_ROWS = 64
"""Rows that are rounded at once: they stay in the cache while the panels pass by."""

_tile, _edge = (make_gemm_tile(ROWS, 1, edge, pairs=True) for edge in (False, True))
_edge4, _edge1 = (make_gemm_tile(rows, 1, edge=True, pairs=True) for rows in (4, 1))


def _rounding(order: list[int]) -> Callable[..., Any]:
    """Writes the intrinsic that rounds two vectors; `order` is of the 2 * LANES results."""

    def rounded(typing_context: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(PAIRS, [VECTOR, VECTOR])
            name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"  # its second argument comes first
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            value = builder.call(function, arguments[::-1])
            if order != sorted(order):
                halves = ir.VectorType(ir.IntType(16), 2 * LANES)
                value = builder.bitcast(value, halves)
                lanes = ir.Constant(ir.VectorType(INT, 2 * LANES), order)
                value = builder.shuffle_vector(value, ir.Constant(halves, ir.Undefined), lanes)
            return builder.bitcast(value, VECTOR)

        return vector_type(first, second), generate

    return rounded


def python_round(values: Array) -> npt.NDArray[np.uint16]:
    """Return bfloat16 numbers as the instruction rounds to them."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    rounded = np.where(np.isnan(values), bits >> 16 | 0x40, rounded)
    tiny = (bits & 0x7F800000) == 0
    return np.where(tiny, bits >> 16 & 0x8000, rounded).astype(np.uint16)


def _python_rounding(order: list[int]) -> Callable[[Array, Array], Array]:
    def rounded(first: Array, second: Array) -> Array:
        return python_round(np.concatenate([first, second]))[order].view(np.float32)

    return rounded


_NEIGHBOURS = list(range(2 * LANES))
_COLUMNS = [half * LANES + lane for lane in range(LANES) for half in (0, 1)]

neighbours: Callable[[Array, Array], Array] = (
    _python_rounding(_NEIGHBOURS) if PYTHON_MODE else intrinsic(_rounding(_NEIGHBOURS))
)
"""neighbours(first, second): pairs of the lanes 0 and 1, 2 and 3, ... of one vector after other."""

columns: Callable[[Array, Array], Array] = (
    _python_rounding(_COLUMNS) if PYTHON_MODE else intrinsic(_rounding(_COLUMNS))
)
"""columns(first, second): pairs of the lanes n of both."""


def pair_count(K: int) -> int:
    """Return how many pairs hold K numbers."""
    return (K + 1) // 2


def allocate_pair_block(M: int, N: int) -> RowBlock:
    """Return room for gathering rows (M,) of A and (N,) of B; it holds pairs of rows."""
    shapes = [(panel_count(size), PAIR_BLOCK, PANEL) for size in (M, N)]
    return RowBlock(*(cast(Any, np.zeros(shape, np.uint32)) for shape in shapes))


@jit
def _round_rows(A: Array, pairs: Array) -> None:
    """Write rows (M, K) as pairs of neighbours, (at least M, ceil(K / 2))."""
    (M, K), steps = A.shape, pairs.shape[1]
    whole = K // (2 * LANES) * (2 * LANES)
    for m in range(M):
        for k in range(0, whole, 2 * LANES):
            at = m * K + k
            both = neighbours(load(A, at, LANES), load(A, at + LANES, LANES))
            store(pairs, m * steps + k // 2, LANES, both)
        if whole < K:
            at, left = m * K + whole, K - whole
            both = neighbours(load(A, at, left), load(A, at + LANES, left - LANES))
            store(pairs, m * steps + whole // 2, (left + 1) // 2, both)


@jit_inline
def _gather_columns(rows: Array, column: int, left: int, panels: Array, to: int) -> None:
    """Write up to LANES columns of rows (n, N), two rows by two, to panels.flat[to:]."""
    n, N = rows.shape
    for k in range(0, n // 2 * 2, 2):
        at = k * N + column
        both = columns(load(rows, at, left), load(rows, at + N, left))
        store(panels, to + k // 2 * PANEL, LANES, both)
    if n % 2:
        at = (n - 1) * N + column
        store(panels, to + n // 2 * PANEL, LANES, columns(load(rows, at, left), load(rows, at, 0)))


@jit
def _gather(rows: Array, first: int, panels: Array, at: int) -> None:
    """Put rows (n, N), from column `first` on, behind the `at` pairs that are there."""
    N, size = rows.shape[1], panels.shape[1]
    for panel in range(min(panels.shape[0], (N - first + PANEL - 1) // PANEL)):
        for lane in range(0, PANEL, LANES):
            column, to = first + panel * PANEL + lane, (panel * size + at) * PANEL + lane
            if column + LANES <= N:
                _gather_columns(rows, column, LANES, panels, to)
            else:
                _gather_columns(rows, column, max(0, N - column), panels, to)


@jit
def pack(matrix: Array, panels: Pairs) -> None:
    """Pack a (K, N) matrix into panels (ceil(N / PANEL), ceil(K / 2), PANEL), zero past N."""
    _gather(matrix, 0, panels.view(np.float32), 0)


@jit
def pack_transposed(matrix: Array, panels: Pairs) -> None:
    """Pack the transpose of an (N, K) matrix, like `pack`."""
    pairs = np.empty((matrix.shape[0], panels.shape[1]), np.float32)
    _round_rows(matrix, pairs)
    pack_transposed_float32(pairs, panels.view(np.float32))


@jit
def _tiles(
    A: Array, start: int, row: int, step: int, P: Array, base: int, K: int,
    C: Array, out: int, width: int, M: int, N: int, add: bool,
) -> None:  # fmt: skip
    """One panel's columns of C, for M rows, as `gemm.tiles`; K counts pairs."""
    i = 0
    if N >= PANEL:
        while i + ROWS <= M:
            _tile(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
            i += ROWS
    while i + ROWS <= M:
        _edge(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
        i += ROWS
    while i + 4 <= M:
        _edge4(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
        i += 4
    while i < M:
        _edge1(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
        i += 1


@jit
def matmul(A: Array, panels: Pairs, C: Array, add: bool) -> None:
    """C (+)= A B.

    Args:
        A: (M, K), rounded on the way.
        panels: B (K, N), packed.
        C: (M, N), written.
        add: go on from what C holds rather than from 0.
    """
    M, N, K, P = A.shape[0], C.shape[1], panels.shape[1], panels.view(np.float32)
    pairs = np.empty((min(M, _LEFT_ROWS), K), np.float32)
    for first in range(0, M, _LEFT_ROWS):
        rows = min(_LEFT_ROWS, M - first)
        _round_rows(A[first : first + rows], pairs)
        for j in range(panels.shape[0]):
            column = j * PANEL
            base, out = column * K, first * N + column
            _tiles(pairs, 0, K, 1, P, base, K, C, out, N, rows, N - column, add)


@jit
def _multiply(block: RowBlock, pairs: int, C: Array, first: int) -> None:
    """C[:, first:] += A^T B of the gathered rows, as many columns as the block holds."""
    M, N = C.shape
    left, right, size = block.left.view(np.float32), block.right.view(np.float32), PAIR_BLOCK
    for panel in range(min(right.shape[0], (N - first + PANEL - 1) // PANEL)):
        column, base = first + panel * PANEL, panel * size * PANEL
        for row in range(0, M, PANEL):
            start, out, height = row * size, row * N + column, min(PANEL, M - row)
            width = N - column
            _tiles(left, start, 1, PANEL, right, base, pairs, C, out, N, height, width, True)


@jit
def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gather rows for C += A^T B, as `transposed.add_rows_transposed`; `gathered` counts pairs.

    An odd number of rows is filled up with one of zeros, so that every call begins a pair.
    """
    pairs = (A.shape[0] + 1) // 2
    if gathered + pairs > PAIR_BLOCK:
        _multiply(block, gathered, C, 0)
        gathered = 0
    _gather(A, 0, block.left.view(np.float32), gathered)
    _gather(B, 0, block.right.view(np.float32), gathered)
    gathered += pairs
    if last:
        _multiply(block, gathered, C, 0)
        gathered = 0
    return gathered


@jit
def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """C += A^T B, as `transposed.add_matmul_transposed`, over pairs of rows."""
    K, N = B.shape
    width = block.right.shape[0] * PANEL
    for k in range(0, K, 2 * PAIR_BLOCK):
        rows = min(2 * PAIR_BLOCK, K - k)
        _gather(A[k : k + rows], 0, block.left.view(np.float32), 0)
        for first in range(0, N, width):
            _gather(B[k : k + rows], first, block.right.view(np.float32), 0)
            _multiply(block, (rows + 1) // 2, C, first)
