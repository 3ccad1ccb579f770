"""What tests of matrix products share: random matrices, guards, and the oracle of bits.

`fused` is a fused multiply-add in NumPy that rounds once, by rounding the
float64 sum to odd before it is rounded to float32 (Boldo and Melquiond, "Emulation of FMA and
correctly rounded sums", 2008).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from treadle.kernels.gemm_tile import PANEL

Floats = NDArray[np.float32]

GUARD = np.float32(-77.25)


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c in float32, rounded once."""
    exact_product = a.astype(np.float64) * b
    wide_c = c.astype(np.float64)
    total = exact_product + wide_c
    tail = total - exact_product
    lost = (exact_product - (total - tail)) + (wide_c - tail)
    odd = total.view(np.int64) & 1 == 1
    toward = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    rounded: Floats = np.where((lost == 0) | odd, total, toward).astype(np.float32)
    return rounded


def guarded(C: Floats) -> tuple[Floats, Callable[[], bool]]:
    """A copy of C between guards, and whether the guards are untouched."""
    buffer = np.full(C.size + 4 * PANEL, GUARD, np.float32)
    inside = slice(2 * PANEL, 2 * PANEL + C.size)
    buffer[inside] = C.reshape(-1)
    copy = buffer[inside].reshape(C.shape)
    outside = np.delete(np.arange(buffer.size), np.arange(inside.start, inside.stop))
    return copy, lambda: bool((buffer[outside] == GUARD).all())
