"""`pack` lays a matrix out in panels of PANEL columns, which a GEMM tile reads as one stream.

Weights are constant over the T steps of a window. They are packed once an optimizer step and read
at every time step. N columns take `panel_count(N)` panels. Columns past N are zero in the panels
and are never stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import TARGET, jit_views, jit_views_apart
from treadle.kernels.simd import LANES, move, move_transposed

Array = npt.NDArray[np.float32]

PANEL = TARGET.panel
"""Columns of one packed panel."""


def panel_count(columns: int) -> int:
    """Returns the number of panels that hold a matrix of so many columns."""
    return -(-columns // PANEL)


@jit_views_apart
def pack(matrix: Array, panels: Array) -> None:
    """Packs a matrix.

    Args:
        matrix: (K, N).
        panels: (ceil(N / PANEL), K, PANEL), written; zero past column N.
    """
    K, N = matrix.shape
    for j in range(panels.shape[0]):
        first = j * PANEL
        if first + PANEL <= N:
            for k in range(K):
                move(matrix, k * N + first, panels, (j * K + k) * PANEL, PANEL, PANEL)
        else:
            for k in range(K):
                move(matrix, k * N + first, panels, (j * K + k) * PANEL, PANEL, N - first)


@jit_views
def _transpose_rest(
    matrix: Array, first: int, panel: Array, begin: int, end: int, start: int
) -> None:
    """Packs columns `begin` to `end` of one panel (K, PANEL), from step `start` on."""
    for x in range(begin, end):
        for k in range(start, panel.shape[0]):
            panel[k, x] = matrix[first + x, k]


@jit_views_apart
def pack_transposed(matrix: Array, panels: Array) -> None:
    """Packs the transpose of a matrix.

    Args:
        matrix: (N, K).
        panels: (ceil(N / PANEL), K, PANEL), written; zero past column N.
    """
    N, K = matrix.shape
    for j in range(panels.shape[0]):
        first = j * PANEL
        width = min(PANEL, N - first)
        columns = width // LANES * LANES
        steps = K // LANES * LANES if columns else 0
        for x in range(0, columns, LANES):
            for k in range(0, steps, LANES):
                start = (first + x) * K + k
                move_transposed(matrix, start, K, panels, (j * K + k) * PANEL + x, PANEL)
            _transpose_rest(matrix, first, panels[j], x, x + LANES, steps)
        _transpose_rest(matrix, first, panels[j], columns, width, 0)
        if width < PANEL:
            for k in range(K):
                panels[j, k, width:] = 0
