"""`pack` lays a matrix out in panels of PANEL columns, which the gemm tile reads in one stream.

Weights are constant over the T steps of a window, so they are packed once an optimizer step and
read by every step. N columns take `panel_count(N)` panels; columns past N are zero in the panels
and are never stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.jit import jit
from treadle.kernels.simd import move

Array = npt.NDArray[np.float32]

_LINE = 16
"""Floats in a cache line."""


def panel_count(columns: int) -> int:
    """Return how many panels hold a matrix of so many columns."""
    return -(-columns // PANEL)


@jit
def pack(matrix: Array, panels: Array) -> None:
    """Pack a (K, N) matrix into panels (ceil(N / PANEL), K, PANEL), zero past column N."""
    K, N = matrix.shape
    for j in range(panels.shape[0]):
        first = j * PANEL
        if first + PANEL <= N:
            for k in range(K):
                move(matrix, k * N + first, panels, (j * K + k) * PANEL, PANEL, PANEL)
        else:
            for k in range(K):
                move(matrix, k * N + first, panels, (j * K + k) * PANEL, PANEL, N - first)


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
