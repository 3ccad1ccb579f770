"""A whole network over one shard of a batch, in one call without the interpreter lock.

Tokens enter through a table, the fold of embedding and input weights (see packing). Upper
layers take the states below through a product over all steps at once. Logits exist for at most
LOGIT_ROWS rows at a time.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.compile import jit, jit_inline
from treadle.kernels.gru import gru_backward, gru_forward
from treadle.kernels.loss import cross_entropy, target_log_probabilities
from treadle.kernels.lstm import lstm_backward, lstm_forward
from treadle.kernels.matmul import add_rows, matmul
from treadle.kernels.optimizers import add_into
from treadle.kernels.rnn import rnn_backward, rnn_forward
from treadle.kernels.structures import (
    GRU,
    LSTM,
    Array,
    Bools,
    Gradients,
    Ints,
    State,
    Weights,
    Workspace,
)
from treadle.kernels.transposed import add_matmul_transposed
from treadle.kernels.vectors import copy


@jit_inline
def _embed(weights: Weights, tokens: Ints, gates: Array) -> None:
    """Layer 0's share of the input, for tokens (B,), to gates (B, G)."""
    B = tokens.size
    if weights.table.shape[0]:
        G = gates.shape[1]
        for row in range(B):
            copy(weights.table, tokens[row] * G, gates, row * G, G)
        return
    xs = np.empty((B, weights.embedding.shape[1]), np.float32)
    for row in range(B):
        xs[row] = weights.embedding[tokens[row]]
        gates[row] = weights.b[0]
    matmul(xs, weights.Wx0, gates, True)


@jit_inline
def _from_below(weights: Weights, work: Workspace, layer: int, steps: int) -> None:
    """Layer's share of the input from the states of the layer below."""
    B, G, H = work.gates.shape[2], work.gates.shape[3], work.hs.shape[3]
    gates = work.gates[layer, :steps].reshape((steps * B, G))
    for row in range(steps * B):
        gates[row] = weights.b[layer]
    below = work.hs[layer - 1, 1 : steps + 1].reshape((steps * B, H))
    matmul(below, weights.Wx[layer - 1], gates, True)


@jit
def load_state(state: State, fresh: Bools, work: Workspace) -> None:
    """Set the initial states of a window: the state's rows, or zeros in fresh (B,) rows."""
    for layer in range(state.h.shape[0]):
        for row in range(state.h.shape[1]):
            if fresh[row]:
                work.hs[layer, 0, row] = ZERO
            else:
                work.hs[layer, 0, row] = state.h[layer, row]
            if work.cs.shape[1]:
                if fresh[row]:
                    work.cs[layer, 0, row] = ZERO
                else:
                    work.cs[layer, 0, row] = state.c[layer, row]


@jit
def store_state(work: Workspace, steps: int, state: State) -> None:
    """Keep the states after `steps` steps."""
    for layer in range(state.h.shape[0]):
        state.h[layer] = work.hs[layer, steps]
        if work.cs.shape[1]:
            state.c[layer] = work.cs[layer, steps]


@jit_inline
def _forward_layer(
    cell: int, weights: Weights, work: Workspace, layer: int, first: int, last: int
) -> None:  # fmt: skip
    """One layer's recurrence over steps first to last, from its share of the input in gates."""
    gates, hs = work.gates[layer, first:last], work.hs[layer, first : last + 1]
    Wh, steps = weights.Wh[layer], last - first
    if cell == LSTM:
        lstm_forward(gates, hs, work.cs[layer, first : last + 1], Wh, steps)
    elif cell == GRU:
        hidden = work.hidden[layer, first:last]
        gru_forward(gates, hidden, hs, Wh, weights.bh[layer], steps)
    else:
        rnn_forward(gates, hs, Wh, steps)


@jit_inline
def forward(cell: int, weights: Weights, work: Workspace, tokens: Ints, steps: int) -> None:
    """Run all layers over the first `steps` rows of tokens (T, B), from the states in row 0."""
    for t in range(steps):  # step by step, so that what enters is still in the cache
        _embed(weights, tokens[t], work.gates[0, t])
        _forward_layer(cell, weights, work, 0, t, t + 1)
    for layer in range(1, work.gates.shape[0]):
        _from_below(weights, work, layer, steps)
        _forward_layer(cell, weights, work, layer, 0, steps)


@jit_inline
def output_logits(weights: Weights, states: Array, logits: Array) -> None:
    """logits (N, V) = by + states (N, H) Wy."""
    N, V = logits.shape
    for n in range(N):
        copy(weights.by, 0, logits, n * V, V)
    matmul(states, weights.Wy, logits, True)


@jit
def _loss_and_output_gradients(
    weights: Weights, work: Workspace, gradients: Gradients, targets: Ints, scale: np.float32
) -> float:
    """The loss over all steps of targets (T, B); fills dhs and the output layer's gradients."""
    (steps, B), H = targets.shape, work.hs.shape[3]
    N = steps * B
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    dhs = work.dhs[:steps].reshape((N, H))
    flat_targets = targets.reshape(N)
    loss = 0.0
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        loss += cross_entropy(logits, flat_targets[first:last], scale)
        matmul(logits, weights.WyT, dhs[first:last], False)
        add_matmul_transposed(states[first:last], logits, work.block, gradients.Wy)
        add_rows(logits, gradients.by)
    return loss


@jit
def _backward_layer(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, layer: int, steps: int
) -> None:
    """One layer's recurrence backward, and the gradients of its recurrent weights."""
    B, H = work.gates.shape[2], work.hs.shape[3]
    gates, hs, WhT = work.gates[layer], work.hs[layer], weights.WhT[layer]
    dWh, block = gradients.Wh[layer], work.block
    dh = np.zeros((B, H), np.float32)
    if cell == LSTM:
        dc, cs = np.zeros((B, H), np.float32), work.cs[layer]
        lstm_backward(gates, hs, cs, WhT, work.dhs, dh, dc, dWh, block, steps)
    elif cell == GRU:
        hidden = work.hidden[layer]
        gru_backward(gates, hidden, hs, WhT, work.dhs, dh, dWh, block, steps)
        for t in range(steps):
            for row in range(B):
                add_into(hidden[t, row, 2 * H :], gradients.bh[layer])
    else:
        rnn_backward(gates, hs, WhT, work.dhs, dh, dWh, block, steps)


@jit
def _backward(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, tokens: Ints, steps: int
) -> None:
    """All layers backward, from the gradient of the topmost states in dhs."""
    B, G, H = work.gates.shape[2], work.gates.shape[3], work.hs.shape[3]
    N = steps * B
    for layer in range(work.gates.shape[0] - 1, -1, -1):
        _backward_layer(cell, weights, work, gradients, layer, steps)
        da = work.gates[layer, :steps].reshape((N, G))
        if layer:
            add_rows(da, gradients.b[layer])
            below = work.hs[layer - 1, 1 : steps + 1].reshape((N, H))
            add_matmul_transposed(below, da, work.block, gradients.Wx[layer - 1])
            matmul(da, weights.WxT[layer - 1], work.dhs[:steps].reshape((N, H)), False)
    for t in range(steps):
        for row in range(B):
            add_into(work.gates[0, t, row], gradients.table[tokens[t, row]])


@jit
def train_shard(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, state: State,
    tokens: Ints, targets: Ints, fresh: Bools, scale: np.float32,
) -> float:  # fmt: skip
    """Forward pass, loss and backpropagation through time for one shard and window.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed, with the transposes.
        work: of at least as many steps as `tokens` has, and exactly as many rows.
        gradients: added to.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where nothing is to be learned.
        fresh: (B,), rows that begin from zeros instead of `state`.
        scale: 1 / the counted targets of the whole batch.

    Returns:
        The sum of -log p(target), in nats.
    """
    steps = tokens.shape[0]
    load_state(state, fresh, work)
    forward(cell, weights, work, tokens, steps)
    store_state(work, steps, state)
    loss = _loss_and_output_gradients(weights, work, gradients, targets, scale)
    _backward(cell, weights, work, gradients, tokens, steps)
    return loss


@jit
def score_shard(
    cell: int, weights: Weights, work: Workspace, state: State,
    tokens: Ints, targets: Ints, fresh: Bools, out: Array,
) -> None:  # fmt: skip
    """Forward pass only: write log p of every target.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: as for `train_shard`; dhs is not used.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where nothing is to be scored.
        fresh: (B,), rows that begin from zeros instead of `state`.
        out: (T, B), written: log-probabilities in nats, 0 where there is no target.
    """
    steps, B = tokens.shape
    N, H = steps * B, work.hs.shape[3]
    load_state(state, fresh, work)
    forward(cell, weights, work, tokens, steps)
    store_state(work, steps, state)
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    flat_targets, flat_out = targets.reshape(N), out.reshape(N)
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        target_log_probabilities(logits, flat_targets[first:last], flat_out[first:last])
