"""Ranks: a token's place among all by probability, and the likeliest tokens in its place.

The order is that of the logits, which the softmax keeps; equals stand in the order of their ids.
DeepLog (Du et al. 2017) takes an event for normal where its rank is at most g.
"""

from __future__ import annotations

from treadle.kernels.jit import jit
from treadle.kernels.structs import Array, Ints


@jit
def token_rank(logits: Array, token: int) -> int:
    """Return a token's place among logits (V,): 1 for the likeliest, equals by id."""
    mine, rank = logits[token], 1
    for v in range(token):  # two loops without a branch in them, which become vector instructions
        rank += logits[v] >= mine
    for v in range(token + 1, logits.size):
        rank += logits[v] > mine
    return rank


@jit
def top_k_tokens(logits: Array, ids: Ints) -> None:
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
