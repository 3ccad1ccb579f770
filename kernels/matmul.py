"""Packed matrix products: C (+)= A B, by tiles of treadle.kernels.tile.

Weights are constant over the T steps of a window, so they are packed once an optimizer step
and every step streams the panels. N columns take `panel_count(N)` panels; columns past N are
zero in the panels and are never stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.compile import jit
from treadle.kernels.tile import PANEL, ROWS, make_tile

Array = npt.NDArray[np.float32]

_LINE = 16
"""Floats in a cache line."""

_WIDE = 4
_tile, _tile_add = make_tile(ROWS, 1, add=False), make_tile(ROWS, 1, add=True)
_tile4, _tile4_add = make_tile(4, 1, add=False), make_tile(4, 1, add=True)
_tile1, _tile1_add = make_tile(1, 1, add=False), make_tile(1, 1, add=True)
# One row alone has too few accumulators to hide the latency of a multiply-add: four panels.
_wide1, _wide1_add = make_tile(1, _WIDE, add=False), make_tile(1, _WIDE, add=True)


def panel_count(columns: int) -> int:
    """Return how many panels hold a matrix of so many columns."""
    return -(-columns // PANEL)


@jit
def pack(matrix: Array, panels: Array) -> None:
    """Pack a (K, N) matrix into panels (ceil(N / PANEL), K, PANEL), zero past column N."""
    K, N = matrix.shape
    for j in range(panels.shape[0]):
        first = j * PANEL
        width = min(PANEL, N - first)
        for k in range(K):
            panels[j, k, :width] = matrix[k, first : first + width]
            panels[j, k, width:] = 0


@jit
def pack_transposed(matrix: Array, panels: Array) -> None:
    """Pack the transpose of an (N, K) matrix, like `pack`."""
    N, K = matrix.shape
    for j in range(panels.shape[0]):
        first = j * PANEL
        width = min(PANEL, N - first)
        for start in range(0, K, _LINE):  # a whole line of each row, while the cache holds it
            end = min(K, start + _LINE)
            for x in range(width):
                for k in range(start, end):
                    panels[j, k, x] = matrix[first + x, k]
        if width < PANEL:
            for k in range(K):
                panels[j, k, width:] = 0


@jit
def _write_tiles(
    A: Array, start: int, row: int, step: int, P: Array, base: int, K: int,
    C: Array, out: int, width: int, M: int,
) -> None:  # fmt: skip
    """One panel's columns of C for all M rows: C[out + i * width ...] = A P[base ...]."""
    i = 0
    while i + ROWS <= M:
        _tile(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += ROWS
    while i + 4 <= M:
        _tile4(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += 4
    while i < M:
        _tile1(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += 1


@jit
def add_tiles(
    A: Array, start: int, row: int, step: int, P: Array, base: int, K: int,
    C: Array, out: int, width: int, M: int,
) -> None:  # fmt: skip
    """Add one panel's products to M rows of C: C[out + i * width ...] += A P[base ...].

    Args:
        A: element (i, k) is A.flat[start + i * row + k * step].
        start: see A.
        row: see A.
        step: see A.
        P: packed panels.
        base: where the panel begins in P.
        K: length of the sums, above 0.
        C: added to.
        out: where the first of its rows begins in C.
        width: elements from row to row of C.
        M: rows.
    """
    i = 0
    while i + ROWS <= M:
        _tile_add(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += ROWS
    while i + 4 <= M:
        _tile4_add(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += 4
    while i < M:
        _tile1_add(A, start + i * row, row, step, P, base, 0, K, C, out + i * width, width)
        i += 1


@jit
def _edge_panel(A: Array, P: Array, base: int, C: Array, first: int, add: bool) -> None:
    """The last panel, partly past C's columns: computed aside, its real columns copied."""
    (M, K), width = A.shape, C.shape[1] - first
    aside = np.empty((M, PANEL), np.float32)
    if add:
        aside[:, width:] = 0
        for i in range(M):
            aside[i, :width] = C[i, first:]
        add_tiles(A, 0, K, 1, P, base, K, aside, 0, PANEL, M)
    else:
        _write_tiles(A, 0, K, 1, P, base, K, aside, 0, PANEL, M)
    for i in range(M):
        C[i, first:] = aside[i, :width]


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
    whole = N // PANEL
    j = 0
    if M == 1:
        while j + _WIDE <= whole:
            if add:
                _wide1_add(A, 0, K, 1, panels, j * K * PANEL, K * PANEL, K, C, j * PANEL, N)
            else:
                _wide1(A, 0, K, 1, panels, j * K * PANEL, K * PANEL, K, C, j * PANEL, N)
            j += _WIDE
    while j < whole:
        if add:
            add_tiles(A, 0, K, 1, panels, j * K * PANEL, K, C, j * PANEL, N, M)
        else:
            _write_tiles(A, 0, K, 1, panels, j * K * PANEL, K, C, j * PANEL, N, M)
        j += 1
    if whole < panels.shape[0]:
        _edge_panel(A, panels, whole * K * PANEL, C, whole * PANEL, add)


@jit
def add_rows(rows: Array, total: Array) -> None:
    """total (N,) += the rows (M, N), in ascending order."""
    for m in range(rows.shape[0]):
        row = rows[m]
        for n in range(total.size):
            total[n] += row[n]
