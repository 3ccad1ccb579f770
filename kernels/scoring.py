"""`score_shard` computes log p of every target; `score_shard_in_detail` adds ranks.

Both run the forward pass of training, so their log-probabilities equal its loss to the bit.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.factored_softmax import factored_target_log_probabilities
from treadle.kernels.jit import jit_apart, jit_inline
from treadle.kernels.loss import log_probability, row_max, shifted_exp, target_log_probabilities
from treadle.kernels.network import output_logits, read_shard
from treadle.kernels.structs import Array, Bools, Ints, State, Weights, Workspace
from treadle.kernels.token_ranks import token_rank, top_k_tokens


@jit_apart
def score_shard(
    cell: int, weights: Weights, work: Workspace, state: State,
    tokens: Ints, targets: Ints, fresh: Bools, out: Array,
) -> None:  # fmt: skip
    """Runs the forward pass only, and writes log p of every target.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: as for `network.train_shard`; dhs is not used.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where there is nothing to score.
        fresh: (B,), rows that begin from zeros instead of `state`.
        out: (T, B), written: log-probabilities in nats, 0 where there is no target.
    """
    steps, B = tokens.shape
    N = steps * B
    read_shard(cell, weights, work, state, tokens, fresh)
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, work.hs.shape[3]))
    flat_targets = targets.reshape(N)
    flat_out = out.reshape(N)
    if weights.clusters.size > 1:
        factored_target_log_probabilities(weights, states, flat_targets, work.logits, flat_out)
        return
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        target_log_probabilities(logits, flat_targets[first:last], flat_out[first:last])


@jit_inline
def _score_row(
    row: Array, target: int, factored: bool, rank: Ints, ids: Ints, log_probabilities: Array
) -> np.float32:
    """Returns log p(target), and writes its rank and the likeliest tokens.

    Args:
        row: (V,), logits; overwritten.
        target: the token.
        factored: whether `row` holds log-probabilities already.
        rank: (1,), written, or (0,).
        ids: (A,), written: the likeliest tokens.
        log_probabilities: (A,), written: theirs, in nats.

    Returns:
        log p(target), in nats.
    """
    if rank.size:
        rank[0] = token_rank(row, target)
    top_k_tokens(row, ids)
    for place in range(ids.size):
        log_probabilities[place] = row[ids[place]]
    target_logit = row[target]
    m = row_max(row)
    exp_sum = shifted_exp(row, m, row)
    if factored:
        m = ZERO
        exp_sum = ONE
    for place in range(ids.size):
        log_probabilities[place] = log_probability(log_probabilities[place], m, exp_sum)
    return log_probability(target_logit, m, exp_sum)


@jit_apart
def score_shard_in_detail(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, targets: Ints,
    fresh: Bools, out: Array, ranks: Ints, ids: Ints, log_probabilities: Array,
) -> None:  # fmt: skip
    """Does what `score_shard` does, and writes each target's rank and the likeliest tokens.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: as for `network.train_shard`; dhs is not used.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where there is nothing to score.
        fresh: (B,), rows that begin from zeros instead of `state`.
        out: (T, B), written: log-probabilities in nats, bit for bit those of `score_shard`.
        ranks: (T, B, 1), written: each target's rank, 0 where there is no target; (T, B, 0) to
            leave the ranks out.
        ids: (T, B, A), written: the likeliest tokens, 0 where there is no target.
        log_probabilities: (T, B, A), written: theirs, in nats.
    """
    steps, B = tokens.shape
    N = steps * B
    read_shard(cell, weights, work, state, tokens, fresh)
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, work.hs.shape[3]))
    out[:] = ZERO
    ranks[:] = 0
    factored = weights.clusters.size > 1
    ids[:] = 0
    log_probabilities[:] = ZERO
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        for n in range(first, last):
            t = n // B
            b = n % B
            target = targets[t, b]
            if target >= 0:
                row = logits[n - first]
                out[t, b] = _score_row(
                    row, target, factored, ranks[t, b], ids[t, b], log_probabilities[t, b]
                )
