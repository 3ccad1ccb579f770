"""`output_forward` and `output_backward` are the output layer."""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from typing import NamedTuple

from treadle.kernels.reference.arrays import Array
from treadle.kernels.reference.steps import weight_gradient


def output_forward(hs: Array, Wy: Array, by: Array) -> Array:
    """Scores every token of the vocabulary as the next one.

    logits = h' Wy + by

    Args:
        hs: hidden states of the last layer, (T+1, B, H); row 0, the initial state, is left out.
        Wy: output weights, (H, V).
        by: output bias, (V,).

    Returns:
        logits, (T, B, V).
    """
    logits: Array = hs[1:] @ Wy + by
    return logits


class OutputGradients(NamedTuple):
    """The result of output_backward; dX has the shape of X."""

    dhs: Array
    dWy: Array
    dby: Array


def output_backward(dlogits: Array, hs: Array, Wy: Array) -> OutputGradients:
    """Takes the gradient of the logits back to the last layer.

    dh' = dlogits Wy.T,  dWy = h'.T dlogits,  dby = sum of dlogits

    Args:
        dlogits: gradient of the logits, (T, B, V).
        hs: the argument of output_forward, (T+1, B, H).
        Wy: output weights, (H, V).

    Returns:
        dhs, the gradient of hs[1:], (T, B, H), and the gradients of weights and bias.
    """
    return OutputGradients(
        dhs=dlogits @ Wy.T,
        dWy=weight_gradient(hs[1:], dlogits),
        dby=dlogits.sum(axis=(0, 1)),
    )
