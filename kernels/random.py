"""`philox_block` draws random bits as a function of (seed, stream, position) alone.

The generator is Philox4x32 with ten rounds (Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011). It is counter-based: no state is carried from draw to draw,
so what is drawn for one sequence, shard or parameter does not depend on what was drawn for another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_inline

Array = npt.NDArray[np.float32]

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_MANTISSA_SHIFT = np.uint64(8)
_MANTISSA_UNIT = np.float32(2.0**-24)


@jit_inline
def philox_block(
    seed: np.uint64, stream: np.uint64, position: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Returns the four 32-bit words of Philox4x32-10.

    Args:
        seed: the 64-bit key.
        stream: the counter's upper 64 bits.
        position: the counter's lower 64 bits.

    Returns:
        Four words of 32 random bits each, as uint64.
    """
    c0 = position & _LOW
    c1 = position >> _HALF_WORD
    c2 = stream & _LOW
    c3 = stream >> _HALF_WORD
    k0 = seed & _LOW
    k1 = seed >> _HALF_WORD
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _HALF_WORD) ^ c1 ^ k0
        c2 = (p0 >> _HALF_WORD) ^ c3 ^ k1
        c1 = p1 & _LOW
        c3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@jit
def philox(seed: np.uint64, stream: np.uint64, position: np.uint64) -> np.uint64:
    """Returns the first word of `philox_block`, as uint64."""
    return philox_block(seed, stream, position)[0]


@jit
def uniform(seed: np.uint64, stream: np.uint64, position: np.uint64) -> np.float32:
    """Returns a float32 in [0, 1), a multiple of 2**-24."""
    return np.float32(philox(seed, stream, position) >> _MANTISSA_SHIFT) * _MANTISSA_UNIT


@jit
def fill_uniform(seed: np.uint64, stream: np.uint64, limit: np.float32, out: Array) -> None:
    """Fills `out` (N,) with draws from [-limit, limit), element n being draw n of the stream."""
    for n in range(out.size):
        u = uniform(seed, stream, np.uint64(n))
        out[n] = limit * (np.float32(2.0) * u - np.float32(1.0))
