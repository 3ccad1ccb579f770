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
from treadle.kernels.compile import jit
from treadle.kernels.intrinsics import fma
from treadle.kernels.matmul import matmul

Array = npt.NDArray[np.float32]


@jit
def _lstm_gates(gates: Array, c_before: Array, c: Array, h: Array) -> None:
    """One row's gates and states. Short loops over few slices: longer ones do not vectorize."""
    H = h.size
    for j in range(2 * H):
        gates[j] = sigmoid(gates[j])
    for j in range(2 * H, 3 * H):
        gates[j] = tanh(gates[j])
    for j in range(3 * H, 4 * H):
        gates[j] = sigmoid(gates[j])
    i, f, g, o = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
    for j in range(H):
        c[j] = i[j] * g[j]
    for j in range(H):
        c[j] = fma(f[j], c_before[j], c[j])
    for j in range(H):
        h[j] = o[j] * tanh(c[j])


@jit
def _lstm_gates_backward(
    gates: Array, c_before: Array, c: Array, above: Array, dh: Array, dc: Array, tanh_c: Array
) -> None:  # fmt: skip
    """One row's step back: gates become da, dc becomes that of the step before."""
    H = dh.size
    i, f, g, o = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
    for j in range(H):
        tanh_c[j] = tanh(c[j])
    for j in range(H):
        dh[j] = above[j] + dh[j]
    for j in range(H):
        dc[j] = fma(dh[j] * o[j], ONE - tanh_c[j] * tanh_c[j], dc[j])
    for j in range(H):
        o[j] = dh[j] * tanh_c[j] * o[j] * (ONE - o[j])
    for j in range(H):
        i_before, g_before = i[j], g[j]
        i[j] = dc[j] * g_before * i_before * (ONE - i_before)
        g[j] = dc[j] * i_before * (ONE - g_before * g_before)
    for j in range(H):
        f_before = f[j]
        f[j] = dc[j] * c_before[j] * f_before * (ONE - f_before)
        dc[j] = dc[j] * f_before


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
        for row in range(hs.shape[1]):
            _lstm_gates(gates[t, row], cs[t, row], cs[t + 1, row], hs[t + 1, row])


@jit
def lstm_backward(
    gates: Array, cs: Array, WhT: Array, dhs: Array, dh: Array, dc: Array, steps: int
) -> None:  # fmt: skip
    """Run backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, 4H); in: the gates; out: da, the gradient of the pre-activations.
        cs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (4H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last h from later on; out: of the initial h.
        dc: (B, H), the same for c.
        steps: steps the forward pass ran.
    """
    tanh_c = np.empty(dh.shape[1], np.float32)
    for t in range(steps - 1, -1, -1):
        for b in range(dh.shape[0]):
            _lstm_gates_backward(
                gates[t, b], cs[t, b], cs[t + 1, b], dhs[t, b], dh[b], dc[b], tanh_c
            )
        matmul(gates[t], WhT, dh, False)
