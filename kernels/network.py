"""`train_shard` runs a whole network over one shard of a batch: forward, loss and backpropagation.

It is one call without the interpreter lock. Tokens enter through a table, the fold of embedding and
input weights (see `weight_packing`). An upper layer takes the states of the layer below through one
product over all steps. At most LOGIT_ROWS rows of logits are in memory at a time.

`read_shard` is the forward pass alone, which scoring, decoding and beam search share.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.dropout import Dropout, draw_keep, drop, keep_scale
from treadle.kernels.factored_softmax import factored_loss, log_probability_rows
from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import add_matmul_transposed, matmul
from treadle.kernels.jit import jit, jit_apart, jit_inline, jit_views, jit_views_apart
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
from treadle.kernels.simd import add_row, copy, copy_array
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


@jit
def _embed_on_demand(embedding: Array, Wx0: Array, b: Array, tokens: Ints, gates: Array) -> None:
    """Does what `embed` does where there is no table."""
    B = tokens.size
    xs = np.empty((B, embedding.shape[1]), np.float32)
    for row in range(B):
        copy_array(embedding[tokens[row]], xs[row])
        copy_array(b[0], gates[row])
    matmul(xs, Wx0, gates, True)


@jit_inline
def embed(weights: Weights, tokens: Ints, gates: Array) -> None:
    """Writes layer 0's share of the input.

    Args:
        weights: packed.
        tokens: (B,), below V.
        gates: (B, G), written.
    """
    B = tokens.size
    if weights.table.shape[0]:
        G = gates.shape[1]
        for row in range(B):
            copy(weights.table, tokens[row] * G, gates, row * G, G)
        return
    _embed_on_demand(weights.embedding, weights.Wx0, weights.b, tokens, gates)


@jit_inline
def layer_tape(work: Workspace, layer: int, first: int, last: int) -> LayerTape:
    """Returns one layer's part of the workspace, for steps `first` to `last`."""
    gates = work.gates[layer, first:last]
    ah = work.ah[layer, first:last]
    hs = work.hs[layer, first : last + 1]
    cs = work.cs[layer, first : last + 1]
    return LayerTape(gates, ah, hs, cs)


@jit_inline
def _layer_input(work: Workspace, layer: int, steps: int) -> Array:
    """Returns the states (T, B, H) of the layer below, with dropout where the workspace has it."""
    hs = work.hs[layer - 1, 1 : steps + 1]
    if not work.keep.shape[1]:
        return hs
    N = steps * hs.shape[1]
    H = hs.shape[2]
    keep = work.keep[layer - 1, :steps].reshape((N, work.keep.shape[3]))
    dropped = work.dropped[:steps]
    drop(hs.reshape((N, H)), keep, work.scale[0], dropped.reshape((N, H)))
    return dropped


@jit_views_apart
def load_state(state: State, fresh: Bools, work: Workspace) -> None:
    """Sets the initial states of a window: the state's rows, or zeros in fresh (B,) rows."""
    for layer in range(state.h.shape[0]):
        for row in range(state.h.shape[1]):
            if fresh[row]:
                work.hs[layer, 0, row] = ZERO
            else:
                copy_array(state.h[layer, row], work.hs[layer, 0, row])
            if work.cs.shape[1]:
                if fresh[row]:
                    work.cs[layer, 0, row] = ZERO
                else:
                    copy_array(state.c[layer, row], work.cs[layer, 0, row])


@jit_views_apart
def store_state(work: Workspace, steps: int, state: State) -> None:
    """Writes the states after `steps` steps to `state`."""
    for layer in range(state.h.shape[0]):
        copy_array(work.hs[layer, steps], state.h[layer])
        if work.cs.shape[1]:
            copy_array(work.cs[layer, steps], state.c[layer])


@jit_views_apart
def upper_layers(cell: int, weights: Weights, work: Workspace, steps: int) -> None:
    """Runs the layers above the first over its first `steps` states."""
    for layer in range(1, work.gates.shape[0]):
        xs = _layer_input(work, layer, steps)
        Wx = weights.Wx[layer - 1]
        b = weights.b[layer]
        Wh = weights.Wh[layer]
        bh = weights.bh[layer]
        tape = layer_tape(work, layer, 0, steps)
        layer_forward(cell, xs, Wx, b, Wh, bh, tape, steps)


@jit_inline
def forward(cell: int, weights: Weights, work: Workspace, tokens: Ints, steps: int) -> None:
    """Runs all layers over the first `steps` rows of tokens (T, B), from the states in row 0."""
    for t in range(steps):  # step by step, so that the input is still in the cache
        embed(weights, tokens[t], work.gates[0, t])
        recur_forward(cell, weights.Wh[0], weights.bh[0], layer_tape(work, 0, t, t + 1), 1)
    if work.gates.shape[0] > 1:
        upper_layers(cell, weights, work, steps)


@jit_views_apart
def read_shard(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, fresh: Bools
) -> None:
    """Runs the forward pass only, for the states.

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
    """Computes logits (N, V) = by + states (N, H) Wy; log-probabilities of a factored softmax."""
    if weights.clusters.size > 1:
        log_probability_rows(weights, states, logits)
        return
    N, V = logits.shape
    for n in range(N):
        copy(weights.by, 0, logits, n * V, V)
    matmul(states, weights.Wy, logits, True)


@jit_views_apart
def _drop_top(work: Workspace, first: int, rows: Array, out: Array) -> None:
    """Applies the output layer's dropout to `rows` (n, H), states or gradients from row `first`."""
    _, T, B, K = work.top_keep.shape
    keep = work.top_keep.reshape((T * B, K))[first : first + rows.shape[0]]
    drop(rows, keep, work.scale[1], out)


@jit_views_apart
def _draw_dropout(work: Workspace, dropout: Dropout, top: Dropout, steps: int) -> None:
    """Draws the dropout of a step, where the workspace holds arrays for it.

    Args:
        work: its keep, top_keep and scale are written.
        dropout: between layers.
        top: before the output layer.
        steps: at most T.
    """
    if work.keep.shape[1]:
        work.scale[0] = keep_scale(dropout)
        draw_keep(dropout, work.keep, steps, 0)
    if work.top_keep.shape[1]:
        work.scale[1] = keep_scale(top)
        draw_keep(top, work.top_keep, steps, work.hs.shape[0] - 1)


@jit_views_apart
def _loss_and_output_gradients(
    weights: Weights, work: Workspace, gradients: Gradients, targets: Ints, scale: np.float32
) -> float:
    """Returns the loss over all steps of targets (T, B); fills dhs and the output's gradients."""
    steps, B = targets.shape
    N = steps * B
    H = work.hs.shape[3]
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    dhs = work.dhs[:steps].reshape((N, H))
    flat_targets = targets.reshape(N)
    drops = work.top.shape[0] > 0
    loss = 0.0
    if weights.clusters.size > 1:
        h = states
        if drops:
            h = work.top[:N]
            _drop_top(work, 0, states, h)
        loss += factored_loss(
            weights, gradients, h, flat_targets, scale, work.logits, work.block, dhs
        )
        if drops:
            _drop_top(work, 0, dhs, dhs)
        return loss
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        h = states[first:last]
        dh = dhs[first:last]
        if drops:
            h = work.top[: last - first]
            _drop_top(work, first, states[first:last], h)
        output_logits(weights, h, logits)
        loss += cross_entropy(logits, flat_targets[first:last], scale)
        matmul(logits, weights.WyT, dh, False)
        add_matmul_transposed(h, logits, work.block, gradients.Wy)
        add_rows(logits, gradients.by)
        if drops:
            _drop_top(work, first, dh, dh)
    return loss


@jit_views_apart
def _drop_gradient(work: Workspace, layer: int, steps: int) -> None:
    """Turns dhs, the gradient of a layer's dropped input, into that of the states below."""
    if work.keep.shape[1]:
        N = steps * work.dhs.shape[1]
        dhs = work.dhs[:steps].reshape((N, work.dhs.shape[2]))
        keep = work.keep[layer - 1, :steps].reshape((N, work.keep.shape[3]))
        drop(dhs, keep, work.scale[0], dhs)


@jit_views
def _add_to_table(gates: Array, table: Array, tokens: Ints, steps: int) -> None:
    """Adds layer 0's share of gates (L, T, B, G), now da, to the rows of its tokens' gradients."""
    _, _, B, G = gates.shape
    for t in range(steps):
        for row in range(B):
            add_row(gates, (t * B + row) * G, table, tokens[t, row] * G, G)


@jit_apart
def _backward(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, tokens: Ints, steps: int
) -> None:
    """Takes all layers back, from the gradient of the topmost states in dhs."""
    B = work.hs.shape[2]
    H = work.hs.shape[3]
    dhs = work.dhs
    block = work.block
    for layer in range(work.gates.shape[0] - 1, -1, -1):
        WhT = weights.WhT[layer]
        tape = layer_tape(work, layer, 0, steps)
        cell_rows = B if cell == LSTM else 0
        running = RunningGradient(
            np.zeros((B, H), np.float32), np.zeros((cell_rows, H), np.float32)
        )
        dWh = gradients.Wh[layer]
        dbh = gradients.bh[layer]
        if layer == 0:
            recur_backward(cell, WhT, tape, dhs, running, dWh, dbh, block, steps)
        else:
            xs = _layer_input(work, layer, steps)
            WxT = weights.WxT[layer - 1]
            part = LayerGradients(gradients.Wx[layer - 1], dWh, gradients.b[layer], dbh)
            layer_backward(cell, xs, WxT, WhT, tape, dhs, running, part, dhs, block, steps)
            _drop_gradient(work, layer, steps)
    _add_to_table(work.gates, gradients.table, tokens, steps)


@jit_views
def _clear(gradients: Gradients) -> None:
    """Sets all gradients to 0."""
    gradients.table[:] = ZERO
    gradients.b[:] = ZERO
    gradients.bh[:] = ZERO
    gradients.Wx[:] = ZERO
    gradients.Wh[:] = ZERO
    gradients.Wy[:] = ZERO
    gradients.by[:] = ZERO
    gradients.Wc[:] = ZERO
    gradients.bc[:] = ZERO


@jit_views_apart
def train_shard(
    cell: int, weights: Weights, work: Workspace, gradients: Gradients, state: State,
    tokens: Ints, targets: Ints, fresh: Bools, scale: np.float32, dropout: Dropout, top: Dropout,
) -> float:  # fmt: skip
    """Runs forward pass, loss and backpropagation through time for one shard and window.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed, with the transposes.
        work: of at least as many steps as `tokens` has, and exactly as many rows.
        gradients: written.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where there is nothing to learn.
        fresh: (B,), rows that begin from zeros instead of `state`.
        scale: 1 / the counted targets of the whole batch.
        dropout: between layers, where `work` has arrays for it.
        top: before the output layer, where `work` has arrays for it.

    Returns:
        The sum of -log p(target), in nats.
    """
    steps = tokens.shape[0]
    _clear(gradients)
    load_state(state, fresh, work)
    _draw_dropout(work, dropout, top, steps)
    forward(cell, weights, work, tokens, steps)
    store_state(work, steps, state)
    loss = _loss_and_output_gradients(weights, work, gradients, targets, scale)
    _backward(cell, weights, work, gradients, tokens, steps)
    return loss
