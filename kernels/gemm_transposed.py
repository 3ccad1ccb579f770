"""`add_rows_transposed` and `add_matmul_transposed` compute C += A^T B, the gradient of weights.

Rows of A and B are gathered in blocks as they are computed, while the caches still hold them. Those
of B are packed in panels; those of A stay rows, since the GEMM tile reads its left operand through
two strides. A full block is multiplied by the tile. Every element of C is one chain of fused
multiply-adds over the rows in the order in which they were gathered, whatever a block holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.gemm_tile import PANEL, Operand, multiply_panel
from treadle.kernels.jit import jit_views, jit_views_apart
from treadle.kernels.simd import copy, move
from treadle.kernels.structs import ROW_BLOCK, RowBlock

Array = npt.NDArray[np.float32]


def allocate_row_block(M: int, N: int) -> RowBlock:
    """Returns an empty block for rows (M,) of A and (N,) of B."""
    return RowBlock(
        aligned_zeros((1, ROW_BLOCK, M)),
        aligned_zeros((-(-N // PANEL), ROW_BLOCK, PANEL)),
    )


@jit_views
def _gather_right(B: Array, first: int, right: Array, at: int) -> None:
    """Packs rows (n, N), from column `first` on, behind the `at` rows that the block holds."""
    n, N = B.shape
    whole = min(right.shape[0], (N - first) // PANEL)
    for k in range(n):
        for panel in range(whole):
            to = (panel * ROW_BLOCK + at + k) * PANEL
            move(B, k * N + first + panel * PANEL, right, to, PANEL, PANEL)
        column = first + whole * PANEL
        if whole < right.shape[0] and column < N:
            to = (whole * ROW_BLOCK + at + k) * PANEL
            move(B, k * N + column, right, to, PANEL, N - column)


@jit_views
def _multiply_block(
    left: Operand, block: RowBlock, rows: int, C: Array, first: int, last: int
) -> None:
    """Computes C[:, first:last] += A^T B of `rows` rows, or as much as the block holds."""
    M, N = C.shape
    for panel in range(block.right.shape[0]):
        column = first + panel * PANEL
        if column >= last:
            break
        right = Operand(block.right, panel * ROW_BLOCK * PANEL, ROW_BLOCK * PANEL, PANEL)
        out = Operand(C, column, N, 1)
        multiply_panel(left, right, out, M, rows, last - column, True)


@jit_views_apart
def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gathers rows for C += A^T B, and adds them once the block is full or they are the last.

    Args:
        A: (n, M), n at most ROW_BLOCK.
        B: (n, N).
        block: for rows of M and N elements.
        gathered: rows in the block: 0 at first, then the result of the previous call.
        C: (M, N), added to.
        last: no rows follow.

    Returns:
        Rows in the block now.
    """
    M, N = C.shape
    left = Operand(block.left, 0, 1, M)
    if gathered + A.shape[0] > ROW_BLOCK:
        _multiply_block(left, block, gathered, C, 0, N)
        gathered = 0
    copy(A, 0, block.left, gathered * M, A.shape[0] * M)
    _gather_right(B, 0, block.right, gathered)
    gathered += A.shape[0]
    if last:
        _multiply_block(left, block, gathered, C, 0, N)
        gathered = 0
    return gathered


@jit_views_apart
def add_columns_transposed(A: Array, B: Array, block: RowBlock, C: Array, column: int) -> None:
    """Computes C[:, column : column + N] += A^T B, the sum over rows in ascending order.

    Args:
        A: (K, M).
        B: (K, N).
        block: for any number of columns of C.
        C: (M, at least column + N), added to.
        column: the first column that is added to.
    """
    K, N = B.shape
    M = A.shape[1]
    columns = block.right.shape[0] * PANEL
    for k in range(0, K, ROW_BLOCK):
        rows = min(ROW_BLOCK, K - k)
        left = Operand(A, k * M, 1, M)
        for first in range(0, N, columns):
            _gather_right(B[k : k + rows], first, block.right, 0)
            _multiply_block(left, block, rows, C, column + first, column + N)


@jit_views_apart
def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """Computes C += A^T B, the sum over rows in ascending order.

    Args:
        A: (K, M).
        B: (K, N).
        block: for any number of columns of C.
        C: (M, N), added to.
    """
    add_columns_transposed(A, B, block, C, 0)
