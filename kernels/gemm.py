"""`matmul` computes C (+)= A B in float32, with B packed in panels (see `gemm_packing`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.gemm_tile import LANES, PANEL, Operand, make_gemm_tile, multiply_panel
from treadle.kernels.jit import jit_inline, jit_views, jit_views_apart

Array = npt.NDArray[np.float32]

# A tile of one row and one panel has too few accumulators to hide the latency of a multiply-add,
# so a single row is multiplied by up to four panels at once.
_row1 = make_gemm_tile(1, 1, edge=True)
_row2 = make_gemm_tile(1, 2, edge=True)
_row3 = make_gemm_tile(1, 3, edge=True)
_row4 = make_gemm_tile(1, 4, edge=True)

# The same where the last columns fill no more than half a panel.
_half1 = make_gemm_tile(1, 1, edge=True, half=True)
_half2 = make_gemm_tile(1, 2, edge=True, half=True)
_half3 = make_gemm_tile(1, 3, edge=True, half=True)
_half4 = make_gemm_tile(1, 4, edge=True, half=True)


@jit_inline
def _one_row_tile(
    left: Operand, right: Operand, out: Operand, panels: int, K: int, columns: int, add: bool
) -> None:
    """Computes one row of the next `panels` panels, up to four, of which `columns` are in C."""
    half = columns <= (panels - 1) * PANEL + LANES
    if panels >= 4:
        if half:
            _half4(left, right, out, 0, K, columns, add)
        else:
            _row4(left, right, out, 0, K, columns, add)
    elif panels == 3:
        if half:
            _half3(left, right, out, 0, K, columns, add)
        else:
            _row3(left, right, out, 0, K, columns, add)
    elif panels == 2:
        if half:
            _half2(left, right, out, 0, K, columns, add)
        else:
            _row2(left, right, out, 0, K, columns, add)
    elif half:
        _half1(left, right, out, 0, K, columns, add)
    else:
        _row1(left, right, out, 0, K, columns, add)


@jit_views
def _one_row(A: Array, panels: Array, C: Array, add: bool) -> None:
    """Computes C (+)= A B for one row."""
    K = A.shape[1]
    N = C.shape[1]
    count = panels.shape[0]
    size = K * PANEL
    left = Operand(A, 0, K, 1)
    for j in range(0, count, 4):
        right = Operand(panels, j * size, size, PANEL)
        out = Operand(C, j * PANEL, N, 1)
        _one_row_tile(left, right, out, min(count - j, 4), K, N - j * PANEL, add)


@jit_views_apart
def matmul_rows(A: Array, panels: Array, first: int, C: Array, add: bool) -> None:
    """Computes C (+)= A B', where B' is the rows of B from `first` on.

    Args:
        A: (M, k).
        panels: B (K, N), packed.
        first: the row of B that the first column of A belongs to.
        C: (M, N), written.
        add: continue from the values in C rather than from 0.
    """
    M, steps = A.shape
    N = C.shape[1]
    size = panels.shape[1] * PANEL
    left = Operand(A, 0, steps, 1)
    for j in range(panels.shape[0]):
        right = Operand(panels, j * size + first * PANEL, size, PANEL)
        out = Operand(C, j * PANEL, N, 1)
        multiply_panel(left, right, out, M, steps, N - j * PANEL, add)


@jit_views_apart
def matmul(A: Array, panels: Array, C: Array, add: bool) -> None:
    """Computes C (+)= A B.

    Args:
        A: (M, K).
        panels: B (K, N), packed.
        C: (M, N), written.
        add: continue from the values in C rather than from 0.
    """
    if A.shape[0] == 1:
        _one_row(A, panels, C, add)
    else:
        matmul_rows(A, panels, 0, C, add)


@jit_views
def add_rows(rows: Array, total: Array) -> None:
    """Adds rows (M, N) to `total` (N,), in ascending order."""
    for m in range(rows.shape[0]):
        row = rows[m]
        for n in range(total.size):
            total[n] += row[n]
