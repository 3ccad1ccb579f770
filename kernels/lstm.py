"""`lstm_forward` and `lstm_backward` run the long short-term memory.

Hochreiter and Schmidhuber (1997), with the forget gate of Gers, Schmidhuber and Cummins (2000):

    a_t = x_t Wx + b + h_{t-1} Wh                      columns i f g o, PyTorch's order
    i = sigmoid(a_i),  f = sigmoid(a_f),  g = tanh(a_g),  o = sigmoid(a_o)
    c_t = f c_{t-1} + i g
    h_t = o tanh(c_t)

docs/lstm.md derives both passes; `reference.lstm_forward` and `reference.lstm_backward` are the
same in plain NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, sigmoid, tanh
from treadle.kernels.gemm_dispatch import add_rows_transposed, matmul
from treadle.kernels.intrinsics import fma
from treadle.kernels.jit import jit_inline, jit_views, jit_views_apart
from treadle.kernels.simd import LANES, load, store
from treadle.kernels.structs import RowBlock

Array = npt.NDArray[np.float32]


@jit_inline
def _lstm_units(
    gates: Array, c_prev: Array, c: Array, h: Array, row: int, j: int, count: int
) -> None:
    """Computes gates and states of up to LANES units from unit j on."""
    H = h.shape[1]
    at = row * 4 * H + j
    unit = row * H + j
    i = sigmoid(load(gates, at, count))
    f = sigmoid(load(gates, at + H, count))
    g = tanh(load(gates, at + 2 * H, count))
    o = sigmoid(load(gates, at + 3 * H, count))
    cell = fma(f, load(c_prev, unit, count), i * g)
    store(gates, at, count, i)
    store(gates, at + H, count, f)
    store(gates, at + 2 * H, count, g)
    store(gates, at + 3 * H, count, o)
    store(c, unit, count, cell)
    store(h, unit, count, o * tanh(cell))


@jit_views
def _lstm_gates(gates: Array, c_prev: Array, c: Array, h: Array) -> None:
    """Computes one step's gates (B, 4H) and states (B, H)."""
    B, H = h.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _lstm_units(gates, c_prev, c, h, row, j, LANES)
        if whole < H:
            _lstm_units(gates, c_prev, c, h, row, whole, H - whole)


@jit_inline
def _lstm_units_backward(
    gates: Array, c_prev: Array, c: Array, dh_above: Array, dh: Array, dc: Array,
    row: int, j: int, count: int,
) -> None:  # fmt: skip
    """Computes da and the running dc of up to LANES units from unit j on."""
    H = dh.shape[1]
    at = row * 4 * H + j
    unit = row * H + j
    i = load(gates, at, count)
    f = load(gates, at + H, count)
    g = load(gates, at + 2 * H, count)
    o = load(gates, at + 3 * H, count)
    tanh_c = tanh(load(c, unit, count))
    d_h = load(dh_above, unit, count) + load(dh, unit, count)
    d_c = fma(d_h * o, ONE - tanh_c * tanh_c, load(dc, unit, count))
    store(gates, at, count, d_c * g * i * (ONE - i))
    store(gates, at + H, count, d_c * load(c_prev, unit, count) * f * (ONE - f))
    store(gates, at + 2 * H, count, d_c * i * (ONE - g * g))
    store(gates, at + 3 * H, count, d_h * tanh_c * o * (ONE - o))
    store(dc, unit, count, d_c * f)


@jit_views
def _lstm_gates_backward(
    gates: Array, c_prev: Array, c: Array, dh_above: Array, dh: Array, dc: Array
) -> None:
    """Goes one step back: the gates become da, dc becomes that of the step before."""
    B, H = dh.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _lstm_units_backward(gates, c_prev, c, dh_above, dh, dc, row, j, LANES)
        if whole < H:
            _lstm_units_backward(gates, c_prev, c, dh_above, dh, dc, row, whole, H - whole)


@jit_inline
def lstm_step(gates: Array, h_prev: Array, c_prev: Array, h: Array, c: Array, Wh: Array) -> None:
    """Runs one step; the new states may be written over the old ones.

    Args:
        gates: (B, 4H); in: x Wx + b; out: the gates i f g o.
        h_prev: (B, H).
        c_prev: (B, H).
        h: (B, H), written; it may be `h_prev`.
        c: (B, H), written; it may be `c_prev`.
        Wh: (H, 4H), packed.
    """
    matmul(h_prev, Wh, gates, True)
    _lstm_gates(gates, c_prev, c, h)


@jit_views_apart
def lstm_forward(gates: Array, hs: Array, cs: Array, Wh: Array, steps: int) -> None:
    """Runs the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, 4H); in: x Wx + b; out: the gates i f g o.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        cs: (T+1, B, H), like hs.
        Wh: (H, 4H), packed.
        steps: steps to run, at most T.
    """
    for t in range(steps):
        lstm_step(gates[t], hs[t], cs[t], hs[t + 1], cs[t + 1], Wh)


@jit_views_apart
def lstm_backward(
    gates: Array, hs: Array, cs: Array, WhT: Array, dhs: Array, dh: Array, dc: Array,
    dWh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Runs backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 4H); in: the gates; out: da, the gradient of the pre-activations.
        hs: (T+1, B, H) of the forward pass.
        cs: (T+1, B, H), like hs.
        WhT: Wh transposed, (4H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last h from later steps; out: of the initial h.
        dc: (B, H), the same for c.
        dWh: (H, 4H), added to.
        block: for rows of H and 4H elements, of which dWh is made.
        steps: steps of the forward pass.
    """
    gathered = 0
    for t in range(steps - 1, -1, -1):
        _lstm_gates_backward(gates[t], cs[t], cs[t + 1], dhs[t], dh, dc)
        matmul(gates[t], WhT, dh, False)
        gathered = add_rows_transposed(hs[t], gates[t], block, gathered, dWh, t == 0)
