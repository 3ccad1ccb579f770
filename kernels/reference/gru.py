"""`gru_forward` and `gru_backward` are the GRU."""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from typing import NamedTuple

import numpy as np

from treadle.kernels.reference.arrays import Array
from treadle.kernels.reference.steps import sequence_from, sigmoid, weight_gradient


def gru_forward(
    xs: Array, h0: Array, Wx: Array, Wh: Array, b: Array, bh: Array
) -> tuple[Array, Array, Array]:
    """Runs the GRU (Cho et al. 2014) over a sequence, in PyTorch's form: reset after the product.

    r  = sigmoid(x Wx_r + h Wh_r + b_r)    reset gate: the share of the past in the candidate
    z  = sigmoid(x Wx_z + h Wh_z + b_z)    update gate: the share of the past that stays
    q  = h Wh_n + bh
    n  = tanh(x Wx_n + b_n + r q)          candidate
    h' = (1 - z) n + z h

    Args:
        xs: inputs, (T, B, D).
        h0: initial hidden state, (B, H).
        Wx: input weights, (D, 3H), columns r z n.
        Wh: recurrent weights, (H, 3H), columns r z n.
        b: bias, (3H,).
        bh: the bias of n that r multiplies, (H,).

    Returns:
        hs, (T+1, B, H), and for the backward pass the gates r z n, (T, B, 3H), and qs, (T, B, H).
    """
    hs = sequence_from(h0, len(xs))
    qs = np.empty_like(hs[1:])
    axs = xs @ Wx + b
    gates = np.empty_like(axs)
    for t in range(len(xs)):
        ax_r, ax_z, ax_n = np.split(axs[t], 3, axis=-1)
        ah_r, ah_z, ah_n = np.split(hs[t] @ Wh, 3, axis=-1)
        r = sigmoid(ax_r + ah_r)
        z = sigmoid(ax_z + ah_z)
        qs[t] = ah_n + bh
        n = np.tanh(ax_n + r * qs[t])
        hs[t + 1] = (1 - z) * n + z * hs[t]
        gates[t] = np.concatenate((r, z, n), axis=-1)
    return hs, gates, qs


class GruGradients(NamedTuple):
    """The result of gru_backward; dX has the shape of X."""

    dxs: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array
    dbh: Array


def gru_backward(
    dhs: Array, xs: Array, hs: Array, gates: Array, qs: Array, Wx: Array, Wh: Array
) -> GruGradients:
    """Backpropagates through time (Werbos 1990).

    Input and state enter n in different ways, so there are two gradients of pre-activations: da, of
    the input's share x Wx + b, and dah, of the state's share h Wh. They differ in the last third
    only.

    dh += dhs[t]
    dz  = dh (h - n),  dn = dh (1 - z),  dh = dh z               of h' = (1 - z) n + z h
    da_n = dn (1 - n^2),  dr = da_n q,  dq = da_n r              of n = tanh(.. + r q)
    da_r = dr r (1 - r),  da_z = dz z (1 - z)
    da  = (da_r, da_z, da_n),  dah = (da_r, da_z, dq)
    dh += dah Wh.T,  dx = da Wx.T,  dWx += x.T da,  dWh += h.T dah,  db += da,  dbh += dq

    Args:
        dhs: gradient from above of hs[1:], (T, B, H); a gradient of the final state is added to
            dhs[-1].
        xs: inputs, (T, B, D).
        hs: hidden states of gru_forward, (T+1, B, H).
        gates: its gates, (T, B, 3H).
        qs: its last result, (T, B, H).
        Wx: input weights, (D, 3H).
        Wh: recurrent weights, (H, 3H).

    Returns:
        Gradients of inputs, initial state, weights and biases.
    """
    H = hs.shape[-1]
    das = np.empty_like(gates)
    dahs = np.empty_like(gates)
    dh = np.zeros_like(hs[0])
    for t in reversed(range(len(xs))):
        r, z, n = np.split(gates[t], 3, axis=-1)
        dh = dh + dhs[t]
        dz = dh * (hs[t] - n)
        dn = dh * (1 - z)
        dh = dh * z
        da_n = dn * (1 - n**2)
        dr = da_n * qs[t]
        dq = da_n * r
        da_r = dr * r * (1 - r)
        da_z = dz * z * (1 - z)
        das[t] = np.concatenate((da_r, da_z, da_n), axis=-1)
        dahs[t] = np.concatenate((da_r, da_z, dq), axis=-1)
        dh = dh + dahs[t] @ Wh.T
    return GruGradients(
        dxs=das @ Wx.T,
        dh0=dh,
        dWx=weight_gradient(xs, das),
        dWh=weight_gradient(hs[:-1], dahs),
        db=das.sum(axis=(0, 1)),
        dbh=dahs[..., 2 * H :].sum(axis=(0, 1)),
    )
