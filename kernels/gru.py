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

from treadle.kernels.activations import ONE, ZERO, sigmoid, tanh
from treadle.kernels.compile import jit
from treadle.kernels.intrinsics import fma
from treadle.kernels.matmul import matmul

Array = npt.NDArray[np.float32]


@jit
def _gru_gates(gates: Array, hidden: Array, h_before: Array, h: Array) -> None:
    """One row's gates and state. Short loops over few slices: longer ones do not vectorize."""
    H = h.size
    r, z, n = gates[:H], gates[H : 2 * H], gates[2 * H :]
    q = hidden[2 * H :]
    for j in range(2 * H):
        gates[j] = sigmoid(gates[j] + hidden[j])
    for j in range(H):
        n[j] = tanh(fma(r[j], q[j], n[j]))
    for j in range(H):
        h[j] = fma(z[j], h_before[j] - n[j], n[j])


@jit
def _gru_gates_backward(
    gates: Array, hidden: Array, h_before: Array, above: Array, dh: Array
) -> None:
    """One row's step back: gates become da, hidden the gradient of h Wh, dh the share of z."""
    H = dh.size
    r, z, n = gates[:H], gates[H : 2 * H], gates[2 * H :]
    q = hidden[2 * H :]
    for j in range(H):
        dh[j] = above[j] + dh[j]
    for j in range(H):
        hidden[H + j] = dh[j] * (h_before[j] - n[j]) * z[j] * (ONE - z[j])
    for j in range(H):
        n[j] = dh[j] * (ONE - z[j]) * (ONE - n[j] * n[j])
    for j in range(H):
        dh[j] = dh[j] * z[j]
    for j in range(H):
        hidden[j] = n[j] * q[j] * r[j] * (ONE - r[j])
    for j in range(H):
        q[j] = n[j] * r[j]
    for j in range(2 * H):
        gates[j] = hidden[j]


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
    B, H = hs.shape[1], hs.shape[2]
    for t in range(steps):
        for row in range(B):
            hidden[t, row, : 2 * H] = ZERO
            hidden[t, row, 2 * H :] = bh
        matmul(hs[t], Wh, hidden[t], True)
        for row in range(B):
            _gru_gates(gates[t, row], hidden[t, row], hs[t, row], hs[t + 1, row])


@jit
def gru_backward(
    gates: Array, hidden: Array, hs: Array, WhT: Array, dhs: Array, dh: Array, steps: int
) -> None:  # fmt: skip
    """Run backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 3H); in: the gates; out: da, the gradient of x Wx + b.
        hidden: (T, B, 3H) of the forward pass; out: the gradient of h Wh.
        hs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (3H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last state from later on; out: of the initial state.
        steps: steps the forward pass ran.
    """
    for t in range(steps - 1, -1, -1):
        for row in range(dh.shape[0]):
            _gru_gates_backward(gates[t, row], hidden[t, row], hs[t, row], dhs[t, row], dh[row])
        matmul(hidden[t], WhT, dh, True)
