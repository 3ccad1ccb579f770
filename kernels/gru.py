"""`gru_forward` and `gru_backward` run the gated recurrent unit (Cho et al. 2014).

The variant is PyTorch's, with the reset gate applied after the product:

    r, z = sigmoid(x_t Wx + b + h_{t-1} Wh)            columns r z n
    n = tanh(x_t Wx_n + b_n + r q),  q = h_{t-1} Wh_n + bh
    h_t = (1 - z) n + z h_{t-1}

docs/gru.md derives both passes; `reference.gru_forward` and `reference.gru_backward` are the same
in plain NumPy.
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
def _gru_units(
    gates: Array, ah: Array, bh: Array, h_prev: Array, h: Array, row: int, j: int, count: int
) -> None:
    """Computes gates and states of up to LANES units from unit j on."""
    H = h.shape[1]
    at = row * 3 * H + j
    unit = row * H + j
    r = sigmoid(load(gates, at, count) + load(ah, at, count))
    z = sigmoid(load(gates, at + H, count) + load(ah, at + H, count))
    q = load(ah, at + 2 * H, count) + load(bh, j, count)
    n = tanh(fma(r, q, load(gates, at + 2 * H, count)))
    store(ah, at + 2 * H, count, q)
    store(gates, at, count, r)
    store(gates, at + H, count, z)
    store(gates, at + 2 * H, count, n)
    store(h, unit, count, fma(z, load(h_prev, unit, count) - n, n))


@jit_views
def _gru_gates(gates: Array, ah: Array, bh: Array, h_prev: Array, h: Array) -> None:
    """Computes one step's gates (B, 3H) and states (B, H); adds bh to the last third of ah."""
    B, H = h.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _gru_units(gates, ah, bh, h_prev, h, row, j, LANES)
        if whole < H:
            _gru_units(gates, ah, bh, h_prev, h, row, whole, H - whole)


@jit_inline
def _gru_units_backward(
    gates: Array, ah: Array, h_prev: Array, dh_above: Array, dh: Array, row: int, j: int, count: int
) -> None:
    """Computes da, dah and the share of z in dh, of up to LANES units from unit j on."""
    H = dh.shape[1]
    at = row * 3 * H + j
    unit = row * H + j
    r = load(gates, at, count)
    z = load(gates, at + H, count)
    n = load(gates, at + 2 * H, count)
    q = load(ah, at + 2 * H, count)
    d_h = load(dh_above, unit, count) + load(dh, unit, count)
    da_z = d_h * (load(h_prev, unit, count) - n) * z * (ONE - z)
    da_n = d_h * (ONE - z) * (ONE - n * n)
    da_r = da_n * q * r * (ONE - r)
    store(gates, at, count, da_r)
    store(gates, at + H, count, da_z)
    store(gates, at + 2 * H, count, da_n)
    store(ah, at, count, da_r)
    store(ah, at + H, count, da_z)
    store(ah, at + 2 * H, count, da_n * r)
    store(dh, unit, count, d_h * z)


@jit_views
def _gru_gates_backward(gates: Array, ah: Array, h_prev: Array, dh_above: Array, dh: Array) -> None:
    """Goes one step back: the gates become da, ah becomes dah, dh the share of z."""
    B, H = dh.shape
    whole = H // LANES * LANES
    for row in range(B):
        for j in range(0, whole, LANES):
            _gru_units_backward(gates, ah, h_prev, dh_above, dh, row, j, LANES)
        if whole < H:
            _gru_units_backward(gates, ah, h_prev, dh_above, dh, row, whole, H - whole)


@jit_inline
def gru_step(gates: Array, ah: Array, h_prev: Array, h: Array, Wh: Array, bh: Array) -> None:
    """Runs one step; the new state may be written over the old one.

    Args:
        gates: (B, 3H); in: x Wx + b; out: the gates r z n.
        ah: (B, 3H), written: h Wh, with bh added to its last third.
        h_prev: (B, H).
        h: (B, H), written; it may be `h_prev`.
        Wh: (H, 3H), packed.
        bh: (H,).
    """
    matmul(h_prev, Wh, ah, False)
    _gru_gates(gates, ah, bh, h_prev, h)


@jit_views_apart
def gru_forward(gates: Array, ah: Array, hs: Array, Wh: Array, bh: Array, steps: int) -> None:
    """Runs the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, 3H); in: x Wx + b; out: the gates r z n.
        ah: (T, B, 3H), written: h Wh, with bh added to its last third.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        Wh: (H, 3H), packed.
        bh: (H,).
        steps: steps to run, at most T.
    """
    for t in range(steps):
        gru_step(gates[t], ah[t], hs[t], hs[t + 1], Wh, bh)


@jit_views_apart
def gru_backward(
    gates: Array, ah: Array, hs: Array, WhT: Array, dhs: Array, dh: Array,
    dWh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Runs backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 3H); in: the gates; out: da, the gradient of x Wx + b.
        ah: (T, B, 3H) of the forward pass; out: dah, the gradient of h Wh.
        hs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (3H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last state from later steps; out: of the initial state.
        dWh: (H, 3H), added to.
        block: for rows of H and 3H elements, of which dWh is made.
        steps: steps of the forward pass.
    """
    gathered = 0
    for t in range(steps - 1, -1, -1):
        _gru_gates_backward(gates[t], ah[t], hs[t], dhs[t], dh)
        matmul(ah[t], WhT, dh, True)
        gathered = add_rows_transposed(hs[t], ah[t], block, gathered, dWh, t == 0)
