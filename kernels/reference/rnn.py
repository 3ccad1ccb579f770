"""`rnn_forward` and `rnn_backward` are the vanilla RNN."""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from typing import NamedTuple

import numpy as np

from treadle.kernels.reference.arrays import Array
from treadle.kernels.reference.steps import sequence_from, weight_gradient


def rnn_forward(xs: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Array:
    """Runs the vanilla RNN (Elman 1990, Finding structure in time) over a sequence.

    h' = tanh(x Wx + h Wh + b)

    Args:
        xs: inputs, (T, B, D).
        h0: initial hidden state, (B, H).
        Wx: input weights, (D, H).
        Wh: recurrent weights, (H, H).
        b: bias, (H,).

    Returns:
        hs, (T+1, B, H): the initial state and that after each step.
    """
    hs = sequence_from(h0, len(xs))
    axs = xs @ Wx + b  # needs no state, so it is computed for all steps at once
    for t in range(len(xs)):
        hs[t + 1] = np.tanh(axs[t] + hs[t] @ Wh)
    return hs


class RnnGradients(NamedTuple):
    """The result of rnn_backward; dX has the shape of X."""

    dxs: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array


def rnn_backward(dhs: Array, xs: Array, hs: Array, Wx: Array, Wh: Array) -> RnnGradients:
    """Backpropagates through time (Werbos 1990), from the last step to the first.

    dh runs from step to step. At step t it holds the gradient of h' from all later steps, and the
    gradient from the layer above is added:

    dh += dhs[t]
    da  = dh (1 - h'^2)                    since tanh' = 1 - tanh^2
    dh  = da Wh.T                          for the previous step
    dx  = da Wx.T,  dWx += x.T da,  dWh += h.T da,  db += da

    Args:
        dhs: gradient from above of hs[1:], (T, B, H); a gradient of the final state is added to
            dhs[-1].
        xs: inputs, (T, B, D).
        hs: the result of rnn_forward, (T+1, B, H).
        Wx: input weights, (D, H).
        Wh: recurrent weights, (H, H).

    Returns:
        Gradients of inputs, initial state, weights and bias.
    """
    das = np.empty_like(dhs)
    dh = np.zeros_like(hs[0])
    for t in reversed(range(len(xs))):
        dh = dh + dhs[t]
        das[t] = dh * (1 - hs[t + 1] ** 2)
        dh = das[t] @ Wh.T
    return RnnGradients(
        dxs=das @ Wx.T,
        dh0=dh,
        dWx=weight_gradient(xs, das),
        dWh=weight_gradient(hs[:-1], das),
        db=das.sum(axis=(0, 1)),
    )
