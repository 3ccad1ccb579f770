"""`factored_loss` computes the cross-entropy of a softmax in two levels, and its gradient.

The tokens below the first cluster are the head; the rest is cut into C clusters of neighbouring
ids. The output layer has one more column for each cluster. With l the logits, lc those of the
clusters, and lse the logarithm of a sum of exponentials over a set:

    log p(v) = l_v - lse(head and clusters)                            for v of the head
    log p(v) = lc_c - lse(head and clusters) + l_v - lse(cluster c)    for v of cluster c

The probabilities of all tokens have the sum 1. A target needs the columns of the head and of its
own cluster, which are few where clusters hold the rare tokens. Classes of words are from Goodman,
"Classes for fast maximum entropy training" (2001), the head from Grave et al., "Efficient softmax
approximation for GPUs" (2017), here without their projections.

Every logit is one chain over H, and every sum runs over one set from its beginning. So a token's
log-probability has the same bits whether all tokens are computed, for generation, or only the sets
that a target needs, for training and scoring.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ONE, ZERO, log
from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import (
    add_columns_transposed,
    add_matmul_transposed,
    matmul,
    matmul_rows,
)
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.intrinsics import larger
from treadle.kernels.jit import jit, jit_apart
from treadle.kernels.loss import log_probability, row_max, shifted_exp
from treadle.kernels.simd import copy
from treadle.kernels.structs import Array, Gradients, Ints, Places, RowBlock, Weights


@jit_apart
def _set_logits(weights: Weights, states: Array, first: int, last: int, out: Array) -> None:
    """Writes the logits (N, last - first) of tokens `first` to `last`, for states (N, H)."""
    width = last - first
    for n in range(out.shape[0]):
        copy(weights.by, first, out, n * width, width)
    matmul(states, weights.Wy[first // PANEL : (last + PANEL - 1) // PANEL], out, True)


@jit_apart
def _cluster_logits(weights: Weights, states: Array) -> Array:
    """Returns the logits (N, C) of the clusters, for states (N, H)."""
    C = weights.bc.size
    out = np.empty((states.shape[0], C), np.float32)
    for n in range(out.shape[0]):
        copy(weights.bc, 0, out, n * C, C)
    matmul(states, weights.Wc, out, True)
    return out


@jit
def _cluster_of(clusters: Places, token: int) -> int:
    """Returns the number of a token's cluster; -1 for the head."""
    c = -1
    while clusters[c + 1] <= token:
        c += 1
    return c


@jit_apart
def log_probability_rows(weights: Weights, states: Array, out: Array) -> None:
    """Writes log p of every token.

    Args:
        weights: packed, of a factored softmax.
        states: (N, H), the last layer's.
        out: (N, V), written: log-probabilities in nats.
    """
    N = states.shape[0]
    clusters = weights.clusters
    of_cluster = _cluster_logits(weights, states)
    exps = np.empty(out.shape[1], np.float32)
    head = np.empty((N, clusters[0]), np.float32)
    _set_logits(weights, states, 0, clusters[0], head)
    for n in range(N):
        m = larger(row_max(head[n]), row_max(of_cluster[n]))
        exp_sum = shifted_exp(head[n], m, exps[: head.shape[1]])
        log_sum = log(exp_sum + shifted_exp(of_cluster[n], m, exps[: of_cluster.shape[1]]))
        for v in range(head.shape[1]):  # as `log_probability`, whose logarithm is the same here
            out[n, v] = (head[n, v] - m) - log_sum
        for c in range(of_cluster.shape[1]):
            of_cluster[n, c] = (of_cluster[n, c] - m) - log_sum
    for c in range(weights.bc.size):
        first = clusters[c]
        logits = np.empty((N, clusters[c + 1] - first), np.float32)
        _set_logits(weights, states, first, clusters[c + 1], logits)
        for n in range(N):
            m = row_max(logits[n])
            log_sum = log(shifted_exp(logits[n], m, exps[: logits.shape[1]]))
            for v in range(logits.shape[1]):
                out[n, first + v] = of_cluster[n, c] + ((logits[n, v] - m) - log_sum)


@jit_apart
def _order_rows(clusters: Places, targets: Ints, starts: Ints) -> Ints:
    """Returns the rows whose target is in a cluster, cluster by cluster, each in ascending order.

    Args:
        clusters: (C + 1,).
        targets: (N,).
        starts: (C + 1,), written: where each cluster's rows begin, and their number.
    """
    C = clusters.size - 1
    own = np.empty(targets.size, np.int32)
    counts = np.zeros(C + 1, np.int32)
    for n in range(targets.size):
        own[n] = _cluster_of(clusters, targets[n])
        if own[n] >= 0:
            counts[own[n] + 1] += 1
    starts[0] = 0
    for c in range(C):
        starts[c + 1] = starts[c] + counts[c + 1]
    rows = np.empty(starts[C], np.int32)
    places = starts.copy()
    for n in range(targets.size):
        if own[n] >= 0:
            rows[places[own[n]]] = n
            places[own[n]] += 1
    return rows


@jit_apart
def _head_log_probabilities(
    logits: Array, of_cluster: Array, clusters: Places, targets: Ints, scale: np.float32, out: Array
) -> None:
    """Turns the logits of the first level into their gradient.

    Args:
        logits: (N, h); in: of the head; out: the gradient, 0 in rows without a target.
        of_cluster: (N, C); in: of the clusters; out: the gradient.
        clusters: (C + 1,).
        targets: (N,); below 0 for rows without a target.
        scale: factor of the gradient of each counted row.
        out: (N,), written: log p of the target, or of its cluster; 0 without a target.
    """
    for n in range(logits.shape[0]):
        row = logits[n]
        sets = of_cluster[n]
        target = targets[n]
        if target < 0:
            row[:] = ZERO
            sets[:] = ZERO
            out[n] = ZERO
            continue
        c = _cluster_of(clusters, target)
        own = row[target] if c < 0 else sets[c]
        m = larger(row_max(row), row_max(sets))
        exp_sum = shifted_exp(row, m, row)
        exp_sum += shifted_exp(sets, m, sets)
        out[n] = log_probability(own, m, exp_sum)
        factor = scale * (ONE / exp_sum)
        for v in range(row.size):
            row[v] *= factor
        for v in range(sets.size):
            sets[v] *= factor
        if c < 0:
            row[target] -= scale
        else:
            sets[c] -= scale


@jit_apart
def _add_log_probabilities(
    logits: Array, rows: Ints, targets: Ints, first: int, scale: np.float32, out: Array
) -> None:
    """Turns the logits of a cluster into their gradient.

    Args:
        logits: (r, tokens of the cluster); in: the scores; out: the gradient.
        rows: (r,), the rows of the batch that these are.
        targets: (N,), of all rows.
        first: the first token of the cluster.
        scale: factor of the gradient.
        out: (N,), log p of the target within its cluster is added.
    """
    for n in range(rows.size):
        row = logits[n]
        target = targets[rows[n]] - first
        own = row[target]
        m = row_max(row)
        exp_sum = shifted_exp(row, m, row)
        out[rows[n]] += log_probability(own, m, exp_sum)
        factor = scale * (ONE / exp_sum)
        for v in range(row.size):
            row[v] *= factor
        row[target] -= scale


@jit_apart
def _head_backward(
    weights: Weights,
    gradients: Gradients,
    states: Array,
    logits: Array,
    of_cluster: Array,
    block: RowBlock,
    dstates: Array,
) -> None:
    """Takes the gradient of the first level's logits back; dstates (N, H) is written."""
    matmul_rows(logits, weights.WyT, 0, dstates, False)
    matmul(of_cluster, weights.WcT, dstates, True)
    add_columns_transposed(states, logits, block, gradients.Wy, 0)
    add_matmul_transposed(states, of_cluster, block, gradients.Wc)
    add_rows(logits, gradients.by[: logits.shape[1]])
    add_rows(of_cluster, gradients.bc)


@jit_apart
def _cluster_backward(
    weights: Weights,
    gradients: Gradients,
    states: Array,
    logits: Array,
    first: int,
    block: RowBlock,
    rows: Ints,
    dstates: Array,
) -> None:
    """Takes the gradient of a cluster's logits back; rows (r,) of dstates (N, H) are added to."""
    H = states.shape[1]
    d_rows = np.empty((rows.size, H), np.float32)
    for n in range(rows.size):
        copy(dstates, rows[n] * H, d_rows, n * H, H)
    matmul_rows(logits, weights.WyT, first, d_rows, True)
    for n in range(rows.size):
        copy(d_rows, n * H, dstates, rows[n] * H, H)
    add_columns_transposed(states, logits, block, gradients.Wy, first)
    add_rows(logits, gradients.by[first : first + logits.shape[1]])


@jit
def _matrix(buffer: Array, rows: int, columns: int) -> Array:
    """Returns the first elements of a buffer as a matrix."""
    return buffer[: rows * columns].reshape((rows, columns))


@jit
def _gather(states: Array, rows: Ints) -> Array:
    """Returns some rows of states (N, H)."""
    H = states.shape[1]
    gathered = np.empty((rows.size, H), np.float32)
    for n in range(rows.size):
        copy(states, rows[n] * H, gathered, n * H, H)
    return gathered


@jit_apart
def factored_loss(
    weights: Weights,
    gradients: Gradients,
    states: Array,
    targets: Ints,
    scale: np.float32,
    logits: Array,
    block: RowBlock,
    dstates: Array,
) -> float:
    """Computes the cross-entropy of the targets and its gradients.

    Args:
        weights: packed, of a factored softmax, with the transposes.
        gradients: those of Wy, by, Wc and bc are added to.
        states: (N, H), what the output layer reads.
        targets: (N,); below 0 for rows without a target.
        scale: factor of the gradient of each counted row: 1 / rows for the mean.
        logits: (rows, width), overwritten; a row is no shorter than the head or a cluster.
        block: for rows of H elements.
        dstates: (N, H), written: the gradient of `states`.

    Returns:
        The sum of -log p(target) over the counted rows, in nats.
    """
    N = states.shape[0]
    clusters = weights.clusters
    out = np.empty(N, np.float32)
    buffer = logits.reshape(logits.size)
    width = clusters[0]
    for first in range(0, N, logits.shape[0]):
        last = min(N, first + logits.shape[0])
        part = states[first:last]
        head = _matrix(buffer, last - first, width)
        _set_logits(weights, part, 0, width, head)
        sets = _cluster_logits(weights, part)
        own = targets[first:last]
        _head_log_probabilities(head, sets, clusters, own, scale, out[first:last])
        _head_backward(weights, gradients, part, head, sets, block, dstates[first:last])
    starts = np.empty(clusters.size, np.int32)
    rows = _order_rows(clusters, targets, starts)
    for c in range(clusters.size - 1):
        width = clusters[c + 1] - clusters[c]
        for first in range(starts[c], starts[c + 1], logits.shape[0]):
            some = rows[first : min(starts[c + 1], first + logits.shape[0])]
            part = _gather(states, some)
            tail = _matrix(buffer, some.size, width)
            _set_logits(weights, part, clusters[c], clusters[c + 1], tail)
            _add_log_probabilities(tail, some, targets, clusters[c], scale, out)
            _cluster_backward(weights, gradients, part, tail, clusters[c], block, some, dstates)
    loss = 0.0
    for n in range(N):
        if targets[n] >= 0:
            loss -= float(out[n])
    return loss


@jit_apart
def factored_target_log_probabilities(
    weights: Weights, states: Array, targets: Ints, logits: Array, out: Array
) -> None:
    """Writes log p(target) of every row, bit for bit that of `log_probability_rows`.

    Args:
        weights: packed, of a factored softmax.
        states: (N, H), the last layer's.
        targets: (N,); below 0 for rows without a target.
        logits: as for `factored_loss`, overwritten.
        out: (N,), written: log-probabilities in nats, 0 where there is no target.
    """
    N = states.shape[0]
    clusters = weights.clusters
    buffer = logits.reshape(logits.size)
    width = clusters[0]
    for first in range(0, N, logits.shape[0]):
        last = min(N, first + logits.shape[0])
        part = states[first:last]
        head = _matrix(buffer, last - first, width)
        _set_logits(weights, part, 0, width, head)
        sets = _cluster_logits(weights, part)
        _head_log_probabilities(head, sets, clusters, targets[first:last], ONE, out[first:last])
    starts = np.empty(clusters.size, np.int32)
    rows = _order_rows(clusters, targets, starts)
    for c in range(clusters.size - 1):
        width = clusters[c + 1] - clusters[c]
        for first in range(starts[c], starts[c + 1], logits.shape[0]):
            some = rows[first : min(starts[c + 1], first + logits.shape[0])]
            tail = _matrix(buffer, some.size, width)
            _set_logits(weights, _gather(states, some), clusters[c], clusters[c + 1], tail)
            _add_log_probabilities(tail, some, targets, clusters[c], ONE, out)
