"""The whole of it in plain NumPy, written for reading: cells, loss, BPTT, optimizers, sampling.

Every compiled kernel has its twin here and is tested against it; the backward passes here are in
turn tested against finite differences and against PyTorch. Nothing is fast on purpose, nothing
checks its input, and every array keeps the dtype it came with: float64 for a gradient check,
float32 for a comparison of speed.

The file reads from top to bottom as one training step does:

    characters as one-hot vectors    one_hot, embedding_forward
    small random weights             initialize
    forward pass                     rnn_forward, lstm_forward, gru_forward, output_forward
    cross-entropy                    softmax_cross_entropy
    dropout above layers             dropout_masks
    backpropagation through time     rnn_backward, lstm_backward, gru_backward, output_backward
    all of these together            network_loss_and_gradients
    clipping                         clip_by_value, clip_by_global_norm
    gradient descent                 sgd_step, adagrad_step, adam_step
    sampling, the character fed back sample, generate

Teaching a network of eight hidden units to spell "hello" takes no more than this:

>>> alphabet = sorted(set("hello"))
>>> tokens = np.array([[alphabet.index(character)] for character in "hello"])  # (T, B) = (5, 1)
>>> rng = np.random.default_rng(seed=0)
>>> parameters = initialize("rnn", V=len(alphabet), E=0, H=8, L=1, rng=rng)
>>> states = zero_states(parameters, "rnn", B=1)
>>> for step in range(100):
...     loss_sum, count, gradients, _ = network_loss_and_gradients(
...         parameters, "rnn", tokens[:-1], tokens[1:], states
...     )
...     clip_by_value(gradients, limit=5.0)
...     for name, gradient in gradients.items():
...         sgd_step(parameters[name], gradient, lr=0.5)
>>> spelled = generate(parameters, "rnn", tokens[0], n=4, temperature=0.0)
>>> "".join(alphabet[token] for token in spelled)
'ello'

Names are those of the whole project. T steps, B rows of a batch, D inputs, H hidden units, V tokens
of the vocabulary, E embedding size, L layers. One step is singular (h), a sequence plural (hs); a
sequence of states has T+1 rows, row 0 the initial state. The gradient of X is dX, in X's shape.
Parameters are a dict: "embedding" (V, E), unless the input is one-hot; then for each layer l from 0
"Wx{l}" (D, G*H), "Wh{l}" (H, G*H), "b{l}" (G*H,) and for the GRU "bh{l}" (H,), with G gates: one
for the RNN, r z n for the GRU, i f g o for the LSTM; then "Wy" (H, V), unless the weights are tied,
and "by" (V,). Tied weights (Press & Wolf 2017) use the embedding twice: Wy = embedding.T, E = H.

Papers: Elman (1990), Finding structure in time; Werbos (1990), Backpropagation through time; those
of the other cells, optimizers and sampling rules stand with their functions. `docs/rnn.md`,
`docs/lstm.md` and `docs/gru.md` derive the backward passes.
"""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers of either width."""

Tokens: TypeAlias = NDArray[np.integer[Any]]
"""Token ids; as targets, a negative one means: not counted."""

Parameters: TypeAlias = dict[str, Array]
"""Weights, or their gradients, by name."""

States: TypeAlias = tuple[Array, Array | None]
"""Hidden states (L, B, H) of all layers, and of the LSTM the cell states (L, B, H)."""

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Columns of Wx, Wh and b, in units of H, by the name of the cell."""


# ---------------------------------------------------------------- the input: tokens to vectors


def one_hot(tokens: Tokens, V: int, dtype: DTypeLike = np.float64) -> Array:
    """Writes each token as a row of V zeros with a one at its id.

    Args:
        tokens: ids in [0, V), any shape.
        V: size of the vocabulary.
        dtype: of the result.

    Returns:
        Vectors, tokens.shape + (V,).
    """
    vectors: Array = np.zeros((*tokens.shape, V), dtype)
    np.put_along_axis(vectors, tokens[..., np.newaxis], 1, axis=-1)
    return vectors


def embedding_forward(tokens: Tokens, embedding: Array) -> Array:
    """Looks up each token's row: the same as one_hot(tokens) @ embedding.

    Args:
        tokens: ids, (T, B).
        embedding: a vector a token, (V, E).

    Returns:
        xs, (T, B, E).
    """
    xs: Array = embedding[tokens]
    return xs


def embedding_backward(dxs: Array, tokens: Tokens, embedding: Array) -> Array:
    """Adds the gradient of every looked-up row to the row it came from.

    Args:
        dxs: gradient of what embedding_forward returned, (T, B, E).
        tokens: ids, (T, B).
        embedding: (V, E); only its shape and dtype matter.

    Returns:
        Gradient of the embedding, (V, E).
    """
    dembedding = np.zeros_like(embedding)
    np.add.at(dembedding, tokens, dxs)  # "+=" would count a token that occurs twice only once
    return dembedding


def initialize(
    cell: str,
    V: int,
    E: int,
    H: int,
    L: int,
    rng: np.random.Generator,
    dtype: DTypeLike = np.float64,
    tied: bool = False,
) -> Parameters:
    """Draws small random weights from the distributions that PyTorch's modules start with.

    Embedding: normal(0, 1). All else: uniform(-1/sqrt(H), 1/sqrt(H)), so that a unit's sum over H
    inputs neither vanishes nor saturates.

    Args:
        cell: "rnn", "gru" or "lstm".
        V: size of the vocabulary.
        E: size of the embedding, or 0 for one-hot input.
        H: hidden units of every layer.
        L: layers.
        rng: where the numbers come from.
        dtype: of the weights.
        tied: leaves out "Wy": the output weights are the embedding's, and E = H.

    Returns:
        Parameters by name, as the module's docstring lists them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(L):
        D = H if layer else (E or V)
        shapes[f"Wx{layer}"] = (D, GATES[cell] * H)
        shapes[f"Wh{layer}"] = (H, GATES[cell] * H)
        shapes[f"b{layer}"] = (GATES[cell] * H,)
        if cell == "gru":
            shapes[f"bh{layer}"] = (H,)
    shapes |= {"by": (V,)} if tied else {"Wy": (H, V), "by": (V,)}

    parameters: Parameters = {"embedding": rng.standard_normal((V, E)).astype(dtype)} if E else {}
    for name, shape in shapes.items():
        parameters[name] = rng.uniform(-(H**-0.5), H**-0.5, shape).astype(dtype)
    return parameters


# ---------------------------------------------------------------- shared by the cells


def sigmoid(x: Array) -> Array:
    """Squashes to (0, 1): 1 / (1 + exp(-x)), without overflow for any x.

    Its derivative is sigmoid(x) * (1 - sigmoid(x)): backward passes need only its result.

    Args:
        x: any shape.

    Returns:
        Same shape and dtype.
    """
    small = np.exp(-np.abs(x))  # in (0, 1], whichever sign x has
    squashed: Array = np.where(x >= 0, 1, small) / (1 + small)
    return squashed


def _sequence_from(initial: Array, T: int) -> Array:
    """Makes room for T states (B, H) after the initial one: (T+1, B, H), row 0 filled."""
    states = np.empty((T + 1, *initial.shape), initial.dtype)
    states[0] = initial
    return states


def _weight_gradient(inputs: Array, das: Array) -> Array:
    """Sums inputs[t, row] (outer product) das[t, row] over steps and rows.

    a = x @ W gives dW = x.T @ da at every step; the steps share W, so their gradients add up. All
    steps and rows are laid one below the other, which makes it a single matrix product.
    """
    dW: Array = inputs.reshape(-1, inputs.shape[-1]).T @ das.reshape(-1, das.shape[-1])
    return dW


# ---------------------------------------------------------------- the vanilla RNN


def rnn_forward(xs: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> Array:
    """Runs the vanilla (Elman 1990) network over a sequence.

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
    hs = _sequence_from(h0, len(xs))
    axs = xs @ Wx + b  # needs no state, so all steps at once
    for t in range(len(xs)):
        hs[t + 1] = np.tanh(axs[t] + hs[t] @ Wh)
    return hs


class RnnGradients(NamedTuple):
    """What rnn_backward returns, each in the shape of what it is the gradient of."""

    dxs: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array


def rnn_backward(dhs: Array, xs: Array, hs: Array, Wx: Array, Wh: Array) -> RnnGradients:
    """Backpropagates through time (Werbos 1990), from the last step to the first.

    dh, running, holds what all later steps ask of h' and takes up what this step's output asks:

    dh += dhs[t]
    da  = dh * (1 - h'^2)                  for tanh' = 1 - tanh^2
    dh  = da Wh.T                          for the step before
    dx  = da Wx.T,  dWx += x.T da,  dWh += h.T da,  db += da

    Args:
        dhs: gradient from above of hs[1:], (T, B, H). A gradient of the final state, if there is
            one, is added to dhs[-1].
        xs: inputs, (T, B, D).
        hs: what rnn_forward returned, (T+1, B, H).
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
        dWx=_weight_gradient(xs, das),
        dWh=_weight_gradient(hs[:-1], das),
        db=das.sum(axis=(0, 1)),
    )


# ---------------------------------------------------------------- the LSTM


def lstm_forward(
    xs: Array, h0: Array, c0: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Array, Array]:
    """Runs the LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000) over a sequence.

    a  = x Wx + h Wh + b                   four blocks of H columns: i f g o
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o),  g = tanh(a_g)
    c' = f c + i g                         what is kept and what is written
    h' = o tanh(c')                        what is shown

    Args:
        xs: inputs, (T, B, D).
        h0: initial hidden state, (B, H).
        c0: initial cell state, (B, H).
        Wx: input weights, (D, 4H).
        Wh: recurrent weights, (H, 4H).
        b: bias, (4H,).

    Returns:
        hs, (T+1, B, H), cs, (T+1, B, H), and the gates i f g o, (T, B, 4H), for the way back.
    """
    hs = _sequence_from(h0, len(xs))
    cs = _sequence_from(c0, len(xs))
    gates = xs @ Wx + b  # first the pre-activations, overwritten step by step
    for t in range(len(xs)):
        i, f, g, o = np.split(gates[t] + hs[t] @ Wh, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        cs[t + 1] = f * cs[t] + i * g
        hs[t + 1] = o * np.tanh(cs[t + 1])
        gates[t] = np.concatenate((i, f, g, o), axis=-1)
    return hs, cs, gates


class LstmGradients(NamedTuple):
    """What lstm_backward returns, each in the shape of what it is the gradient of."""

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

    Two gradients run: dh as in the RNN, and dc, which passes from step to step through the forget
    gate alone. In each step, forward's lines from the last to the first:

    dh += dhs[t]
    do  = dh * tanh(c'),   dc += dh * o * (1 - tanh(c')^2)       h' = o tanh(c')
    di  = dc * g,  dg = dc * i,  df = dc * c,  dc = dc * f       c' = f c + i g
    da_i = di i (1 - i),  da_f = df f (1 - f),  da_g = dg (1 - g^2),  da_o = do o (1 - o)
    dh  = da Wh.T,  dx = da Wx.T,  dWx += x.T da,  dWh += h.T da,  db += da

    Args:
        dhs: gradient from above of hs[1:], (T, B, H). A gradient of the final hidden state, if
            there is one, is added to dhs[-1].
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
        shown = np.tanh(cs[t + 1])
        dh = dh + dhs[t]
        do = dh * shown
        dc = dc + dh * o * (1 - shown**2)
        di, dg, df = dc * g, dc * i, dc * cs[t]
        dc = dc * f
        das[t] = np.concatenate(
            (di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)), axis=-1
        )
        dh = das[t] @ Wh.T
    return LstmGradients(
        dxs=das @ Wx.T,
        dh0=dh,
        dc0=dc,
        dWx=_weight_gradient(xs, das),
        dWh=_weight_gradient(hs[:-1], das),
        db=das.sum(axis=(0, 1)),
    )


# ---------------------------------------------------------------- the GRU


def gru_forward(
    xs: Array, h0: Array, Wx: Array, Wh: Array, b: Array, bh: Array
) -> tuple[Array, Array, Array]:
    """Runs the GRU (Cho et al. 2014) over a sequence, in PyTorch's form: reset after the product.

    r  = sigmoid(x Wxr + h Whr + b_r)      how much of the past the candidate sees
    z  = sigmoid(x Wxz + h Whz + b_z)      how much of the past stays
    n  = tanh(x Wxn + b_n + r (h Whn + bh))
    h' = (1 - z) n + z h

    Args:
        xs: inputs, (T, B, D).
        h0: initial hidden state, (B, H).
        Wx: input weights, (D, 3H), columns r z n.
        Wh: recurrent weights, (H, 3H), columns r z n.
        b: bias, (3H,).
        bh: the bias of n that r multiplies, (H,).

    Returns:
        hs, (T+1, B, H), and for the way back the gates r z n, (T, B, 3H), and hidden_n =
        h Whn + bh, (T, B, H).
    """
    hs = _sequence_from(h0, len(xs))
    hidden_ns = np.empty_like(hs[1:])
    gates = xs @ Wx + b  # first the pre-activations, overwritten step by step
    for t in range(len(xs)):
        ax_r, ax_z, ax_n = np.split(gates[t], 3, axis=-1)
        ah_r, ah_z, ah_n = np.split(hs[t] @ Wh, 3, axis=-1)
        hidden_ns[t] = ah_n + bh
        r, z = sigmoid(ax_r + ah_r), sigmoid(ax_z + ah_z)
        n = np.tanh(ax_n + r * hidden_ns[t])
        hs[t + 1] = (1 - z) * n + z * hs[t]
        gates[t] = np.concatenate((r, z, n), axis=-1)
    return hs, gates, hidden_ns


class GruGradients(NamedTuple):
    """What gru_backward returns, each in the shape of what it is the gradient of."""

    dxs: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array
    dbh: Array


def gru_backward(
    dhs: Array, xs: Array, hs: Array, gates: Array, hidden_ns: Array, Wx: Array, Wh: Array
) -> GruGradients:
    """Backpropagates through time.

    The input and the state reach n by different ways, so the gradient splits in two: da, of what
    x brings to r z n, and dah, of what h brings. They differ in the last third only.

    dh += dhs[t]
    dz  = dh * (h - n),  dn = dh * (1 - z),  dh = dh * z         h' = (1 - z) n + z h
    da_n = dn (1 - n^2),  dr = da_n * hidden_n,  dhidden_n = da_n * r
    da_r = dr r (1 - r),  da_z = dz z (1 - z)
    da  = (da_r, da_z, da_n),  dah = (da_r, da_z, dhidden_n)
    dh += dah Wh.T,  dx = da Wx.T,  dWx += x.T da,  dWh += h.T dah,  db += da,  dbh += dhidden_n

    Args:
        dhs: gradient from above of hs[1:], (T, B, H). A gradient of the final state, if there is
            one, is added to dhs[-1].
        xs: inputs, (T, B, D).
        hs: hidden states of gru_forward, (T+1, B, H).
        gates: its gates, (T, B, 3H).
        hidden_ns: its last result, (T, B, H).
        Wx: input weights, (D, 3H).
        Wh: recurrent weights, (H, 3H).

    Returns:
        Gradients of inputs, initial state, weights and biases.
    """
    H = hs.shape[-1]
    das, dahs = np.empty_like(gates), np.empty_like(gates)
    dh = np.zeros_like(hs[0])
    for t in reversed(range(len(xs))):
        r, z, n = np.split(gates[t], 3, axis=-1)
        dh = dh + dhs[t]
        dz, dn, dh = dh * (hs[t] - n), dh * (1 - z), dh * z
        da_n = dn * (1 - n**2)
        dr, dhidden_n = da_n * hidden_ns[t], da_n * r
        da_r, da_z = dr * r * (1 - r), dz * z * (1 - z)
        das[t] = np.concatenate((da_r, da_z, da_n), axis=-1)
        dahs[t] = np.concatenate((da_r, da_z, dhidden_n), axis=-1)
        dh = dh + dahs[t] @ Wh.T
    return GruGradients(
        dxs=das @ Wx.T,
        dh0=dh,
        dWx=_weight_gradient(xs, das),
        dWh=_weight_gradient(hs[:-1], dahs),
        db=das.sum(axis=(0, 1)),
        dbh=dahs[..., 2 * H :].sum(axis=(0, 1)),
    )


# ---------------------------------------------------------------- the output and the loss


def output_forward(hs: Array, Wy: Array, by: Array) -> Array:
    """Scores every token of the vocabulary as the next one: logits = h' Wy + by.

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
    """What output_backward returns, each in the shape of what it is the gradient of."""

    dhs: Array
    dWy: Array
    dby: Array


def output_backward(dlogits: Array, hs: Array, Wy: Array) -> OutputGradients:
    """Passes the gradient of the logits on to the last layer.

    Args:
        dlogits: gradient of the logits, (T, B, V).
        hs: what output_forward was given, (T+1, B, H).
        Wy: output weights, (H, V).

    Returns:
        dhs, the gradient of hs[1:], (T, B, H), and the gradients of weights and bias.
    """
    return OutputGradients(
        dhs=dlogits @ Wy.T,
        dWy=_weight_gradient(hs[1:], dlogits),
        dby=dlogits.sum(axis=(0, 1)),
    )


def softmax_cross_entropy(logits: Array, targets: Tokens) -> tuple[float, int, Array]:
    """Measures how surprising the targets are, in nats, and where the logits should have gone.

    p = softmax(logits) = exp(logits) / sum(exp(logits))
    loss_sum = sum of -log p[target] over the counted tokens
    dlogits = (p - one_hot(target)) / count, the gradient of the mean, loss_sum / count

    Args:
        logits: scores, (T, B, V).
        targets: the tokens that came, (T, B). A negative one is not counted: it adds nothing to
            the loss and gets a gradient of zero.

    Returns:
        loss_sum in nats, a sum, so that batches can be added up; count, the number of tokens in
        it; dlogits, (T, B, V), the gradient of the MEAN over these tokens (all zero if there are
        none).
    """
    counted = targets >= 0
    count = int(counted.sum())
    shifted = logits - logits.max(axis=-1, keepdims=True)  # changes no p and keeps exp in range
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    ids = np.where(counted, targets, 0)
    chosen = np.take_along_axis(log_p, ids[..., np.newaxis], axis=-1)[..., 0]
    loss_sum = -float(chosen[counted].sum(dtype=np.float64))
    dlogits: Array = np.exp(log_p) - one_hot(ids, logits.shape[-1], logits.dtype)
    dlogits[~counted] = 0
    dlogits /= max(count, 1)
    return loss_sum, count, dlogits


# ---------------------------------------------------------------- the network: layers stacked


def zero_states(parameters: Parameters, cell: str, B: int) -> States:
    """Makes the states of a network that has seen nothing.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        B: rows of the batch.

    Returns:
        Hidden states (L, B, H) of zeros, and for the LSTM cell states alike.
    """
    Wy = _output_weights(parameters)
    hs = np.zeros((_layers(parameters), B, len(Wy)), Wy.dtype)
    return hs, np.zeros_like(hs) if cell == "lstm" else None


def _output_weights(parameters: Parameters) -> Array:
    """Takes the output weights, (H, V): tied ones are the embedding, transposed."""
    return parameters["Wy"] if "Wy" in parameters else parameters["embedding"].T


def _layers(parameters: Parameters) -> int:
    """Counts the layers."""
    return sum(name.startswith("Wx") for name in parameters)


def _layer_weights(parameters: Parameters, layer: int) -> Parameters:
    """Takes one layer's weights out of the network's, under the names of the cells' arguments."""
    names = ("Wx", "Wh", "b", "bh")
    return {name: parameters[f"{name}{layer}"] for name in names if f"{name}{layer}" in parameters}


def _input_forward(parameters: Parameters, tokens: Tokens) -> Array:
    """Turns tokens (T, B) to the first layer's inputs (T, B, D)."""
    if "embedding" in parameters:
        return embedding_forward(tokens, parameters["embedding"])
    return one_hot(tokens, len(parameters["Wx0"]), parameters["Wx0"].dtype)


def dropout_masks(
    p: float,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Draws what layers multiply their states with before they hand them on.

    Srivastava et al. (2014): while it learns, a network should not rely on any single unit. A unit
    is dropped with probability p, the others are scaled so that what is expected of each stays as
    it is. As in PyTorch's nn.LSTM and in Zaremba et al. (2014), the way from step to step, inside a
    layer, is left alone. When nothing is learned there are no masks.

    Args:
        p: share of the units to drop, in [0, 1).
        shape: (L-1, T, B, H), or (L, T, B, H) for what the last layer hands to the output, too.
        rng: where chance comes from.
        dtype: of the result.

    Returns:
        Masks of that shape: 0 where a unit is dropped, 1 / (1 - p) where not.
    """
    kept = rng.random(shape) >= p
    masks: Array = kept.astype(dtype) / (1 - p)
    return masks


class LayerTape(NamedTuple):
    """What one layer's backward pass needs of its forward pass."""

    xs: Array
    """Inputs, (T, B, D)."""
    hs: Array
    """Hidden states, (T+1, B, H)."""
    rest: list[Array]
    """What else the cell's forward function returned."""


def network_forward(
    parameters: Parameters, cell: str, tokens: Tokens, states: States, masks: Array | None = None
) -> tuple[Array, States, list[LayerTape]]:
    """Runs all layers over tokens, each on the hidden states of the one below.

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
    tapes, final_cs = [], []
    for layer, h0 in enumerate(h0s):
        weights = _layer_weights(parameters, layer)
        rest: list[Array] = []
        if c0s is not None:  # the LSTM alone has cell states
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
    read, Wy = _read_by_output(tapes, masks), _output_weights(parameters)
    logits = output_forward(read, Wy, parameters["by"])
    final_hs = np.stack([tape.hs[-1] for tape in tapes])
    return logits, (final_hs, np.stack(final_cs) if final_cs else None), tapes


def _read_by_output(tapes: list[LayerTape], masks: Array | None) -> Array:
    """Returns what output_forward is given, (T+1, B, H): row 0, which it does not read, is kept."""
    hs = tapes[-1].hs
    if masks is None or len(masks) < len(tapes):
        return hs
    read: Array = np.concatenate((hs[:1], hs[1:] * masks[-1]))
    return read


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
) -> tuple[float, int, Parameters, States]:
    """Makes one forward and one backward pass over a window of the data.

    The gradient ends at the initial states: given the final states as the next window's initial
    ones, this is truncated backpropagation through time (Williams & Peng 1990).

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        tokens: ids, (T, B).
        targets: the token after each, (T, B); a negative one is not counted.
        states: of all layers, before the first token.
        masks: of dropout_masks, (L-1, T, B, H) or (L, T, B, H); None drops nothing.

    Returns:
        loss_sum in nats; count, the number of tokens in it; the gradients of the mean loss,
        loss_sum / count, by the names of the parameters; the states after the last token.
    """
    logits, final_states, tapes = network_forward(parameters, cell, tokens, states, masks)
    loss_sum, count, dlogits = softmax_cross_entropy(logits, targets)

    gradients: Parameters = {}
    read, Wy = _read_by_output(tapes, masks), _output_weights(parameters)
    dhs, dWy, gradients["by"] = output_backward(dlogits, read, Wy)
    if masks is not None and len(masks) == len(tapes):
        dhs = dhs * masks[-1]
    for layer, (xs, hs, rest) in reversed(list(enumerate(tapes))):
        Wx, Wh = parameters[f"Wx{layer}"], parameters[f"Wh{layer}"]
        layer_gradients = _BACKWARD[cell](dhs, xs, hs, *rest, Wx, Wh)._asdict()
        dhs = layer_gradients["dxs"]  # this layer's inputs are the hidden states of that below
        if masks is not None and layer:
            dhs = dhs * masks[layer - 1]
        for name in _layer_weights(parameters, layer):
            gradients[f"{name}{layer}"] = layer_gradients[f"d{name}"]
    if "embedding" in parameters:
        gradients["embedding"] = embedding_backward(dhs, tokens, parameters["embedding"])
    if "Wy" in parameters:
        gradients["Wy"] = dWy
    else:  # one array, used twice: the gradients of both uses add up
        gradients["embedding"] += dWy.T
    return loss_sum, count, gradients, final_states


# ---------------------------------------------------------------- clipping and descent


def clip_by_value(gradients: Parameters, limit: float) -> None:
    """Holds every single element within [-limit, limit], in place.

    Args:
        gradients: by name; changed.
        limit: above 0.
    """
    for gradient in gradients.values():
        np.clip(gradient, -limit, limit, out=gradient)


def clip_by_global_norm(gradients: Parameters, limit: float) -> float:
    """Shortens all gradients together to length `limit`, in place, if they are longer.

    Pascanu, Mikolov & Bengio (2013), algorithm 1. The direction stays what it was.

    Args:
        gradients: by name; changed if their norm exceeds the limit.
        limit: above 0.

    Returns:
        The norm before clipping: the square root of the sum of all elements' squares.
    """
    squares = [np.sum(np.square(gradient, dtype=np.float64)) for gradient in gradients.values()]
    norm = float(np.sqrt(sum(squares)))
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def sgd_step(w: Array, g: Array, lr: float) -> None:
    """Steps down the gradient, in place: w -= lr g.

    Args:
        w: weights; changed.
        g: their gradient.
        lr: learning rate.
    """
    w -= lr * g


def adagrad_step(
    w: Array, g: Array, G: Array, lr: float, eps: float = 1e-10, weight_decay: float = 0.0
) -> None:
    """Steps less far where gradients have been large so far (Duchi et al. 2011), in place.

    With weight decay it is PyTorch's Adagrad:

    g' = g + weight_decay w
    G += g'^2
    w -= lr g' / (sqrt(G) + eps)

    Args:
        w: weights; changed.
        g: their gradient.
        G: sum of the squares of all gradients so far, zeros at the start; changed.
        lr: learning rate.
        eps: keeps the division defined while G is zero.
        weight_decay: share of w added to its gradient.
    """
    g = g + weight_decay * w
    G += g**2
    w -= lr * g / (np.sqrt(G) + eps)


def adam_step(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Steps by running means of gradient and square (Kingma & Ba 2015), in place.

    With weight decay it is AdamW (Loshchilov & Hutter 2019), in PyTorch's form:

    w *= 1 - lr weight_decay
    m  = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    w -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    The two powers correct for m and v having started at zero.

    Args:
        w: weights; changed.
        g: their gradient.
        m: running mean of gradients, zeros at the start; changed.
        v: running mean of their squares, zeros at the start; changed.
        step: number of this step, the first is 1.
        lr: learning rate.
        beta1: share of m kept in a step.
        beta2: share of v kept in a step.
        eps: keeps the division defined while v is zero.
        weight_decay: share of w given up in a step of learning rate 1.
    """
    w *= 1 - lr * weight_decay
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g**2
    denominator = np.sqrt(v) / (1 - beta2**step) ** 0.5 + eps
    w -= lr / (1 - beta1**step) * m / denominator


# ---------------------------------------------------------------- sampling and generating


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    u: float = 0.0,
    typical_p: float = 1.0,
) -> int:
    """Draws a token from softmax(logits / temperature), cut to its likeliest part.

    First the top_k likeliest tokens are kept (Fan et al. 2018), equals by lower id; then of these
    the fewest likeliest whose probabilities, renormalized among what top_k kept, reach top_p
    (Holtzman et al. 2020); then of these the ones at least min_p times as likely as the likeliest
    (Nguyen et al. 2024); then of these, renormalized, the fewest that reach typical_p, taken in the
    order of how near -log p is to the entropy, equals by lower id (Meister et al. 2023). Then the
    kept tokens are walked through in ascending id, adding up their probabilities: the first where
    the sum exceeds u times their total is drawn.

    Args:
        logits: scores of the vocabulary, (V,).
        temperature: below 1 sharpens, above 1 flattens; 0 takes the likeliest token, of equals
            that of lowest id.
        top_k: how many tokens to keep; 0 keeps all.
        top_p: how much probability to keep, in (0, 1]; 1 keeps all.
        min_p: least probability to keep, in [0, 1], in units of the likeliest token's.
        u: a uniform random number in [0, 1); all the chance there is.
        typical_p: how much probability to keep of typical tokens, in (0, 1]; 1 keeps all.

    Returns:
        The token's id.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    # The maximum is taken off before the division, so that no temperature leads to inf - inf.
    with np.errstate(over="ignore", under="ignore"):
        weights: Array = np.exp((logits - logits.max()) / temperature)
    kept = np.argsort(-weights, kind="stable")[: top_k or None]  # likeliest first
    if top_p < 1:
        reached = np.cumsum(weights[kept])
        kept = kept[: 1 + int(np.argmax(reached >= top_p * reached[-1]))]
    kept = kept[weights[kept] >= min_p * weights[kept[0]]]
    kept = np.sort(kept)
    if typical_p < 1:
        p = weights[kept] / weights[kept].sum()
        surprisal = -np.log(np.maximum(p, np.finfo(p.dtype).tiny))
        order = np.argsort(np.abs(surprisal - (p * surprisal).sum()), kind="stable")
        reached = np.cumsum(p[order])
        kept = np.sort(kept[order[: 1 + int(np.argmax(reached >= typical_p * reached[-1]))]])
    running = np.cumsum(weights[kept])
    beyond = np.flatnonzero(running > u * running[-1])
    # u times the total can round up to the total; then the last kept token is meant.
    return int(kept[beyond[0]] if beyond.size else kept[-1])


def generate(
    parameters: Parameters,
    cell: str,
    prompt_tokens: Sequence[int] | Tokens,
    n: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    rng: np.random.Generator | None = None,
    states: States | None = None,
) -> list[int]:
    """Reads a prompt, then makes n tokens, feeding each back as the next input.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        prompt_tokens: at least one id.
        n: how many tokens to make.
        temperature: see sample.
        top_k: see sample.
        top_p: see sample.
        min_p: see sample.
        rng: where chance comes from; None for a fresh one. At temperature 0 there is none.
        states: what the network has in mind before the prompt, with B = 1; None for nothing.

    Returns:
        The n new token ids.
    """
    rng = rng or np.random.default_rng()
    states = states or zero_states(parameters, cell, B=1)
    tokens = np.asarray(prompt_tokens)
    made: list[int] = []
    while len(made) < n:
        logits, states, _ = network_forward(parameters, cell, tokens[:, np.newaxis], states)
        made.append(sample(logits[-1, 0], temperature, top_k, top_p, min_p, rng.random()))
        tokens = np.array(made[-1:])
    return made
