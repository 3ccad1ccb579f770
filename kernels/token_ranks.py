"""`token_rank` and `top_k_tokens` order the tokens of a row of logits by probability.

The order is that of the logits, which the softmax keeps; equal logits are in the order of their
ids. DeepLog (Du et al. 2017) takes an event for normal if its rank is at most g.
"""

from __future__ import annotations

from treadle.kernels.jit import jit_apart
from treadle.kernels.structs import Array, Ints


@jit_apart
def token_rank(logits: Array, token: int) -> int:
    """Returns a token's rank among logits (V,): 1 for the likeliest, equals by id."""
    own = logits[token]
    rank = 1
    for v in range(token):  # two loops without a branch in them, which become vector instructions
        rank += logits[v] >= own
    for v in range(token + 1, logits.size):
        rank += logits[v] > own
    return rank


@jit_apart
def top_k_tokens(logits: Array, ids: Ints) -> None:
    """Writes the likeliest tokens, likeliest first, equals by id.

    Args:
        logits: (V,).
        ids: (A,), written; A from 0 to V.
    """
    A = ids.size
    if A == 0:
        return
    for v in range(logits.size):
        place = min(v, A)  # how many are in the list already
        if place == A and not logits[v] > logits[ids[A - 1]]:
            continue
        place = min(place, A - 1)
        while place > 0 and logits[v] > logits[ids[place - 1]]:
            ids[place] = ids[place - 1]
            place -= 1
        ids[place] = v
