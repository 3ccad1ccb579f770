"""`score_shard` computes log p of every target; `score_shard_in_detail` adds ranks."""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.loss import largest, log_probability, shifted_exp, target_log_probabilities
from treadle.kernels.network import output_logits, read_shard
from treadle.kernels.structs import Array, Bools, Ints, State, Weights, Workspace
from treadle.kernels.token_ranks import token_rank, top_k_tokens


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
    read_shard(cell, weights, work, state, tokens, fresh)
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    flat_targets, flat_out = targets.reshape(N), out.reshape(N)
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        target_log_probabilities(logits, flat_targets[first:last], flat_out[first:last])


@jit_inline
def _score_row(
    row: Array, target: int, rank: Ints, ids: Ints, log_probabilities: Array
) -> np.float32:  # fmt: skip
    """Return log p(target), and write its rank (1,) or (0,) and the alternatives (A,).

    `row` (V,) holds the logits, and is overwritten.
    """
    if rank.size:
        rank[0] = token_rank(row, target)
    top_k_tokens(row, ids)
    for place in range(ids.size):
        log_probabilities[place] = row[ids[place]]
    at_target, m = row[target], largest(row)
    s = shifted_exp(row, m, row)
    for place in range(ids.size):
        log_probabilities[place] = log_probability(log_probabilities[place], m, s)
    return log_probability(at_target, m, s)


@jit
def score_shard_in_detail(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, targets: Ints,
    fresh: Bools, out: Array, ranks: Ints, ids: Ints, log_probabilities: Array,
) -> None:  # fmt: skip
    """Do what `scoring.score_shard` does, and tell of each target's rank and of the likeliest.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: as for `train_shard`; dhs is not used.
        state: in: the state before the window; out: after it.
        tokens: (T, B), below V.
        targets: (T, B); below 0 where nothing is to be scored.
        fresh: (B,), rows that begin from zeros instead of `state`.
        out: (T, B), written: log-probabilities in nats, bit for bit those of `score_shard`.
        ranks: (T, B, 1), written: each target's rank, 0 where there is none; (T, B, 0) for none.
        ids: (T, B, A), written: the likeliest tokens, 0 where there is no target.
        log_probabilities: (T, B, A), written: theirs, in nats.
    """
    steps, B = tokens.shape
    N, H = steps * B, work.hs.shape[3]
    read_shard(cell, weights, work, state, tokens, fresh)
    states = work.hs[work.hs.shape[0] - 1, 1 : steps + 1].reshape((N, H))
    ranks[:], ids[:], log_probabilities[:], out[:] = 0, 0, ZERO, ZERO
    for first in range(0, N, work.logits.shape[0]):
        last = min(N, first + work.logits.shape[0])
        logits = work.logits[: last - first]
        output_logits(weights, states[first:last], logits)
        for n in range(first, last):
            t, b = n // B, n % B
            if targets[t, b] >= 0:
                out[t, b] = _score_row(
                    logits[n - first], targets[t, b], ranks[t, b], ids[t, b],
                    log_probabilities[t, b],
                )  # fmt: skip
