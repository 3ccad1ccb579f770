"""`layer_forward` and `layer_backward` run one layer of any cell over inputs (T, B, D).

    a = x Wx + b + h Wh        the same for every cell; the cell turns a into h

The input's share x Wx + b needs no state and is one product over all steps. The upper layers of a
network get the states of the layer below (D = H); `treadle.model.network.layer` takes any sequence
of vectors. The first layer of a network, whose input is tokens, gets its share from a table (see
`weight_packing`) and uses `recur_forward` and `recur_backward` alone. The twins in plain NumPy are
the functions of the cells in `reference`.
"""

from __future__ import annotations

from typing import NamedTuple

from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import add_matmul_transposed, matmul
from treadle.kernels.gru import gru_backward, gru_forward, gru_step
from treadle.kernels.jit import jit_inline, jit_views_apart
from treadle.kernels.lstm import lstm_backward, lstm_forward, lstm_step
from treadle.kernels.optimizers import add_into
from treadle.kernels.rnn import rnn_backward, rnn_forward, rnn_step
from treadle.kernels.simd import copy_array
from treadle.kernels.structs import GRU, LSTM, Array, RowBlock


class LayerTape(NamedTuple):
    """What the forward pass of a layer records for the backward pass.

    A cell leaves what it lacks empty.
    """

    gates: Array
    """(T, B, G); the backward pass turns it into da, the gradient of x Wx + b."""
    ah: Array
    """(T, B, 3H), the GRU's h Wh; the backward pass turns it into its gradient dah."""
    hs: Array
    """(T+1, B, H); row 0 is the initial state."""
    cs: Array
    """(T+1, B, H), the LSTM's cell states; row 0 is the initial one."""


class RunningGradient(NamedTuple):
    """The gradient that runs from step to step: in, of the last state; out, of the initial one."""

    dh: Array
    """(B, H)."""
    dc: Array
    """(B, H), the LSTM's; not read by other cells."""


class LayerGradients(NamedTuple):
    """The gradients of a layer's parameters, added to."""

    Wx: Array
    """(D, G)."""
    Wh: Array
    """(H, G)."""
    b: Array
    """(G,)."""
    bh: Array
    """(H,), the GRU's; not written by other cells."""


@jit_inline
def input_forward(xs: Array, Wx: Array, b: Array, gates: Array, steps: int) -> None:
    """Writes the input's share of the pre-activations, xs Wx + b.

    Args:
        xs: (T, B, D).
        Wx: (D, G), packed.
        b: (G,).
        gates: (T, B, G), its first `steps` steps written.
        steps: at most T.
    """
    N = steps * xs.shape[1]
    flat = gates[:steps].reshape((N, gates.shape[2]))
    for n in range(N):
        copy_array(b, flat[n])
    matmul(xs[:steps].reshape((N, xs.shape[2])), Wx, flat, True)


@jit_inline
def recur_forward(cell: int, Wh: Array, bh: Array, tape: LayerTape, steps: int) -> None:
    """Runs the recurrence from the states in row 0.

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
        gru_forward(tape.gates, tape.ah, tape.hs, Wh, bh, steps)
    else:
        rnn_forward(tape.gates, tape.hs, Wh, steps)


@jit_inline
def recur_step(
    cell: int, Wh: Array, bh: Array, gates: Array, ah: Array, h: Array, c: Array
) -> None:
    """Runs one step of the recurrence in place.

    Args:
        cell: RNN, GRU or LSTM.
        Wh: (H, G), packed.
        bh: (H,), read by the GRU only.
        gates: (B, G); in: x Wx + b; overwritten.
        ah: (B, 3H), written for the GRU only.
        h: (B, H); in: the old state; out: the new one.
        c: (B, H), the same for the LSTM's cell state; not read for other cells.
    """
    if cell == LSTM:
        lstm_step(gates, h, c, h, c, Wh)
    elif cell == GRU:
        gru_step(gates, ah, h, h, Wh, bh)
    else:
        rnn_step(gates, h, h, Wh)


@jit_views_apart
def layer_forward(
    cell: int, xs: Array, Wx: Array, b: Array, Wh: Array, bh: Array, tape: LayerTape, steps: int
) -> None:
    """Runs a layer over the first `steps` steps, from the states in row 0.

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


@jit_views_apart
def recur_backward(
    cell: int, WhT: Array, tape: LayerTape, dhs: Array, running: RunningGradient,
    dWh: Array, dbh: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Runs backpropagation through time, and adds up the gradients of the recurrent weights.

    Args:
        cell: RNN, GRU or LSTM.
        WhT: Wh transposed, (G, H), packed.
        tape: of the forward pass; its gates become da.
        dhs: the gradient from above of hs[1:], (T, B, H).
        running: in: of the last state; out: of the initial one.
        dWh: (H, G), added to.
        dbh: (H,), added to for the GRU.
        block: for rows of H and G elements. B is at most its ROW_BLOCK.
        steps: steps of the forward pass.
    """
    gates = tape.gates
    ah = tape.ah
    hs = tape.hs
    dh = running.dh
    if cell == LSTM:
        lstm_backward(gates, hs, tape.cs, WhT, dhs, dh, running.dc, dWh, block, steps)
    elif cell == GRU:
        gru_backward(gates, ah, hs, WhT, dhs, dh, dWh, block, steps)
        for t in range(steps):
            for row in range(dh.shape[0]):
                add_into(ah[t, row, 2 * dh.shape[1] :], dbh)
    else:
        rnn_backward(gates, hs, WhT, dhs, dh, dWh, block, steps)


@jit_views_apart
def layer_backward(
    cell: int, xs: Array, WxT: Array, WhT: Array, tape: LayerTape, dhs: Array,
    running: RunningGradient, gradients: LayerGradients, dxs: Array, block: RowBlock, steps: int,
) -> None:  # fmt: skip
    """Takes a layer back through the first `steps` steps.

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
        block: for rows of D or H, and of G elements. B is at most its ROW_BLOCK.
        steps: steps of the forward pass.
    """
    N = steps * xs.shape[1]
    D = xs.shape[2]
    recur_backward(cell, WhT, tape, dhs, running, gradients.Wh, gradients.bh, block, steps)
    da = tape.gates[:steps].reshape((N, tape.gates.shape[2]))
    add_rows(da, gradients.b)
    add_matmul_transposed(xs[:steps].reshape((N, D)), da, block, gradients.Wx)
    matmul(da, WxT, dxs[:steps].reshape((N, D)), False)
