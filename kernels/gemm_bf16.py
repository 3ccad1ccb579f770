"""`matmul` multiplies bfloat16 numbers and adds in float32: half the bytes, twice the speed.

A bfloat16 number is a float32 number without its last 16 bits, rounded to the nearest, ties to
even. Numbers below float32's normal range become 0. Two bfloat16 numbers, k and k + 1, fill the 32
bits of a pair, the first in the lower half. One instruction multiplies and adds LANES pairs,
AVX512_BF16's VDPBF16PS. Without it this module does not run (see `jit.BF16_MISSING`).

Packed panels, (panel, pair, PANEL), are uint32, by which `gemm_dispatch` distinguishes them from
float32 panels. Every element of a product is one chain over its pairs in ascending order, whatever
the tile. An odd K is filled up with a last number of 0. Inside, pairs travel as the float32 numbers
that have the same bits; no arithmetic is done on these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.gemm_packing import pack_transposed as pack_transposed_float32
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PAIRS, PANEL, ROWS, Operand, make_gemm_tile
from treadle.kernels.jit import PYTHON_MODE, jit, jit_apart, jit_inline
from treadle.kernels.simd import INT, LANES, VECTOR, load, store, vector_type
from treadle.kernels.structs import ROW_BLOCK, RowBlock

Array = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.uint32]

PAIR_BLOCK = ROW_BLOCK
"""Pairs of rows in a block, twice the rows of a float32 block in the same bytes. A larger block
makes C be read and written fewer times."""

_LEFT_ROWS = 64
"""Rows of A that are rounded at once; they stay in the cache while the panels stream past."""

_tile = make_gemm_tile(ROWS, 1, edge=False, pairs=True)
_edge = make_gemm_tile(ROWS, 1, edge=True, pairs=True)
_edge4 = make_gemm_tile(4, 1, edge=True, pairs=True)
_edge1 = make_gemm_tile(1, 1, edge=True, pairs=True)


def _rounding(order: list[int]) -> Callable[..., Any]:
    """Returns the intrinsic that rounds two vectors; `order` permutes the 2 * LANES results."""

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
    """Returns the bits of bfloat16 numbers, rounded as the instruction rounds."""
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
"""neighbours(first, second): pairs of lanes 0 and 1, 2 and 3, ... of one vector, then the other."""

columns: Callable[[Array, Array], Array] = (
    _python_rounding(_COLUMNS) if PYTHON_MODE else intrinsic(_rounding(_COLUMNS))
)
"""columns(first, second): pair n holds lane n of both."""


def pair_count(K: int) -> int:
    """Returns the number of pairs that hold K numbers."""
    return (K + 1) // 2


def allocate_pair_block(M: int, N: int) -> RowBlock:
    """Returns an empty block for rows (M,) of A and (N,) of B; it holds pairs of rows."""
    shapes = [(panel_count(size), PAIR_BLOCK, PANEL) for size in (M, N)]
    return RowBlock(*(aligned_zeros(shape, np.uint32) for shape in shapes))


@jit
def _round_rows(A: Array, pairs: Array) -> None:
    """Writes rows (M, K) as pairs of neighbours, (at least M, ceil(K / 2))."""
    M, K = A.shape
    steps = pairs.shape[1]
    whole = K // (2 * LANES) * (2 * LANES)
    for m in range(M):
        for k in range(0, whole, 2 * LANES):
            at = m * K + k
            both = neighbours(load(A, at, LANES), load(A, at + LANES, LANES))
            store(pairs, m * steps + k // 2, LANES, both)
        if whole < K:
            at = m * K + whole
            count = K - whole
            both = neighbours(load(A, at, count), load(A, at + LANES, count - LANES))
            store(pairs, m * steps + whole // 2, (count + 1) // 2, both)


@jit_inline
def _gather_columns(rows: Array, column: int, count: int, panels: Array, to: int) -> None:
    """Writes up to LANES columns of rows (n, N), two rows at a time, to panels.flat[to:]."""
    n, N = rows.shape
    for k in range(0, n // 2 * 2, 2):
        at = k * N + column
        both = columns(load(rows, at, count), load(rows, at + N, count))
        store(panels, to + k // 2 * PANEL, LANES, both)
    if n % 2:
        at = (n - 1) * N + column
        both = columns(load(rows, at, count), load(rows, at, 0))
        store(panels, to + n // 2 * PANEL, LANES, both)


@jit
def _gather(rows: Array, first: int, panels: Array, at: int) -> None:
    """Packs rows (n, N), from column `first` on, behind the `at` pairs that the block holds."""
    N = rows.shape[1]
    size = panels.shape[1]
    for panel in range(min(panels.shape[0], (N - first + PANEL - 1) // PANEL)):
        for lane in range(0, PANEL, LANES):
            column = first + panel * PANEL + lane
            to = (panel * size + at) * PANEL + lane
            if column + LANES <= N:
                _gather_columns(rows, column, LANES, panels, to)
            else:
                _gather_columns(rows, column, max(0, N - column), panels, to)


@jit_apart
def pack(matrix: Array, panels: Pairs) -> None:
    """Packs a matrix.

    Args:
        matrix: (K, N).
        panels: (ceil(N / PANEL), ceil(K / 2), PANEL), written; zero past column N.
    """
    _gather(matrix, 0, panels.view(np.float32), 0)


@jit_apart
def pack_transposed(matrix: Array, panels: Pairs) -> None:
    """Packs the transpose of a matrix.

    Args:
        matrix: (N, K).
        panels: (ceil(N / PANEL), ceil(K / 2), PANEL), written; zero past column N.
    """
    pairs = np.empty((matrix.shape[0], panels.shape[1]), np.float32)
    _round_rows(matrix, pairs)
    pack_transposed_float32(pairs, panels.view(np.float32))


@jit
def _multiply_panel(
    A: Operand, B: Operand, C: Operand, rows: int, steps: int, columns: int, add: bool
) -> None:
    """Computes the columns of C that one panel holds, as `gemm_tile.multiply_panel`.

    `steps` counts pairs.
    """
    i = 0
    if columns >= PANEL:
        while i + ROWS <= rows:
            _tile(A, B, C, i, steps, columns, add)
            i += ROWS
    while i + ROWS <= rows:
        _edge(A, B, C, i, steps, columns, add)
        i += ROWS
    while i + 4 <= rows:
        _edge4(A, B, C, i, steps, columns, add)
        i += 4
    while i < rows:
        _edge1(A, B, C, i, steps, columns, add)
        i += 1


@jit_apart
def matmul_rows(A: Array, panels: Pairs, first: int, C: Array, add: bool) -> None:
    """Computes C (+)= A B', where B' is the rows of B from `first` on.

    Args:
        A: (M, k), rounded to bfloat16 on the way.
        panels: B (K, N), packed.
        first: the row of B that the first column of A belongs to; even.
        C: (M, N), written.
        add: continue from the values in C rather than from 0.
    """
    M = A.shape[0]
    N = C.shape[1]
    steps = (A.shape[1] + 1) // 2
    size = panels.shape[1] * PANEL
    packed = panels.view(np.float32)
    pairs = np.empty((min(M, _LEFT_ROWS), steps), np.float32)
    left = Operand(pairs, 0, steps, 1)
    for row in range(0, M, _LEFT_ROWS):
        rows = min(_LEFT_ROWS, M - row)
        _round_rows(A[row : row + rows], pairs)
        for j in range(panels.shape[0]):
            right = Operand(packed, j * size + first // 2 * PANEL, size, PANEL)
            out = Operand(C, row * N + j * PANEL, N, 1)
            _multiply_panel(left, right, out, rows, steps, N - j * PANEL, add)


@jit_apart
def matmul(A: Array, panels: Pairs, C: Array, add: bool) -> None:
    """Computes C (+)= A B.

    Args:
        A: (M, K), rounded to bfloat16 on the way.
        panels: B (K, N), packed.
        C: (M, N), written.
        add: continue from the values in C rather than from 0.
    """
    matmul_rows(A, panels, 0, C, add)


@jit
def _multiply_block(block: RowBlock, pairs: int, C: Array, first: int, last: int) -> None:
    """Computes C[:, first:last] += A^T B of the gathered rows, or as much as the block holds."""
    M, N = C.shape
    size = PAIR_BLOCK * PANEL
    packed_left = block.left.view(np.float32)
    packed_right = block.right.view(np.float32)
    for panel in range(min(packed_right.shape[0], (last - first + PANEL - 1) // PANEL)):
        column = first + panel * PANEL
        right = Operand(packed_right, panel * size, size, PANEL)
        for row in range(0, M, PANEL):
            left = Operand(packed_left, row * PAIR_BLOCK, 1, PANEL)
            out = Operand(C, row * N + column, N, 1)
            height = min(PANEL, M - row)
            _multiply_panel(left, right, out, height, pairs, last - column, True)


@jit_apart
def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gathers rows for C += A^T B, as `gemm_transposed.add_rows_transposed`.

    An odd number of rows is filled up with a row of zeros, so that every call begins a pair.

    Args:
        A: (n, M), n at most twice PAIR_BLOCK.
        B: (n, N).
        block: for rows of M and N elements.
        gathered: pairs in the block: 0 at first, then the result of the previous call.
        C: (M, N), added to.
        last: no rows follow.

    Returns:
        Pairs in the block now.
    """
    pairs = (A.shape[0] + 1) // 2
    if gathered + pairs > PAIR_BLOCK:
        _multiply_block(block, gathered, C, 0, C.shape[1])
        gathered = 0
    _gather(A, 0, block.left.view(np.float32), gathered)
    _gather(B, 0, block.right.view(np.float32), gathered)
    gathered += pairs
    if last:
        _multiply_block(block, gathered, C, 0, C.shape[1])
        gathered = 0
    return gathered


@jit_apart
def add_columns_transposed(A: Array, B: Array, block: RowBlock, C: Array, column: int) -> None:
    """Adds A^T B over pairs of rows, as `gemm_transposed.add_columns_transposed`.

    Args:
        A: (K, M).
        B: (K, N).
        block: for rows of M elements and of any number of columns of C.
        C: (M, at least column + N); N columns from `column` on are added to.
        column: the first of them.
    """
    K, N = B.shape
    width = block.right.shape[0] * PANEL
    for k in range(0, K, 2 * PAIR_BLOCK):
        rows = min(2 * PAIR_BLOCK, K - k)
        _gather(A[k : k + rows], 0, block.left.view(np.float32), 0)
        for first in range(0, N, width):
            _gather(B[k : k + rows], first, block.right.view(np.float32), 0)
            _multiply_block(block, (rows + 1) // 2, C, column + first, column + N)


@jit_apart
def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """Computes C += A^T B over pairs of rows, as `gemm_transposed.add_matmul_transposed`.

    Args:
        A: (K, M).
        B: (K, N).
        block: for rows of M elements and of any number of columns of C.
        C: (M, N), added to.
    """
    add_columns_transposed(A, B, block, C, 0)
