"""A whole network over one shard of a batch, in one call without the interpreter lock.

Tokens enter through a table, the fold of embedding and input weights (see packing). Upper
layers take the states below through a product over all steps at once. Logits exist for at most
LOGIT_ROWS rows at a time.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.dropout import Dropout, draw_keep, drop, keep_scale
from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import add_matmul_transposed, matmul
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.layer import (
    LayerGradients,
    LayerTape,
    RunningGradient,
    layer_backward,
    layer_forward,
    recur_backward,
    recur_forward,
)
from treadle.kernels.loss import cross_entropy
from treadle.kernels.optimizers import add_into
from treadle.kernels.simd import copy
from treadle.kernels.structs import (
    LSTM,
    Array,
    Bools,
    Gradients,
    Ints,
    State,
    Weights,
    Workspace,
)


@jit_inline
def embed(weights: Weights, tokens: Ints, gates: Array) -> None:
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
def layer_tape(work: Workspace, layer: int, first: int, last: int) -> LayerTape:
    """One layer's part of the workspace, for steps first to last."""
    return LayerTape(
        work.gates[layer, first:last], work.hidden[layer, first:last],
        work.hs[layer, first : last + 1], work.cs[layer, first : last + 1],
    )  # fmt: skip


@jit_inline
def _below(work: Workspace, layer: int, steps: int) -> Array:
    """What a layer gets from the one below: its states (T, B, H), some dropped in training."""
    hs = work.hs[layer - 1, 1 : steps + 1]
    if not work.keep.shape[1]:
        return hs
    N, H, K = steps * hs.shape[1], hs.shape[2], work.keep.shape[3]
    keep, dropped = work.keep[layer - 1, :steps], work.dropped[:steps]
    drop(hs.reshape((N, H)), keep.reshape((N, K)), work.scale[0], dropped.reshape((N, H)))
    return dropped


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


@jit
def upper_layers(cell: int, weights: Weights, work: Workspace, steps: int) -> None:
    """Run the layers above the first over its first `steps` states."""
    for layer in range(1, work.gates.shape[0]):
        xs, Wx, b = _below(work, layer, steps), weights.Wx[layer - 1], weights.b[layer]
        Wh, bh, tape = weights.Wh[layer], weights.bh[layer], layer_tape(work, layer, 0, steps)
        layer_forward(cell, xs, Wx, b, Wh, bh, tape, steps)


@jit_inline
def forward(cell: int, weights: Weights, work: Workspace, tokens: Ints, steps: int) -> None:
    """Run all layers over the first `steps` rows of tokens (T, B), from the states in row 0."""
    for t in range(steps):  # step by step, so that what enters is still in the cache
        embed(weights, tokens[t], work.gates[0, t])
        recur_forward(cell, weights.Wh[0], weights.bh[0], layer_tape(work, 0, t, t + 1), 1)
    if work.gates.shape[0] > 1:
        upper_layers(cell, weights, work, steps)


@jit
def read_shard(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, fresh: Bools
) -> None:  # fmt: skip
    """Forward pass only, for the state after it.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: as for `train_shard`; dhs is not used.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        fresh: (B,), rows that begin from zeros instead of `state`.
    """
    load_state(state, fresh, work)
    forward(cell, weights, work, tokens, tokens.shape[0])
    store_state(work, tokens.shape[0], state)


@jit_inline
def output_logits(weights: Weights, states: Array, logits: Array) -> None:
    """logits (N, V) = by + states (N, H) Wy."""
    N, V = logits.shape
    for n in range(N):
        copy(weights.by, 0, logits, n * V, V)
    matmul(states, weights.Wy, logits, True)


@jit
def _drop_top(work: Workspace, first: int, rows: Array, out: Array) -> None:
    """Drop units of the topmost states, or of their gradient: `rows` (n, H) from row `first` on."""
    _, T, B, K = work.top_keep.shape
    keep = work.top_keep.reshape((T * B, K))[first : first + rows.shape[0]]
    drop(rows, keep, work.scale[1], out)


@jit
def _draw_dropped(work: Workspace, dropout: Dropout, top: Dropout, steps: int) -> None:
    """Draw what a step drops between layers and before the output layer, where there is room."""
    if work.keep.shape[1]:
        work.scale[0] = keep_scale(dropout)
        draw_keep(dropout, work.keep, steps, 0)
    if work.top_keep.shape[1]:
        work.scale[1] = keep_scale(top)
        draw_keep(top, work.top_keep, steps, work.hs.shape[0] - 1)


@jit
def _loss_and_output_gradients(
    weights: Weights, work: Workspace, gradients: Gradients, targets: Ints, scale: np.float32
) -> float:
    """The loss over all steps of targets (T, B); fills dhs and the output layer's gradients."""
    (steps, B), H = targets.shape, work.hs.shape[3]
    N = steps * B
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    dhs = work.dhs[:steps].reshape((N, H))
    flat_targets, drops = targets.reshape(N), work.top.shape[0] > 0
    loss = 0.0
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits, read, dread = work.logits[: last - first], states[first:last], dhs[first:last]
        if drops:
            read = work.top[: last - first]
            _drop_top(work, first, states[first:last], read)
        output_logits(weights, read, logits)
        loss += cross_entropy(logits, flat_targets[first:last], scale)
        matmul(logits, weights.WyT, dread, False)
        add_matmul_transposed(read, logits, work.block, gradients.Wy)
        add_rows(logits, gradients.by)
        if drops:
            _drop_top(work, first, dread, dread)
    return loss


@jit
def _drop_gradient(work: Workspace, layer: int, steps: int) -> None:
    """Turn dhs, the gradient of what a layer got from below, into that of the states there."""
    if work.keep.shape[1]:
        N, H, K = steps * work.dhs.shape[1], work.dhs.shape[2], work.keep.shape[3]
        dhs = work.dhs[:steps].reshape((N, H))
        drop(dhs, work.keep[layer - 1, :steps].reshape((N, K)), work.scale[0], dhs)


@jit
def _backward(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, tokens: Ints, steps: int
) -> None:
    """All layers backward, from the gradient of the topmost states in dhs."""
    B, H = work.hs.shape[2], work.hs.shape[3]
    for layer in range(work.gates.shape[0] - 1, -1, -1):
        WhT, tape = weights.WhT[layer], layer_tape(work, layer, 0, steps)
        cells = B if cell == LSTM else 0
        running = RunningGradient(np.zeros((B, H), np.float32), np.zeros((cells, H), np.float32))
        dWh, dbh, block = gradients.Wh[layer], gradients.bh[layer], work.block
        if layer == 0:
            recur_backward(cell, WhT, tape, work.dhs, running, dWh, dbh, block, steps)
        else:
            xs, WxT = _below(work, layer, steps), weights.WxT[layer - 1]
            part = LayerGradients(gradients.Wx[layer - 1], dWh, gradients.b[layer], dbh)
            dhs = work.dhs
            layer_backward(cell, xs, WxT, WhT, tape, dhs, running, part, dhs, block, steps)
            _drop_gradient(work, layer, steps)
    for t in range(steps):
        for row in range(B):
            add_into(work.gates[0, t, row], gradients.table[tokens[t, row]])


@jit
def train_shard(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, state: State,
    tokens: Ints, targets: Ints, fresh: Bools, scale: np.float32, dropout: Dropout, top: Dropout,
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
        dropout: what is dropped between layers, where `work` has room for it.
        top: what is dropped before the output layer, where `work` has room for it.

    Returns:
        The sum of -log p(target), in nats.
    """
    steps = tokens.shape[0]
    load_state(state, fresh, work)
    _draw_dropped(work, dropout, top, steps)
    forward(cell, weights, work, tokens, steps)
    store_state(work, steps, state)
    loss = _loss_and_output_gradients(weights, work, gradients, targets, scale)
    _backward(cell, weights, work, gradients, tokens, steps)
    return loss
