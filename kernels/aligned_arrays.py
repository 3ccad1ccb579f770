"""`aligned_zeros` allocates arrays that begin on a cache line.

A vector of sixteen float32 numbers is as long as a line. NumPy's own arrays begin anywhere in a
line, so that every vector would touch two of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_LINE_BYTES = 64


def aligned_zeros(shape: tuple[int, ...] | int, dtype: npt.DTypeLike = np.float32) -> Any:
    """Returns a C-contiguous array of zeros that begins on a cache line.

    Args:
        shape: its shape.
        dtype: its type, of 64 bytes at most.
    """
    sizes = (shape,) if isinstance(shape, int) else shape
    kind = np.dtype(dtype)
    size = math.prod(sizes) * kind.itemsize
    buffer = np.zeros(size + _LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % _LINE_BYTES
    return buffer[start : start + size].view(kind).reshape(sizes)
