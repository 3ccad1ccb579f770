"""`lstm_forward` and `lstm_backward` are the LSTM."""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from typing import NamedTuple

import numpy as np

from treadle.kernels.reference.arrays import Array
from treadle.kernels.reference.steps import sequence_from, sigmoid, weight_gradient


def lstm_forward(
    xs: Array, h0: Array, c0: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Array, Array]:
    """Runs the LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000) over a sequence.

    a  = x Wx + h Wh + b                   four blocks of H columns: i f g o
    i  = sigmoid(a_i)                      input gate
    f  = sigmoid(a_f)                      forget gate
    g  = tanh(a_g)                         candidate
    o  = sigmoid(a_o)                      output gate
    c' = f c + i g
    h' = o tanh(c')

    Args:
        xs: inputs, (T, B, D).
        h0: initial hidden state, (B, H).
        c0: initial cell state, (B, H).
        Wx: input weights, (D, 4H).
        Wh: recurrent weights, (H, 4H).
        b: bias, (4H,).

    Returns:
        hs, (T+1, B, H), cs, (T+1, B, H), and the gates i f g o, (T, B, 4H), for the backward pass.
    """
    hs = sequence_from(h0, len(xs))
    cs = sequence_from(c0, len(xs))
    axs = xs @ Wx + b
    gates = np.empty_like(axs)
    for t in range(len(xs)):
        a_i, a_f, a_g, a_o = np.split(axs[t] + hs[t] @ Wh, 4, axis=-1)
        i = sigmoid(a_i)
        f = sigmoid(a_f)
        g = np.tanh(a_g)
        o = sigmoid(a_o)
        cs[t + 1] = f * cs[t] + i * g
        hs[t + 1] = o * np.tanh(cs[t + 1])
        gates[t] = np.concatenate((i, f, g, o), axis=-1)
    return hs, cs, gates


class LstmGradients(NamedTuple):
    """The result of lstm_backward; dX has the shape of X."""

    dxs: Array
    dh0: Array
    dc0: Array
    dWx: Array
    dWh: Array
    db: Array


def lstm_backward(
    dhs: Array,
    xs: Array,
    hs: Array,
    cs: Array,
    gates: Array,
    Wx: Array,
    Wh: Array,
    dcT: Array | None = None,
) -> LstmGradients:
    """Backpropagates through time, the full gradient (Graves & Schmidhuber 2005).

    Two gradients run from step to step: dh as in the RNN, and dc, which passes through the forget
    gate alone. Each step takes the lines of lstm_forward from the last to the first:

    dh += dhs[t]
    do  = dh tanh(c'),  dc += dh o (1 - tanh(c')^2)              of h' = o tanh(c')
    di  = dc g,  dg = dc i,  df = dc c,  dc = dc f               of c' = f c + i g
    da_i = di i (1 - i),  da_f = df f (1 - f),  da_g = dg (1 - g^2),  da_o = do o (1 - o)
    dh  = da Wh.T,  dx = da Wx.T,  dWx += x.T da,  dWh += h.T da,  db += da

    Args:
        dhs: gradient from above of hs[1:], (T, B, H); a gradient of the final hidden state is
            added to dhs[-1].
        xs: inputs, (T, B, D).
        hs: hidden states of lstm_forward, (T+1, B, H).
        cs: its cell states, (T+1, B, H).
        gates: its gates, (T, B, 4H).
        Wx: input weights, (D, 4H).
        Wh: recurrent weights, (H, 4H).
        dcT: gradient of the final cell state, (B, H); None for zero.

    Returns:
        Gradients of inputs, initial states, weights and bias.
    """
    das = np.empty_like(gates)
    dh = np.zeros_like(hs[0])
    dc = np.zeros_like(cs[0]) if dcT is None else dcT
    for t in reversed(range(len(xs))):
        i, f, g, o = np.split(gates[t], 4, axis=-1)
        tanh_c = np.tanh(cs[t + 1])
        dh = dh + dhs[t]
        do = dh * tanh_c
        dc = dc + dh * o * (1 - tanh_c**2)
        di = dc * g
        dg = dc * i
        df = dc * cs[t]
        dc = dc * f
        da_i = di * i * (1 - i)
        da_f = df * f * (1 - f)
        da_g = dg * (1 - g**2)
        da_o = do * o * (1 - o)
        das[t] = np.concatenate((da_i, da_f, da_g, da_o), axis=-1)
        dh = das[t] @ Wh.T
    return LstmGradients(
        dxs=das @ Wx.T,
        dh0=dh,
        dc0=dc,
        dWx=weight_gradient(xs, das),
        dWh=weight_gradient(hs[:-1], das),
        db=das.sum(axis=(0, 1)),
    )
