"""Ranks: a token's place among all by probability, and the likeliest tokens in its place.

The order is that of the logits, which the softmax keeps; equals stand in the order of their ids.
DeepLog (Du et al. 2017) takes an event for normal where its rank is at most g.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.loss import exponentials, largest, log_probability
from treadle.kernels.network import output_logits, read_shard
from treadle.kernels.structures import Array, Bools, Ints, State, Weights, Workspace


@jit
def rank_of(logits: Array, token: int) -> int:
    """Return a token's place among logits (V,): 1 for the likeliest, equals by id."""
    mine, rank = logits[token], 1
    for v in range(token):  # two loops without a branch in them, which become vector instructions
        rank += logits[v] >= mine
    for v in range(token + 1, logits.size):
        rank += logits[v] > mine
    return rank


@jit
def likeliest_ids(logits: Array, ids: Ints) -> None:
    """Write the likeliest ids, likeliest first, equals by id.

    Args:
        logits: (V,).
        ids: (A,), written; A from 0 to V.
    """
    A = ids.size
    if A == 0:
        return
    for v in range(logits.size):
        place = min(v, A)  # how many stand there already
        if place == A and not logits[v] > logits[ids[A - 1]]:
            continue
        place = min(place, A - 1)
        while place > 0 and logits[v] > logits[ids[place - 1]]:
            ids[place] = ids[place - 1]
            place -= 1
        ids[place] = v


@jit_inline
def _score_row(
    row: Array, target: int, rank: Ints, ids: Ints, log_probabilities: Array
) -> np.float32:  # fmt: skip
    """Return log p(target), and write its rank (1,) or (0,) and the alternatives (A,).

    `row` (V,) holds the logits, and is overwritten.
    """
    if rank.size:
        rank[0] = rank_of(row, target)
    likeliest_ids(row, ids)
    for place in range(ids.size):
        log_probabilities[place] = row[ids[place]]
    at_target, m = row[target], largest(row)
    s = exponentials(row, m, row)
    for place in range(ids.size):
        log_probabilities[place] = log_probability(log_probabilities[place], m, s)
    return log_probability(at_target, m, s)


@jit
def score_shard_in_detail(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, targets: Ints,
    fresh: Bools, out: Array, ranks: Ints, ids: Ints, log_probabilities: Array,
) -> None:  # fmt: skip
    """Do what `network.score_shard` does, and tell of each target's rank and of the likeliest.

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
