"""Packed matrix products: C (+)= A B, by tiles of treadle.kernels.gemm_tile.

Weights are constant over the T steps of a window, so they are packed once an optimizer step
and every step streams the panels. N columns take `panel_count(N)` panels; columns past N are
zero in the panels and are never stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.gemm_tile import PANEL, ROWS, make_gemm_tile
from treadle.kernels.jit import jit

Array = npt.NDArray[np.float32]

_tile, _edge = make_gemm_tile(ROWS, 1, edge=False), make_gemm_tile(ROWS, 1, edge=True)
_tile4 = make_gemm_tile(4, 1, edge=False)
# One row alone has too few accumulators to hide the latency of a multiply-add: several panels.
_row1, _row2, _row3, _row4 = (make_gemm_tile(1, panels, edge=True) for panels in (1, 2, 3, 4))


@jit
def tiles(
    A: Array, start: int, row: int, step: int, P: Array, base: int, K: int,
    C: Array, out: int, width: int, M: int, N: int, add: bool,
) -> None:  # fmt: skip
    """One panel's columns of C, for M rows: C[out + i * width ...] (+)= A P[base ...].

    Args:
        A: element (i, k) is A.flat[start + i * row + k * step].
        start: see A.
        row: see A.
        step: see A.
        P: packed panels.
        base: where the panel begins in P.
        K: length of the sums, above 0.
        C: written.
        out: where the first of its rows begins in C.
        width: elements from row to row of C.
        M: rows.
        N: columns of C from here on; below PANEL, the panel's others are left out.
        add: go on from what C holds rather than from 0.
    """
    i = 0
    if N >= PANEL:
        while i + ROWS <= M:
            _tile(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
            i += ROWS
        while i + 4 <= M:
            _tile4(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
            i += 4
    while i + ROWS <= M:
        _edge(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
        i += ROWS
    while i < M:
        _row1(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width, N, add)
        i += 1


@jit
def _one_row(A: Array, panels: Array, C: Array, add: bool) -> None:
    """C (+)= A B for one row, up to four panels at once."""
    K, N, count = A.shape[1], C.shape[1], panels.shape[0]
    size = K * PANEL
    for j in range(0, count, 4):
        base, out, left = j * size, j * PANEL, N - j * PANEL
        if count - j >= 4:
            _row4(A, 0, K, 1, panels, base, size, K, C, out, N, left, add)
        elif count - j == 3:
            _row3(A, 0, K, 1, panels, base, size, K, C, out, N, left, add)
        elif count - j == 2:
            _row2(A, 0, K, 1, panels, base, size, K, C, out, N, left, add)
        else:
            _row1(A, 0, K, 1, panels, base, size, K, C, out, N, left, add)


@jit
def matmul(A: Array, panels: Array, C: Array, add: bool) -> None:
    """C (+)= A B.

    Args:
        A: (M, K).
        panels: B (K, N), packed.
        C: (M, N), written.
        add: go on from what C holds rather than from 0.
    """
    (M, K), N = A.shape, C.shape[1]
    if M == 1:
        _one_row(A, panels, C, add)
        return
    for j in range(panels.shape[0]):
        tiles(A, 0, K, 1, panels, j * K * PANEL, K, C, j * PANEL, N, M, N - j * PANEL, add)


@jit
def add_rows(rows: Array, total: Array) -> None:
    """total (N,) += the rows (M, N), in ascending order."""
    for m in range(rows.shape[0]):
        row = rows[m]
        for n in range(total.size):
            total[n] += row[n]
