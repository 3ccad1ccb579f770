"""The gated recurrent unit (Cho et al. 2014) in PyTorch's variant, the reset after the product.

    r, z = sigmoid(x_t Wx + b + h_{t-1} Wh)  (columns r z)
    n = tanh(x_t Wx_n + b_n + r q),  q = h_{t-1} Wh_n + bh
    h_t = (1 - z) n + z h_{t-1}

Columns stand in the order r z n. docs/gru.md derives both passes; `reference.gru_forward` and
`gru_backward` are the same in plain NumPy.
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
def _gru_units(
    gates: Array, hidden: Array, bh: Array, h_before: Array, h: Array,
    row: int, j: int, left: int,
) -> None:  # fmt: skip
    """Gates and states of up to LANES units from unit j on."""
    H = h.shape[1]
    at, unit = row * 3 * H + j, row * H + j
    r = sigmoid(load(gates, at, left) + load(hidden, at, left))
    z = sigmoid(load(gates, at + H, left) + load(hidden, at + H, left))
    q = load(hidden, at + 2 * H, left) + load(bh, j, left)
    n = tanh(fma(r, q, load(gates, at + 2 * H, left)))
    store(hidden, at + 2 * H, left, q)
    store(gates, at, left, r)
    store(gates, at + H, left, z)
    store(gates, at + 2 * H, left, n)
    store(h, unit, left, fma(z, load(h_before, unit, left) - n, n))


@jit
def _gru_gates(gates: Array, hidden: Array, bh: Array, h_before: Array, h: Array) -> None:
    """One step's gates (B, 3H) and states (B, H); bh is added to the last third of hidden."""
    B, H = h.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _gru_units(gates, hidden, bh, h_before, h, row, j, LANES)
        if whole < H:
            _gru_units(gates, hidden, bh, h_before, h, row, whole, H - whole)


@jit_inline
def _gru_units_backward(
    gates: Array, hidden: Array, h_before: Array, above: Array, dh: Array,
    row: int, j: int, left: int,
) -> None:  # fmt: skip
    """One step back for up to LANES units from unit j on."""
    H = dh.shape[1]
    at, unit = row * 3 * H + j, row * H + j
    r, z = load(gates, at, left), load(gates, at + H, left)
    n, q = load(gates, at + 2 * H, left), load(hidden, at + 2 * H, left)
    d_h = load(above, unit, left) + load(dh, unit, left)
    d_z = d_h * (load(h_before, unit, left) - n) * z * (ONE - z)
    d_n = d_h * (ONE - z) * (ONE - n * n)
    d_r = d_n * q * r * (ONE - r)
    store(gates, at, left, d_r)
    store(gates, at + H, left, d_z)
    store(gates, at + 2 * H, left, d_n)
    store(hidden, at, left, d_r)
    store(hidden, at + H, left, d_z)
    store(hidden, at + 2 * H, left, d_n * r)
    store(dh, unit, left, d_h * z)


@jit
def _gru_gates_backward(
    gates: Array, hidden: Array, h_before: Array, above: Array, dh: Array
) -> None:
    """One step back: gates become da, hidden the gradient of h Wh, dh the share of z."""
    B, H = dh.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _gru_units_backward(gates, hidden, h_before, above, dh, row, j, LANES)
        if whole < H:
            _gru_units_backward(gates, hidden, h_before, above, dh, row, whole, H - whole)


@jit
def gru_forward(gates: Array, hidden: Array, hs: Array, Wh: Array, bh: Array, steps: int) -> None:
    """Run the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, 3H); in: x Wx + b; out: the gates r z n.
        hidden: (T, B, 3H), written with h Wh, bh added to its last third.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        Wh: (H, 3H), packed.
        bh: (H,).
        steps: steps to run, at most T.
    """
    for t in range(steps):
        matmul(hs[t], Wh, hidden[t], False)
        _gru_gates(gates[t], hidden[t], bh, hs[t], hs[t + 1])


@jit
def gru_backward(
    gates: Array, hidden: Array, hs: Array, WhT: Array, dhs: Array, dh: Array,
    dWh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Run backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 3H); in: the gates; out: da, the gradient of x Wx + b.
        hidden: (T, B, 3H) of the forward pass; out: the gradient of h Wh.
        hs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (3H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last state from later on; out: of the initial state.
        dWh: (H, 3H), added to.
        block: room for the rows of H and 3H elements that dWh is made of.
        steps: steps the forward pass ran.
    """
    gathered = 0
    for t in range(steps - 1, -1, -1):
        _gru_gates_backward(gates[t], hidden[t], hs[t], dhs[t], dh)
        matmul(hidden[t], WhT, dh, True)
        gathered = add_rows_transposed(hs[t], hidden[t], block, gathered, dWh, t == 0)
