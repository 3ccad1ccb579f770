"""`rnn_forward` and `rnn_backward` run the vanilla recurrent cell with tanh (Elman 1990).

    h_t = tanh(x_t Wx + b + h_{t-1} Wh)

The input's share x Wx + b is computed beforehand, for all steps at once. docs/rnn.md derives both
passes; `reference.rnn_forward` and `reference.rnn_backward` are the same in plain NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, tanh
from treadle.kernels.gemm_dispatch import add_rows_transposed, matmul
from treadle.kernels.jit import jit_inline, jit_views, jit_views_apart
from treadle.kernels.simd import LANES, load, store
from treadle.kernels.structs import RowBlock

Array = npt.NDArray[np.float32]


@jit_inline
def _rnn_units(gates: Array, h: Array, at: int, count: int) -> None:
    """Computes the states of up to LANES units from element `at` on."""
    store(h, at, count, tanh(load(gates, at, count)))


@jit_inline
def _rnn_units_backward(
    gates: Array, h: Array, dh_above: Array, dh: Array, at: int, count: int
) -> None:
    """Computes da of up to LANES units from element `at` on."""
    state = load(h, at, count)
    d_h = load(dh_above, at, count) + load(dh, at, count)
    store(gates, at, count, d_h * (ONE - state * state))


@jit_views
def _rnn_states(gates: Array, h: Array) -> None:
    """Computes one step's states (B, H) from its pre-activations."""
    whole = h.size // LANES * LANES
    for at in range(0, whole, LANES):
        _rnn_units(gates, h, at, LANES)
    if whole < h.size:
        _rnn_units(gates, h, whole, h.size - whole)


@jit_inline
def rnn_step(gates: Array, h_prev: Array, h: Array, Wh: Array) -> None:
    """Runs one step; the new state may be written over the old one.

    Args:
        gates: (B, H); in: x Wx + b; out: the pre-activations.
        h_prev: (B, H).
        h: (B, H), written; it may be `h_prev`.
        Wh: (H, H), packed.
    """
    matmul(h_prev, Wh, gates, True)
    _rnn_states(gates, h)


@jit_views_apart
def rnn_forward(gates: Array, hs: Array, Wh: Array, steps: int) -> None:
    """Runs the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, H); in: x Wx + b; out: the pre-activations.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        Wh: (H, H), packed.
        steps: steps to run, at most T.
    """
    for t in range(steps):
        rnn_step(gates[t], hs[t], hs[t + 1], Wh)


@jit_views_apart
def rnn_backward(
    gates: Array, hs: Array, WhT: Array, dhs: Array, dh: Array,
    dWh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Runs backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, H), written: da, the gradient of the pre-activations.
        hs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last state from later steps; out: of the initial state.
        dWh: (H, H), added to.
        block: for rows of H and H elements, of which dWh is made.
        steps: steps of the forward pass.
    """
    whole = dh.size // LANES * LANES
    gathered = 0
    for t in range(steps - 1, -1, -1):
        for at in range(0, whole, LANES):
            _rnn_units_backward(gates[t], hs[t + 1], dhs[t], dh, at, LANES)
        if whole < dh.size:
            _rnn_units_backward(gates[t], hs[t + 1], dhs[t], dh, whole, dh.size - whole)
        matmul(gates[t], WhT, dh, False)
        gathered = add_rows_transposed(hs[t], gates[t], block, gathered, dWh, t == 0)
