"""`drop` applies dropout above a layer (Srivastava et al. 2014), with PyTorch's inverted scaling.

The states h that a layer passes to the layer above, or the topmost layer to the output layer,
become h / (1 - p) where a unit is kept and 0 where it is dropped. The backward pass treats their
gradient alike. The recurrence inside a layer is untouched (Zaremba, Sutskever and Vinyals,
"Recurrent neural network regularization", 2014).

Whether a unit is kept is one bit of `keep`, which `draw_keep` draws before the forward pass and
both passes read. A block of Philox gives eight numbers of 16 bits, and so one byte k for eight
units of one row, step, layer and optimizer step. A bit is therefore a function of these and of the
run's seed alone, whatever shard or thread it is drawn in. p is rounded to a multiple of 2**-16.

With K bytes a row, bit i of byte k is that of unit iK + k, not of 8k + i: the units of one bit are
adjacent, so that a loop over them vectorizes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.jit import jit, jit_apart, jit_inline
from treadle.kernels.random import philox_block
from treadle.kernels.structs import Array, Bits

UNITS = 8
"""Units that a byte, and a block of random bits, stands for."""

LEVELS = 1 << 16
"""p and 1 - p are multiples of 1 / LEVELS."""

STREAMS = np.uint64(1 << 63)
"""The random stream of optimizer step 0; the streams from here on are dropout's, one a step."""

_LAYER_SHIFT = np.uint64(56)
_ROW_SHIFT = np.uint64(36)
_STEP_SHIFT = np.uint64(16)
_LOW16 = np.uint64(LEVELS - 1)
_HALF = np.uint64(16)


class Dropout(NamedTuple):
    """The dropout of one optimizer step in one shard."""

    seed: np.uint64
    """Of the run."""
    step: np.uint64
    """Optimizer steps done before this one."""
    first_row: int
    """The shard's first row within the batch."""
    kept: np.uint64
    """A unit is kept with probability kept / LEVELS."""


def kept_levels(p: float) -> int:
    """Returns how many of LEVELS keep a unit that is dropped with probability p; at least one."""
    return max(1, round((1 - p) * LEVELS))


def keep_bytes(hidden_size: int) -> int:
    """Returns the number of bytes that hold one bit a unit."""
    return -(-hidden_size // UNITS)


@jit
def keep_scale(dropout: Dropout) -> np.float32:
    """Returns the factor of kept units, 1 / the probability to keep one."""
    return np.float32(LEVELS / float(dropout.kept))


@jit_inline
def _kept_bits(word: np.uint64, kept: np.uint64) -> np.uint64:
    """Returns two bits: which halves of a 32-bit word keep their units, the lower half first."""
    low = np.uint64((word & _LOW16) < kept)
    return low | (np.uint64((word >> _HALF) < kept) << np.uint64(1))


@jit
def _draw_row(
    seed: np.uint64, stream: np.uint64, first: np.uint64, kept: np.uint64, keep: Bits
) -> None:
    """Fills one row's bytes; byte k is block `first` + k of the stream."""
    for k in range(keep.size):
        a, b, c, d = philox_block(seed, stream, first + np.uint64(k))
        bits = _kept_bits(a, kept) | (_kept_bits(b, kept) << np.uint64(2))
        bits |= (_kept_bits(c, kept) << np.uint64(4)) | (_kept_bits(d, kept) << np.uint64(6))
        keep[k] = np.uint8(bits)


@jit_apart
def draw_keep(dropout: Dropout, keep: Bits, steps: int, lowest: int) -> None:
    """Draws the units that some layers keep.

    Args:
        dropout: the seed, step and probability; at least one of LEVELS keeps a unit.
        keep: (layers, T, B, ceil(H / UNITS)), its first `steps` steps written: bit i of byte k
            is set where unit i ceil(H / UNITS) + k is kept.
        steps: at most T.
        lowest: the number of the first of the layers.
    """
    stream = STREAMS + dropout.step
    for layer in range(keep.shape[0]):
        for t in range(steps):
            for row in range(keep.shape[2]):
                first = np.uint64(lowest + layer) << _LAYER_SHIFT
                first |= np.uint64(dropout.first_row + row) << _ROW_SHIFT
                first |= np.uint64(t) << _STEP_SHIFT
                _draw_row(dropout.seed, stream, first, dropout.kept, keep[layer, t, row])


@jit_apart
def drop(rows: Array, keep: Bits, scale: np.float32, out: Array) -> None:
    """Writes rows, scaled where their units are kept and 0 where not.

    Args:
        rows: (N, H).
        keep: (N, ceil(H / UNITS)), as `draw_keep` leaves it.
        scale: factor of kept units.
        out: (N, H), written; it may be `rows`.
    """
    H = rows.shape[1]
    K = keep.shape[1]
    for n in range(rows.shape[0]):
        bits = keep[n]
        for i in range(UNITS):
            mask = np.uint8(1 << i)
            first = i * K
            last = min(H, first + K)
            units = rows[n, first:last]
            out_units = out[n, first:last]
            for k in range(last - first):
                out_units[k] = units[k] * scale if bits[k] & mask else ZERO
