"""`network_loss_and_gradients` and its parts: recurrent networks in plain NumPy, made to be read.

This file is the naive twin of the compiled kernels. Every kernel is tested against its function
here; the backward passes here are tested against finite differences and against PyTorch. No
function is optimized or checks its input. Every array keeps its dtype: float64 for a gradient
check, float32 for a comparison of speed.

The file follows a training step from top to bottom:

    tokens to vectors                one_hot, embedding_forward
    small random weights             initialize
    the cells, forward and backward  rnn_forward, rnn_backward, lstm_..., gru_...
    the output layer                 output_forward, output_backward
    the loss                         softmax_cross_entropy, factored_cross_entropy
    dropout above layers             dropout_masks
    all layers together              network_forward, network_loss_and_gradients
    the same with int8 weights       Int8Matrix, with_int8_weights
    clipping                         clip_by_value, clip_by_global_norm
    gradient descent                 sgd_step, adagrad_step, adam_step
    mean of the weights              move_towards
    sampling, generation             sample, generate

This trains a network of eight hidden units to spell "hello":

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

The names are those of the whole project:

    T B D H      steps, rows of the batch, inputs, hidden units
    V E L        tokens of the vocabulary, size of the embedding, layers
    x, xs        inputs of one step (B, D), of a sequence (T, B, D)
    h, hs        hidden states (B, H), (T+1, B, H); row 0 is the initial state
    c, cs        cell states of the LSTM, like h and hs
    a            pre-activations, x Wx + h Wh + b
    gates        i f g o of the LSTM (T, B, 4H), r z n of the GRU (T, B, 3H)
    logits       scores of the tokens (T, B, V)
    dX           the gradient of the loss with respect to X, in the shape of X

In an equation, x, h and c are those before a step, h' and c' those after it; the product of two
gates is elementwise.

Parameters are a dict: "embedding" (V, E), unless the input is one-hot; for each layer l from 0 on
"Wx{l}" (D, G*H), "Wh{l}" (H, G*H), "b{l}" (G*H,) and for the GRU "bh{l}" (H,), with G gates: one
for the RNN, three for the GRU, four for the LSTM; "Wy" (H, V), unless the weights are tied; and
"by" (V,). Tied weights (Press & Wolf 2017) use the embedding twice: Wy = embedding.T, E = H. A
factored softmax has also "Wc" (H, C) and "bc" (C,), one column for each cluster of tokens.

The paper behind each function is named in its docstring. `docs/rnn.md`, `docs/lstm.md` and
`docs/gru.md` derive the backward passes.
"""

# The gradient of Wx is called dWx, here as in every equation.
# ruff: noqa: N815

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers, float32 or float64."""

Tokens: TypeAlias = NDArray[np.integer[Any]]
"""Token ids; a negative target is not counted."""

Parameters: TypeAlias = dict[str, Array]
"""Weights, or their gradients, by name."""

States: TypeAlias = tuple[Array, Array | None]
"""Hidden states (L, B, H) of all layers, and of the LSTM the cell states (L, B, H)."""

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Columns of Wx, Wh and b, in units of H, by the name of the cell."""


# ---------------------------------------------------------------- the input: tokens to vectors


def one_hot(tokens: Tokens, V: int, dtype: DTypeLike = np.float64) -> Array:
    """Turns each token into a row of V zeros with a one at its id.

    x[v] = 1 if v = token, else 0

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
    """Looks up the vector of each token (Bengio et al. 2003).

    x = embedding[token], which equals one_hot(token) @ embedding

    Args:
        tokens: ids, (T, B).
        embedding: one vector a token, (V, E).

    Returns:
        xs, (T, B, E).
    """
    xs: Array = embedding[tokens]
    return xs


def embedding_backward(dxs: Array, tokens: Tokens, embedding: Array) -> Array:
    """Adds the gradient of every looked-up vector to the row that it came from.

    dembedding[v] = sum of dx over the places where token v was read

    Args:
        dxs: gradient of what embedding_forward returned, (T, B, E).
        tokens: ids, (T, B).
        embedding: (V, E); only its shape and dtype are used.

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
    """Draws small random weights, from the distributions that PyTorch's modules start with.

    embedding ~ normal(0, 1)
    all else ~ uniform(-1/sqrt(H), 1/sqrt(H))

    A unit sums over H inputs. The bound keeps that sum from vanishing or saturating (LeCun et al.
    1998, Efficient BackProp).

    Args:
        cell: "rnn", "gru" or "lstm".
        V: size of the vocabulary.
        E: size of the embedding, or 0 for one-hot input.
        H: hidden units of every layer.
        L: layers.
        rng: source of the random numbers.
        dtype: of the weights.
        tied: leave out "Wy"; the output weights are the embedding's, and E = H.

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
    """Computes the logistic function, without overflow for any x.

    s = 1 / (1 + exp(-x)),  ds/dx = s (1 - s)

    The derivative is a function of the result, so a backward pass needs no x.

    Args:
        x: any shape.

    Returns:
        Same shape and dtype.
    """
    small = np.exp(-np.abs(x))  # in (0, 1], whatever the sign of x
    s: Array = np.where(x >= 0, 1, small) / (1 + small)
    return s


def _sequence_from(initial: Array, T: int) -> Array:
    """Allocates T+1 states, (T+1, B, H), and sets the first to the initial one, (B, H)."""
    states = np.empty((T + 1, *initial.shape), initial.dtype)
    states[0] = initial
    return states


def _weight_gradient(inputs: Array, das: Array) -> Array:
    """Returns dW for a = x W, summed over all steps: dW = sum_t x_t.T da_t.

    The steps share W, so their gradients add up. With all steps and rows stacked, the sum is a
    single matrix product.

    Args:
        inputs: x, (T, B, M).
        das: da, (T, B, N).

    Returns:
        dW, (M, N).
    """
    dW: Array = inputs.reshape(-1, inputs.shape[-1]).T @ das.reshape(-1, das.shape[-1])
    return dW


# ---------------------------------------------------------------- the vanilla RNN


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
    hs = _sequence_from(h0, len(xs))
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
    hs = _sequence_from(h0, len(xs))
    cs = _sequence_from(c0, len(xs))
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
        dWx=_weight_gradient(xs, das),
        dWh=_weight_gradient(hs[:-1], das),
        db=das.sum(axis=(0, 1)),
    )


# ---------------------------------------------------------------- the GRU


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
    hs = _sequence_from(h0, len(xs))
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
        dWx=_weight_gradient(xs, das),
        dWh=_weight_gradient(hs[:-1], dahs),
        db=das.sum(axis=(0, 1)),
        dbh=dahs[..., 2 * H :].sum(axis=(0, 1)),
    )


# ---------------------------------------------------------------- the output and the loss


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
        dWy=_weight_gradient(hs[1:], dlogits),
        dby=dlogits.sum(axis=(0, 1)),
    )


def softmax_cross_entropy(logits: Array, targets: Tokens) -> tuple[float, int, Array]:
    """Computes the cross-entropy of the targets, and its gradient (Bridle 1990).

    p        = softmax(logits) = exp(logits) / sum(exp(logits))
    loss_sum = sum of -log p[target] over the counted tokens
    dlogits  = (p - one_hot(target)) / count, the gradient of the mean loss_sum / count

    Args:
        logits: scores, (T, B, V).
        targets: the tokens that follow, (T, B). A negative one is not counted: it adds nothing to
            the loss and its gradient is zero.

    Returns:
        loss_sum, in nats, a sum that can be added up over batches; count, the number of counted
        tokens; dlogits, (T, B, V), the gradient of the MEAN over these tokens (all zero if there
        are none).
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


def _log_softmax(logits: Array) -> Array:
    """Returns log softmax over the last axis."""
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def factored_log_probabilities(
    logits: Array, cluster_logits: Array, clusters: Sequence[int]
) -> Array:
    """Computes the log-probabilities of a softmax in two levels (Goodman 2001).

    The tokens before the first cluster are the head. With p1 = softmax(head and clusters):

    log p[v] = log p1[v]                                     for v in the head
    log p[v] = log p1[c] + log softmax(logits of cluster c)  for v in cluster c

    Args:
        logits: scores of the tokens, (..., V).
        cluster_logits: scores of the clusters, (..., C).
        clusters: the first token of each cluster, ascending.

    Returns:
        log p, (..., V), in nats; the probabilities have the sum 1.
    """
    h = clusters[0]
    first_level = _log_softmax(np.concatenate([logits[..., :h], cluster_logits], axis=-1))
    log_p = np.empty_like(logits)
    log_p[..., :h] = first_level[..., :h]
    for c, start in enumerate(clusters):
        end = (*clusters[1:], logits.shape[-1])[c]
        within = _log_softmax(logits[..., start:end])
        log_p[..., start:end] = first_level[..., h + c, np.newaxis] + within
    return log_p


def factored_cross_entropy(
    logits: Array, cluster_logits: Array, clusters: Sequence[int], targets: Tokens
) -> tuple[float, int, Array, Array]:
    """Computes the cross-entropy of a softmax in two levels, and its gradient.

    In the head and in the target's cluster dlogits = (p - one_hot) / count, with p the softmax
    over that set; the logits of the other clusters have no part in it, and no gradient.

    Args:
        logits: scores of the tokens, (T, B, V).
        cluster_logits: scores of the clusters, (T, B, C).
        clusters: the first token of each cluster, ascending.
        targets: the tokens that follow, (T, B); a negative one is not counted.

    Returns:
        loss_sum, in nats; count; dlogits, (T, B, V), and the gradient of the clusters' logits, (T,
        B, C), both of the MEAN over the counted tokens.
    """
    V = logits.shape[-1]
    h = clusters[0]
    counted = targets >= 0
    count = int(counted.sum())
    log_p = factored_log_probabilities(logits, cluster_logits, clusters)
    ids = np.where(counted, targets, 0)
    chosen = np.take_along_axis(log_p, ids[..., np.newaxis], axis=-1)[..., 0]
    loss_sum = -float(chosen[counted].sum(dtype=np.float64))
    own = np.searchsorted(clusters, ids, side="right") - 1  # the cluster; -1 for the head
    place = np.where(own < 0, ids, h + own)
    joined = np.concatenate([logits[..., :h], cluster_logits], axis=-1)
    first = np.exp(_log_softmax(joined)) - one_hot(place, joined.shape[-1], logits.dtype)
    dlogits = np.zeros_like(logits)
    dlogits[..., :h] = first[..., :h]
    for c, start in enumerate(clusters):
        end = (*clusters[1:], V)[c]
        inside = own == c
        p = np.exp(_log_softmax(logits[inside][:, start:end]))
        dlogits[inside, start:end] = p - one_hot(ids[inside] - start, end - start, logits.dtype)
    dclusters = first[..., h:]
    for gradient in (dlogits, dclusters):
        gradient[~counted] = 0
        gradient /= max(count, 1)
    return loss_sum, count, dlogits, dclusters


# ---------------------------------------------------------------- the network: layers stacked


def zero_states(parameters: Parameters, cell: str, B: int) -> States:
    """Returns the states of a network before its first token: zeros.

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


def dropout_masks(
    p: float,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Draws the factors of the states that a layer passes on, in training (Srivastava et al. 2014).

    mask = 0 with probability p, else 1 / (1 - p), so that the expected value of mask h is h

    A network should not rely on any single unit, so some are dropped while it trains. As in
    PyTorch's nn.LSTM and in Zaremba et al. (2014), the recurrence inside a layer is not changed.
    There are no masks outside of training.

    Args:
        p: share of the units to drop, in [0, 1).
        shape: (L-1, T, B, H) between layers, (L, T, B, H) to drop before the output layer as well.
        rng: source of the random numbers.
        dtype: of the result.

    Returns:
        Masks of that shape: 0 where a unit is dropped, 1 / (1 - p) where not.
    """
    kept = rng.random(shape) >= p
    masks: Array = kept.astype(dtype) / (1 - p)
    return masks


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
    logits = output_forward(hs, _output_weights(parameters), parameters["by"])
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
    dhs, dWy, gradients["by"] = output_backward(dlogits, output_hs, _output_weights(parameters))
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


# ---------------------------------------------------------------- products of int8 numbers


def int8_activations(a: Array) -> NDArray[np.int64]:
    """Rounds activations to steps of 1/127, and cuts them off at -1 and 1.

    q = round(127 a), halves to even

    Args:
        a: activations of any shape.

    Returns:
        Steps from -127 to 127, in the same shape.
    """
    return np.rint(127 * np.clip(a.astype(np.float64), -1, 1)).astype(np.int64)


class Int8Matrix:
    """Weights (K, N) that multiply as int8 numbers: h @ Int8Matrix(W) in the place of h @ W.

    w = round(W / s),  s = max|W| / 127 of each column
    h W = (q w) s / 127,  q = round(127 h)

    The sum q w is one of integers, so that it is exact in any order.
    """

    __array_ufunc__ = None  # so that NumPy leaves the product to this class

    def __init__(self, W: Array) -> None:
        W = W.astype(np.float64)
        largest = np.abs(W).max(axis=0)
        self.steps = np.rint(W * 127 / np.where(largest > 0, largest, 1)).astype(np.int64)
        """The weights in steps, (K, N), from -127 to 127."""
        self.scale = (largest / 127**2).astype(np.float32)
        """What one step of a product is worth, (N,)."""

    def sums(self, h: Array) -> NDArray[np.int64]:
        """Returns the exact sums q w, (..., N)."""
        return int8_activations(h) @ self.steps

    def __rmatmul__(self, h: Array) -> Array:
        product: Array = self.sums(h).astype(np.float32) * self.scale
        return product.astype(h.dtype)


def with_int8_weights(parameters: Parameters) -> dict[str, Any]:
    """Returns parameters that `network_forward` multiplies as int8 numbers.

    The input of layer 0, Wx0 and the embedding, and all biases stay as they are.

    Args:
        parameters: the network.

    Returns:
        The same with an Int8Matrix for each Wh, for Wx1 and up, and for Wy, tied or not.
    """
    several: dict[str, Any] = dict(parameters)
    for name, array in parameters.items():
        if name.startswith("W") and name not in ("Wx0", "Wy"):
            several[name] = Int8Matrix(array)
    return several | {"Wy": Int8Matrix(_output_weights(parameters))}


# ---------------------------------------------------------------- clipping and gradient descent


def clip_by_value(gradients: Parameters, limit: float) -> None:
    """Clips every element to [-limit, limit], in place.

    g = min(max(g, -limit), limit)

    Args:
        gradients: by name; changed.
        limit: above 0.
    """
    for gradient in gradients.values():
        np.clip(gradient, -limit, limit, out=gradient)


def clip_by_global_norm(gradients: Parameters, limit: float) -> float:
    """Scales all gradients to a joint norm of `limit`, in place, if it is larger.

    norm = sqrt(sum of g^2 over all elements),  g = g limit / norm if norm > limit

    Pascanu, Mikolov & Bengio (2013), algorithm 1. The direction of the gradient stays the same.

    Args:
        gradients: by name; changed if their norm exceeds the limit.
        limit: above 0.

    Returns:
        The norm before clipping.
    """
    squares = [np.sum(np.square(gradient, dtype=np.float64)) for gradient in gradients.values()]
    norm = float(np.sqrt(sum(squares)))
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def sgd_step(w: Array, g: Array, lr: float) -> None:
    """Takes a step of stochastic gradient descent, in place (Robbins & Monro 1951).

    w -= lr g

    Args:
        w: weights; changed.
        g: their gradient.
        lr: learning rate.
    """
    w -= lr * g


def adagrad_step(
    w: Array, g: Array, G: Array, lr: float, eps: float = 1e-10, weight_decay: float = 0.0
) -> None:
    """Takes a step of Adagrad, in place (Duchi et al. 2011).

    g' = g + weight_decay w
    G += g'^2
    w -= lr g' / (sqrt(G) + eps)

    A weight whose gradients have been large moves less. Weight decay is that of PyTorch's Adagrad.

    Args:
        w: weights; changed.
        g: their gradient.
        G: sum of the squares of all gradients so far, zeros at the start; changed.
        lr: learning rate.
        eps: keeps the division defined while G is zero.
        weight_decay: share of w that is added to its gradient.
    """
    g = g + weight_decay * w
    G += g**2
    w -= lr * g / (np.sqrt(G) + eps)


def move_towards(source: Array, share: float, target: Array) -> None:
    """Moves the target by a share of its distance to the source, in place.

    With shares (p + 1) / (n + p) for n = 1, 2, ... the target is a mean of the sources in which
    later ones count more (polynomial-decay averaging, Shamir & Zhang 2013).

    Args:
        source: any shape.
        share: from 0, which keeps the target, to 1.
        target: the source's shape; changed.
    """
    target += share * (source - target)


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
    """Takes a step of Adam, in place (Kingma & Ba 2015).

    w *= 1 - lr weight_decay
    m  = beta1 m + (1 - beta1) g
    v  = beta2 v + (1 - beta2) g^2
    w -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    The two powers correct for the start of m and v at zero. With weight decay this is AdamW
    (Loshchilov & Hutter 2019), in PyTorch's form.

    Args:
        w: weights; changed.
        g: their gradient.
        m: running mean of gradients, zeros at the start; changed.
        v: running mean of their squares, zeros at the start; changed.
        step: number of this step, from 1.
        lr: learning rate.
        beta1: share of m that is kept in a step.
        beta2: share of v that is kept in a step.
        eps: keeps the division defined while v is zero.
        weight_decay: share of w that a step of learning rate 1 removes.
    """
    w *= 1 - lr * weight_decay
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g**2
    denominator = np.sqrt(v) / (1 - beta2**step) ** 0.5 + eps
    w -= lr / (1 - beta1**step) * m / denominator


# ---------------------------------------------------------------- sampling and generation


def lane_sum(weights: Array) -> np.float32:
    """Returns the sum of weights (N,) in float32, in the order of the kernels.

    Sixteen sums of every sixteenth weight, of which the upper half is added to the lower one until
    one is left.
    """
    padded = np.zeros(-(-weights.size // 16) * 16, np.float32)
    padded[: weights.size] = weights
    lanes = np.zeros(16, np.float32)
    for row in padded.reshape(-1, 16):
        lanes += row
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return np.float32(lanes[0]) if lanes.size else np.float32(0)


def draw(weights: Array, threshold: np.float32) -> int:
    """Returns the first place at which summed weights exceed a threshold, in float32.

    The place is found in stretches of 256 weights, within one in blocks of 16, within one among
    its weights. At each level the first part is taken with which the sum of this and all parts
    before it exceeds the threshold; where rounding leaves none, the last part that has a weight.

    Args:
        weights: (V,), from 0 up.
        threshold: a share of their sum.

    Returns:
        The place, from 0 to V - 1.
    """
    first = 0
    last = weights.size
    running = np.float32(0)
    for width in (256, 16, 1):
        before = running
        taken = first
        for start in range(first, last, width):
            part = lane_sum(weights[start : min(start + width, last)])
            if part > 0:
                taken = start
                running = before
            before += part
            if before > threshold:
                break
        first = taken
        last = min(first + width, last)
    return first


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    u: float = 0.0,
    typical_p: float = 1.0,
) -> int:
    """Draws a token from softmax(logits / temperature), truncated to its likely part.

    1. top-k (Fan et al. 2018): the top_k likeliest tokens are kept, equals by lower id.
    2. top-p, the nucleus (Holtzman et al. 2020): of these, the fewest likeliest whose probability,
       renormalized, reaches top_p.
    3. min-p (Nguyen et al. 2024): of these, the ones at least min_p times as likely as the
       likeliest.
    4. typical sampling (Meister et al. 2023): of these, renormalized, the fewest that reach
       typical_p, in ascending order of |-log p - entropy|, equals by lower id.
    5. The kept tokens are walked through in ascending id, with their probabilities added up. The
       token where the sum first exceeds u times the total is drawn (inversion sampling).

    Args:
        logits: scores of the vocabulary, (V,).
        temperature: below 1 sharpens the distribution, above 1 flattens it; 0 takes the likeliest
            token, of equals the lowest id.
        top_k: number of tokens to keep; 0 keeps all.
        top_p: probability to keep, in (0, 1]; 1 keeps all.
        min_p: least probability to keep, in [0, 1], relative to the likeliest token's.
        u: a uniform random number in [0, 1), the only random input.
        typical_p: probability of typical tokens to keep, in (0, 1]; 1 keeps all.

    Returns:
        The token's id.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    # The maximum is subtracted before the division, so that no temperature leads to inf - inf.
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
    # u times the total can round up to the total; the last kept token is drawn then.
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
    """Reads a prompt, then samples n tokens, each of which is the next input.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        prompt_tokens: at least one id.
        n: number of tokens to sample.
        temperature: see sample.
        top_k: see sample.
        top_p: see sample.
        min_p: see sample.
        rng: source of the random numbers; None for a new one. Not used at temperature 0.
        states: the states before the prompt, with B = 1; None for zeros.

    Returns:
        The n new token ids.
    """
    rng = rng or np.random.default_rng()
    states = states or zero_states(parameters, cell, B=1)
    tokens = np.asarray(prompt_tokens)
    sampled: list[int] = []
    while len(sampled) < n:
        logits, states, _ = network_forward(parameters, cell, tokens[:, np.newaxis], states)
        u = rng.random()
        sampled.append(sample(logits[-1, 0], temperature, top_k, top_p, min_p, u))
        tokens = np.array(sampled[-1:])
    return sampled
