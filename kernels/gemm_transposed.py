"""C += A^T B over many rows: how gradients of weights are summed.

Rows of A and B are gathered in packed blocks, as they come to be, while the caches still hold
them; a full block is multiplied by the tile. Every element of C is one chain of fused
multiply-adds over the rows in the order in which they were gathered, whatever a block holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.gemm import tiles
from treadle.kernels.gemm_tile import PANEL, ROWS
from treadle.kernels.jit import jit
from treadle.kernels.simd import move
from treadle.kernels.structs import ROW_BLOCK, RowBlock

Array = npt.NDArray[np.float32]


def allocate_row_block(M: int, N: int) -> RowBlock:
    """Return room for gathering rows (M,) of A and (N,) of B."""
    strips, panels = -(-M // ROWS), -(-N // PANEL)
    return RowBlock(
        np.zeros((strips, ROW_BLOCK, ROWS), np.float32),
        np.zeros((panels, ROW_BLOCK, PANEL), np.float32),
    )


@jit
def _gather_left(A: Array, left: Array, at: int) -> None:
    """Put rows (n, M) behind the `at` rows that are there."""
    n, M = A.shape
    whole = M // ROWS
    for k in range(n):
        for strip in range(whole):
            to = (strip * ROW_BLOCK + at + k) * ROWS
            move(A, k * M + strip * ROWS, left, to, ROWS, ROWS)
        if whole * ROWS < M:
            to = (whole * ROW_BLOCK + at + k) * ROWS
            move(A, k * M + whole * ROWS, left, to, ROWS, M - whole * ROWS)


@jit
def _gather_right(B: Array, first: int, right: Array, at: int) -> None:
    """Put rows (n, N), from column `first` on, behind the `at` rows that are there."""
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


@jit
def _multiply(block: RowBlock, rows: int, C: Array, first: int) -> None:
    """C[:, first:] += A^T B of the gathered rows, as many columns as the block holds."""
    M, N = C.shape
    for panel in range(block.right.shape[0]):
        column, base = first + panel * PANEL, panel * ROW_BLOCK * PANEL
        if column >= N:
            break
        for strip in range((M + ROWS - 1) // ROWS):
            height = min(ROWS, M - strip * ROWS)
            start, out = strip * ROW_BLOCK * ROWS, strip * ROWS * N + column
            left = N - column
            tiles(
                block.left, start, 1, ROWS, block.right, base, rows, C, out, N, height, left, True
            )


@jit
def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gather rows for C += A^T B, and add them once the block is full or they are the last.

    Args:
        A: (n, M), n at most ROW_BLOCK.
        B: (n, N).
        block: room for N columns.
        gathered: rows in the block; 0 at first, later what the last call returned.
        C: (M, N), added to.
        last: no rows follow.

    Returns:
        Rows in the block now.
    """
    if gathered + A.shape[0] > ROW_BLOCK:
        _multiply(block, gathered, C, 0)
        gathered = 0
    _gather_left(A, block.left, gathered)
    _gather_right(B, 0, block.right, gathered)
    gathered += A.shape[0]
    if last:
        _multiply(block, gathered, C, 0)
        gathered = 0
    return gathered


@jit
def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """C += A^T B, the sum over rows in ascending order.

    Args:
        A: (K, M).
        B: (K, N).
        block: room for M rows of C and any number of its columns.
        C: (M, N), added to.
    """
    K, N = B.shape
    columns = block.right.shape[0] * PANEL
    for k in range(0, K, ROW_BLOCK):
        rows = min(ROW_BLOCK, K - k)
        _gather_left(A[k : k + rows], block.left, 0)
        for first in range(0, N, columns):
            _gather_right(B[k : k + rows], first, block.right, 0)
            _multiply(block, rows, C, first)
