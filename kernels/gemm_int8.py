"""`pack` turns a matrix into int8 panels: every weight a whole number of steps of its column.

A column's step is s = max|w| / 127, and a weight is the nearest of the 255 multiples of s. Packed
panels, (panel, ceil(K / 4) + 2, PANEL), are one int32 array, by which `gemm_dispatch` distinguishes
them from other panels. An int32 of the first ceil(K / 4) rows holds the four weights k to k + 3 of
a column, the first in the lowest byte. The next row holds a column's correction, -128 times the sum
of its weights, the last row its scale, the bits of the float32 number s / 127.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL

Array = npt.NDArray[np.float32]
Quads = npt.NDArray[np.int32]

STEPS = 127
"""Steps from 0 to the largest weight of a column, and from 0 to an activation of 1."""

EXTRA_ROWS = 2
"""Rows of a panel behind those of the weights: the corrections, the scales."""


def quad_count(K: int) -> int:
    """Returns the number of int32 that hold K int8 numbers."""
    return -(-K // 4)


def row_count(K: int) -> int:
    """Returns the rows of a panel of K weights a column."""
    return quad_count(K) + EXTRA_ROWS


def quantize_weights(matrix: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Rounds each weight to a step of its column.

    Args:
        matrix: (K, N).

    Returns:
        The weights in steps, (K, N), from -127 to 127, and the scale of each column, (N,). A column
        that holds NaN or an infinity gets zeros and the scale NaN.
    """
    largest = np.abs(matrix).max(axis=0, initial=0).astype(np.float64)
    finite = np.isfinite(largest)
    step = np.where(finite & (largest > 0), largest, 1.0) / STEPS
    steps = np.rint(np.where(finite, matrix, 0) / step).astype(np.int8)
    scale = np.where(finite, largest / STEPS**2, np.nan)
    return steps, scale.astype(np.float32)


def pack(matrix: Array) -> Quads:
    """Packs a matrix; runs once, when a model is loaded.

    Args:
        matrix: (K, N).

    Returns:
        Panels (ceil(N / PANEL), ceil(K / 4) + 2, PANEL); all zeros past column N.
    """
    K, N = matrix.shape
    quads = quad_count(K)
    panels = panel_count(N)
    steps, scale = quantize_weights(matrix)
    whole = np.zeros((4 * quads, panels * PANEL), np.int8)
    whole[:K, :N] = steps
    packed = np.zeros((panels, quads + EXTRA_ROWS, PANEL), np.int32)
    bytes_in_panels = packed[:, :quads].view(np.int8).reshape(panels, quads, PANEL, 4)
    bytes_in_panels[...] = whole.reshape(quads, 4, panels, PANEL).transpose(2, 0, 3, 1)
    correction = packed[:, quads].reshape(-1)
    correction[:N] = -128 * steps.sum(axis=0, dtype=np.int32)
    packed[:, quads] = correction.reshape(panels, PANEL)
    scales = np.zeros(panels * PANEL, np.float32)
    scales[:N] = scale
    packed[:, quads + 1] = scales.view(np.int32).reshape(panels, PANEL)
    return packed
