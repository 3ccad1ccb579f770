"""`network_forward` and `network_loss_and_gradients` run all layers together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from treadle.kernels.reference.arrays import Array, Parameters, States, Tokens
from treadle.kernels.reference.gru import GruGradients, gru_backward, gru_forward
from treadle.kernels.reference.inputs import embedding_backward, embedding_forward, one_hot
from treadle.kernels.reference.loss import factored_cross_entropy, softmax_cross_entropy
from treadle.kernels.reference.lstm import LstmGradients, lstm_backward, lstm_forward
from treadle.kernels.reference.output import output_backward, output_forward
from treadle.kernels.reference.rnn import RnnGradients, rnn_backward, rnn_forward


def zero_states(parameters: Parameters, cell: str, B: int) -> States:
    """Returns the states of a network before its first token: zeros.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        B: rows of the batch.

    Returns:
        Hidden states (L, B, H) of zeros, and for the LSTM cell states alike.
    """
    Wy = output_weights(parameters)
    hs = np.zeros((_layers(parameters), B, len(Wy)), Wy.dtype)
    return hs, np.zeros_like(hs) if cell == "lstm" else None


def output_weights(parameters: Parameters) -> Array:
    """Returns the output weights, (H, V); tied ones are the embedding, transposed."""
    return parameters["Wy"] if "Wy" in parameters else parameters["embedding"].T


def _layers(parameters: Parameters) -> int:
    """Returns the number of layers."""
    return sum(name.startswith("Wx") for name in parameters)


def _layer_weights(parameters: Parameters, layer: int) -> Parameters:
    """Returns one layer's weights, under the names of the cells' arguments."""
    names = ("Wx", "Wh", "b", "bh")
    return {name: parameters[f"{name}{layer}"] for name in names if f"{name}{layer}" in parameters}


def _input_forward(parameters: Parameters, tokens: Tokens) -> Array:
    """Turns tokens (T, B) into the first layer's inputs (T, B, D)."""
    if "embedding" in parameters:
        return embedding_forward(tokens, parameters["embedding"])
    return one_hot(tokens, len(parameters["Wx0"]), parameters["Wx0"].dtype)


class LayerTape(NamedTuple):
    """What the backward pass of a layer needs from its forward pass."""

    xs: Array
    """Inputs, (T, B, D)."""
    hs: Array
    """Hidden states, (T+1, B, H)."""
    rest: list[Array]
    """The other results of the cell's forward function."""


def network_forward(
    parameters: Parameters, cell: str, tokens: Tokens, states: States, masks: Array | None = None
) -> tuple[Array, States, list[LayerTape]]:
    """Runs all layers over tokens, each on the hidden states of the layer below.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        tokens: ids, (T, B).
        states: of all layers, before the first token.
        masks: of dropout_masks, (L-1, T, B, H) or (L, T, B, H); None drops nothing.

    Returns:
        logits, (T, B, V); the states after the last token; one tape a layer.
    """
    h0s, c0s = states
    xs = _input_forward(parameters, tokens)
    tapes = []
    final_cs = []
    for layer, h0 in enumerate(h0s):
        weights = _layer_weights(parameters, layer)
        rest: list[Array] = []
        if c0s is not None:  # only the LSTM has cell states
            hs, *rest = lstm_forward(xs, h0, c0s[layer], **weights)
            final_cs.append(rest[0][-1])
        elif cell == "gru":
            hs, *rest = gru_forward(xs, h0, **weights)
        else:
            hs = rnn_forward(xs, h0, **weights)
        tapes.append(LayerTape(xs, hs, rest))
        xs = hs[1:]
        if masks is not None and layer < len(masks):
            xs = xs * masks[layer]
    hs = _output_input(tapes, masks)
    logits = output_forward(hs, output_weights(parameters), parameters["by"])
    final_hs = np.stack([tape.hs[-1] for tape in tapes])
    return logits, (final_hs, np.stack(final_cs) if final_cs else None), tapes


def _output_input(tapes: list[LayerTape], masks: Array | None) -> Array:
    """Returns the argument of output_forward, (T+1, B, H): the top states, some units dropped."""
    hs = tapes[-1].hs
    if masks is None or len(masks) < len(tapes):
        return hs
    dropped: Array = np.concatenate((hs[:1], hs[1:] * masks[-1]))
    return dropped


_BACKWARD: dict[str, Callable[..., RnnGradients | GruGradients | LstmGradients]] = {
    "rnn": rnn_backward,
    "gru": gru_backward,
    "lstm": lstm_backward,
}


def network_loss_and_gradients(
    parameters: Parameters,
    cell: str,
    tokens: Tokens,
    targets: Tokens,
    states: States,
    masks: Array | None = None,
    clusters: Sequence[int] = (),
) -> tuple[float, int, Parameters, States]:
    """Makes one forward and one backward pass over a window of the data.

    loss = loss_sum / count;  gradients = dloss / dparameters

    The gradient stops at the initial states. With the final states as the initial states of the
    next window, this is truncated backpropagation through time (Williams & Peng 1990).

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        tokens: ids, (T, B).
        targets: the token after each, (T, B); a negative one is not counted.
        states: of all layers, before the first token.
        masks: of dropout_masks, (L-1, T, B, H) or (L, T, B, H); None drops nothing.
        clusters: the first token of each cluster of a factored softmax; empty for a full one.

    Returns:
        loss_sum in nats; count, the number of tokens in it; the gradients of the mean loss,
        loss_sum / count, by the names of the parameters; the states after the last token.
    """
    logits, final_states, tapes = network_forward(parameters, cell, tokens, states, masks)
    gradients: Parameters = {}
    output_hs = _output_input(tapes, masks)
    if clusters:
        Wc = parameters["Wc"]
        cluster_logits = output_forward(output_hs, Wc, parameters["bc"])
        loss_sum, count, dlogits, dclusters = factored_cross_entropy(
            logits, cluster_logits, clusters, targets
        )
    else:
        loss_sum, count, dlogits = softmax_cross_entropy(logits, targets)
    dhs, dWy, gradients["by"] = output_backward(dlogits, output_hs, output_weights(parameters))
    if clusters:
        more, gradients["Wc"], gradients["bc"] = output_backward(dclusters, output_hs, Wc)
        dhs = dhs + more
    if masks is not None and len(masks) == len(tapes):
        dhs = dhs * masks[-1]
    for layer, (xs, hs, rest) in reversed(list(enumerate(tapes))):
        Wx = parameters[f"Wx{layer}"]
        Wh = parameters[f"Wh{layer}"]
        layer_gradients = _BACKWARD[cell](dhs, xs, hs, *rest, Wx, Wh)._asdict()
        dhs = layer_gradients["dxs"]  # the inputs of this layer are the states of the layer below
        if masks is not None and layer:
            dhs = dhs * masks[layer - 1]
        for name in _layer_weights(parameters, layer):
            gradients[f"{name}{layer}"] = layer_gradients[f"d{name}"]
    if "embedding" in parameters:
        gradients["embedding"] = embedding_backward(dhs, tokens, parameters["embedding"])
    if "Wy" in parameters:
        gradients["Wy"] = dWy
    else:  # one array that is used twice: the gradients of both uses add up
        gradients["embedding"] += dWy.T
    return loss_sum, count, gradients, final_states
