"""The long short-term memory (Hochreiter and Schmidhuber 1997, with Gers' forget gate, 2000).

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
    c_t = f c_{t-1} + i g;  h_t = o tanh(c_t);  a_t = x_t Wx + b + h_{t-1} Wh

Columns of a stand in PyTorch's order i f g o. docs/lstm.md derives both passes;
`reference.lstm_forward` and `lstm_backward` are the same in plain NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, sigmoid, tanh
from treadle.kernels.gemm_dispatch import add_rows_transposed, matmul
from treadle.kernels.intrinsics import fma
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.simd import LANES, load, store
from treadle.kernels.structs import RowBlock

Array = npt.NDArray[np.float32]


@jit_inline
def _lstm_units(
    gates: Array, c_before: Array, c: Array, h: Array, row: int, j: int, left: int
) -> None:  # fmt: skip
    """Gates and states of up to LANES units from unit j on."""
    H = h.shape[1]
    at, unit = row * 4 * H + j, row * H + j
    i, f = sigmoid(load(gates, at, left)), sigmoid(load(gates, at + H, left))
    g, o = tanh(load(gates, at + 2 * H, left)), sigmoid(load(gates, at + 3 * H, left))
    cell = fma(f, load(c_before, unit, left), i * g)
    store(gates, at, left, i)
    store(gates, at + H, left, f)
    store(gates, at + 2 * H, left, g)
    store(gates, at + 3 * H, left, o)
    store(c, unit, left, cell)
    store(h, unit, left, o * tanh(cell))


@jit
def _lstm_gates(gates: Array, c_before: Array, c: Array, h: Array) -> None:
    """One step's gates (B, 4H) and states (B, H)."""
    B, H = h.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _lstm_units(gates, c_before, c, h, row, j, LANES)
        if whole < H:
            _lstm_units(gates, c_before, c, h, row, whole, H - whole)


@jit_inline
def _lstm_units_backward(
    gates: Array, c_before: Array, c: Array, above: Array, dh: Array, dc: Array,
    row: int, j: int, left: int,
) -> None:  # fmt: skip
    """One step back for up to LANES units from unit j on."""
    H = dh.shape[1]
    at, unit = row * 4 * H + j, row * H + j
    i, f = load(gates, at, left), load(gates, at + H, left)
    g, o = load(gates, at + 2 * H, left), load(gates, at + 3 * H, left)
    tanh_c = tanh(load(c, unit, left))
    d_h = load(above, unit, left) + load(dh, unit, left)
    d_c = fma(d_h * o, ONE - tanh_c * tanh_c, load(dc, unit, left))
    store(gates, at, left, d_c * g * i * (ONE - i))
    store(gates, at + H, left, d_c * load(c_before, unit, left) * f * (ONE - f))
    store(gates, at + 2 * H, left, d_c * i * (ONE - g * g))
    store(gates, at + 3 * H, left, d_h * tanh_c * o * (ONE - o))
    store(dc, unit, left, d_c * f)


@jit
def _lstm_gates_backward(
    gates: Array, c_before: Array, c: Array, above: Array, dh: Array, dc: Array
) -> None:  # fmt: skip
    """One step back: gates become da, dc becomes that of the step before."""
    B, H = dh.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _lstm_units_backward(gates, c_before, c, above, dh, dc, row, j, LANES)
        if whole < H:
            _lstm_units_backward(gates, c_before, c, above, dh, dc, row, whole, H - whole)


@jit
def lstm_forward(gates: Array, hs: Array, cs: Array, Wh: Array, steps: int) -> None:
    """Run the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, 4H); in: x Wx + b; out: the gates i f g o.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        cs: (T+1, B, H), like hs.
        Wh: (H, 4H), packed.
        steps: steps to run, at most T.
    """
    for t in range(steps):
        matmul(hs[t], Wh, gates[t], True)
        _lstm_gates(gates[t], cs[t], cs[t + 1], hs[t + 1])


@jit
def lstm_backward(
    gates: Array, hs: Array, cs: Array, WhT: Array, dhs: Array, dh: Array, dc: Array,
    dWh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Run backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 4H); in: the gates; out: da, the gradient of the pre-activations.
        hs: (T+1, B, H) of the forward pass.
        cs: (T+1, B, H), like hs.
        WhT: Wh transposed, (4H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last h from later on; out: of the initial h.
        dc: (B, H), the same for c.
        dWh: (H, 4H), added to.
        block: room for the rows of H and 4H elements that dWh is made of.
        steps: steps the forward pass ran.
    """
    gathered = 0
    for t in range(steps - 1, -1, -1):
        _lstm_gates_backward(gates[t], cs[t], cs[t + 1], dhs[t], dh, dc)
        matmul(gates[t], WhT, dh, False)
        gathered = add_rows_transposed(hs[t], gates[t], block, gathered, dWh, t == 0)
