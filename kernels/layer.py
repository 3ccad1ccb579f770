"""One recurrent layer of any cell over real-valued input (T, B, D): forward, and the way back.

    a = x Wx + b + h Wh, the same for every cell; what becomes of a is the cell's own affair

The input's share needs no state and is one product over all steps. A network's upper layers come
here with the states below them (D = H); `treadle.model.network.layer` with any sequence of vectors.
A network's first layer, whose input is tokens, has its share made elsewhere (see packing) and takes
`recur_forward` and `recur_backward` alone. The twins in plain NumPy are the cells' functions in
`reference`.
"""

from __future__ import annotations

from typing import NamedTuple

from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import add_matmul_transposed, matmul
from treadle.kernels.gru import gru_backward, gru_forward
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.lstm import lstm_backward, lstm_forward
from treadle.kernels.optimizers import add_into
from treadle.kernels.rnn import rnn_backward, rnn_forward
from treadle.kernels.structs import GRU, LSTM, Array, RowBlock


class LayerTape(NamedTuple):
    """What a layer's forward pass leaves for the way back. Cells leave what they lack empty."""

    gates: Array
    """(T, B, G); the way back turns it into da, the gradient of x Wx + b."""
    hidden: Array
    """(T, B, 3H), the GRU's hidden products; the way back turns it into the gradient of h Wh."""
    hs: Array
    """(T+1, B, H); row 0 is the initial state."""
    cs: Array
    """(T+1, B, H), the LSTM's cell states; row 0 is the initial one."""


class RunningGradient(NamedTuple):
    """The gradient that runs from step to step: in, of the last state; out, of the initial one."""

    dh: Array
    """(B, H)."""
    dc: Array
    """(B, H), the LSTM's; not read elsewhere."""


class LayerGradients(NamedTuple):
    """The gradients of a layer's parameters, added to."""

    Wx: Array
    """(D, G)."""
    Wh: Array
    """(H, G)."""
    b: Array
    """(G,)."""
    bh: Array
    """(H,), the GRU's; not written elsewhere."""


@jit_inline
def input_forward(xs: Array, Wx: Array, b: Array, gates: Array, steps: int) -> None:
    """Write the input's share of the pre-activations, xs Wx + b.

    Args:
        xs: (T, B, D).
        Wx: (D, G), packed.
        b: (G,).
        gates: (T, B, G), its first `steps` steps written.
        steps: at most T.
    """
    N, D, G = steps * xs.shape[1], xs.shape[2], gates.shape[2]
    flat = gates[:steps].reshape((N, G))
    for n in range(N):
        flat[n] = b
    matmul(xs[:steps].reshape((N, D)), Wx, flat, True)


@jit_inline
def recur_forward(cell: int, Wh: Array, bh: Array, tape: LayerTape, steps: int) -> None:
    """Run the recurrence from the states in row 0.

    Args:
        cell: RNN, GRU or LSTM.
        Wh: (H, G), packed.
        bh: (H,), read by the GRU only.
        tape: its gates hold x Wx + b; the rest is written.
        steps: at most T.
    """
    if cell == LSTM:
        lstm_forward(tape.gates, tape.hs, tape.cs, Wh, steps)
    elif cell == GRU:
        gru_forward(tape.gates, tape.hidden, tape.hs, Wh, bh, steps)
    else:
        rnn_forward(tape.gates, tape.hs, Wh, steps)


@jit
def layer_forward(
    cell: int, xs: Array, Wx: Array, b: Array, Wh: Array, bh: Array, tape: LayerTape, steps: int
) -> None:  # fmt: skip
    """Run a layer over the first `steps` steps, from the states in row 0.

    Args:
        cell: RNN, GRU or LSTM.
        xs: inputs, (T, B, D), any D.
        Wx: (D, G), packed.
        b: (G,).
        Wh: (H, G), packed.
        bh: (H,), read by the GRU only.
        tape: row 0 of hs and cs is read, all else written.
        steps: at most T.
    """
    input_forward(xs, Wx, b, tape.gates, steps)
    recur_forward(cell, Wh, bh, tape, steps)


@jit
def recur_backward(
    cell: int, WhT: Array, tape: LayerTape, dhs: Array, running: RunningGradient,
    dWh: Array, dbh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Go back through time, and add up the gradients of the recurrent weights.

    Args:
        cell: RNN, GRU or LSTM.
        WhT: Wh transposed, (G, H), packed.
        tape: of the forward pass; its gates become da.
        dhs: the gradient from above of hs[1:], (T, B, H).
        running: in: of the last state; out: of the initial one.
        dWh: (H, G), added to.
        dbh: (H,), added to for the GRU.
        block: room for rows of H and G elements. B is at most its ROW_BLOCK.
        steps: those of the forward pass.
    """
    gates, hidden, hs, dh = tape.gates, tape.hidden, tape.hs, running.dh
    if cell == LSTM:
        lstm_backward(gates, hs, tape.cs, WhT, dhs, dh, running.dc, dWh, block, steps)
    elif cell == GRU:
        gru_backward(gates, hidden, hs, WhT, dhs, dh, dWh, block, steps)
        for t in range(steps):
            for row in range(dh.shape[0]):
                add_into(hidden[t, row, 2 * dh.shape[1] :], dbh)
    else:
        rnn_backward(gates, hs, WhT, dhs, dh, dWh, block, steps)


@jit
def layer_backward(
    cell: int, xs: Array, WxT: Array, WhT: Array, tape: LayerTape, dhs: Array,
    running: RunningGradient, gradients: LayerGradients, dxs: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Take a layer back through the first `steps` steps.

    Args:
        cell: RNN, GRU or LSTM.
        xs: inputs of the forward pass, (T, B, D).
        WxT: Wx transposed, (G, D), packed.
        WhT: Wh transposed, (G, H), packed.
        tape: of the forward pass; its gates become da.
        dhs: the gradient from above of hs[1:], (T, B, H).
        running: in: of the last state; out: of the initial one.
        gradients: added to.
        dxs: (T, B, D), its first `steps` steps written; where D = H it may be `dhs`.
        block: room for rows of D or H, and of G elements. B is at most its ROW_BLOCK.
        steps: those of the forward pass.
    """
    N, D, G = steps * xs.shape[1], xs.shape[2], tape.gates.shape[2]
    recur_backward(cell, WhT, tape, dhs, running, gradients.Wh, gradients.bh, block, steps)
    da = tape.gates[:steps].reshape((N, G))
    add_rows(da, gradients.b)
    add_matmul_transposed(xs[:steps].reshape((N, D)), da, block, gradients.Wx)
    matmul(da, WxT, dxs[:steps].reshape((N, D)), False)
