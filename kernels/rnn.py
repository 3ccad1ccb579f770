"""The vanilla recurrent cell with tanh (Elman 1990): h_t = tanh(x_t Wx + b + h_{t-1} Wh).

The input's share of the sum is computed beforehand, for all steps at once; docs/rnn.md derives
both passes, `reference.rnn_forward` and `rnn_backward` are the same in plain NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, tanh
from treadle.kernels.compile import jit
from treadle.kernels.matmul import matmul

Array = npt.NDArray[np.float32]


@jit
def rnn_forward(gates: Array, hs: Array, Wh: Array, steps: int) -> None:
    """Run the recurrence over the first `steps` steps.

    Args:
        gates: (T, B, H); in: x Wx + b; out: what h is.
        hs: (T+1, B, H); row 0 is the initial state, the others are written.
        Wh: (H, H), packed.
        steps: steps to run, at most T.
    """
    B, H = hs.shape[1], hs.shape[2]
    for t in range(steps):
        matmul(hs[t], Wh, gates[t], True)
        for row in range(B):
            a, h = gates[t, row], hs[t + 1, row]
            for j in range(H):
                h[j] = tanh(a[j])


@jit
def rnn_backward(
    gates: Array, hs: Array, WhT: Array, dhs: Array, dh: Array, steps: int
) -> None:  # fmt: skip
    """Run backpropagation through time over the first `steps` steps.

    Args:
        gates: (T, B, H), written with da, the gradient of the pre-activations.
        hs: (T+1, B, H) of the forward pass.
        WhT: Wh transposed, (H, H), packed.
        dhs: (T, B, H), the gradient from above.
        dh: (B, H); in: the gradient of the last state from later on; out: of the initial state.
        steps: steps the forward pass ran.
    """
    B, H = dh.shape
    for t in range(steps - 1, -1, -1):
        for row in range(B):
            da, h, above, running = gates[t, row], hs[t + 1, row], dhs[t, row], dh[row]
            for j in range(H):
                da[j] = (above[j] + running[j]) * (ONE - h[j] * h[j])
        matmul(gates[t], WhT, dh, False)
