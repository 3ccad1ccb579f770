"""One draw: a token from a row of logits.

1. temperature 0 takes the likeliest token, the lowest id of equals;
2. else logits, less the largest, are divided by the temperature;
3. of all tokens the `top_k` likeliest stay, lower ids first among equals;
4. of these the fewest likeliest stay whose probability reaches `top_p`;
5. of these stay those at least `min_p` times as likely as the likeliest;
6. of these the fewest stay whose surprisal is nearest to the mean one, lower ids first among
   equals, until their probability reaches `typical_p`;
7. the draw walks those left in ascending id until their summed weight exceeds u times the whole.

The nucleus (4) is from Holtzman et al., "The curious case of neural text degeneration" (2020),
min-p (5) from Nguyen et al., "Turning up the heat: min-p sampling" (2024), typical sampling (6)
from Meister et al., "Locally typical sampling" (2023). A token of logit -inf has no
weight and is never drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treadle.kernels.activations import ONE, ZERO, log
from treadle.kernels.intrinsics import bits_from_float
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.loss import largest, shifted_exp, total
from treadle.kernels.radix_sort import (
    COUNTS,
    Pairs,
    SortScratch,
    in_order,
    make_pair,
    pair_id,
)
from treadle.kernels.structs import Array

_LOWEST = np.float32(-100.0)
_NOTICED = np.float32(2.0**-25)


class Truncation(NamedTuple):
    """Which tokens a draw is among; scalars."""

    top_k: int
    """0 for all tokens."""
    top_p: np.float32
    """1 for all tokens."""
    min_p: np.float32
    """0 for all tokens."""
    typical_p: np.float32
    """1 for all tokens."""


class SamplingScratch(NamedTuple):
    """What cutting V weights works in; overwritten."""

    distance: Array
    """(V,)."""
    selection: SortScratch
    """For V keys."""


@jit
def allocate_sampling_scratch(V: int) -> SamplingScratch:
    """Allocate what `draw` works in: once for many draws, since it is large."""
    pairs, counts = np.empty((2, V), np.int64), np.empty(COUNTS, np.int32)
    return SamplingScratch(np.empty(V, np.float32), SortScratch(pairs[0], pairs[1], counts))


@jit
def sorts(cuts: Truncation) -> bool:
    """Tell whether a draw sorts, and so needs scratch."""
    return bool(cuts.top_k > 0 or cuts.top_p < ONE or cuts.typical_p < ONE)


@jit
def likeliest(logits: Array) -> int:
    """Return the lowest id among the largest logits (V,)."""
    best = 0
    for v in range(logits.size):
        if logits[v] > logits[best]:
            best = v
    return best


@jit
def _kept(weights: Array, order: Pairs, ordered: int, threshold: np.float32) -> int:
    """Return how many tokens stay, in order, until their weights, added up, reach a threshold."""
    running, kept = ZERO, 0
    while kept < ordered and (kept == 0 or running < threshold):
        running += weights[pair_id(order[kept])]
        kept += 1
    return kept


@jit
def _cut(weights: Array, top_k: int, top_p: np.float32, scratch: SortScratch) -> None:
    """Set to 0 the weights (V,) that top-k and top-p exclude; at least one stays."""
    most = largest(weights)
    most_bits = bits_from_float(most)
    # A sum that begins with the largest takes no notice of less than half of its last bit.
    least, n = most * _NOTICED, 0
    for v in range(weights.size):
        scratch.pairs[n] = make_pair(np.int32(most_bits - bits_from_float(weights[v])), v)
        n += weights[v] >= least
    if n == 0:  # no number among them
        return
    ordered = min(n, top_k) if top_k > 0 else n
    order = in_order(scratch, n, ordered)
    whole = ZERO
    for rank in range(ordered):
        whole += weights[pair_id(order[rank])]
    last = pair_id(order[_kept(weights, order, ordered, top_p * whole) - 1])
    border = weights[last]
    for v in range(weights.size):
        stays = weights[v] > border or (weights[v] == border and v <= last)
        weights[v] = weights[v] if stays else ZERO


@jit
def _cut_unlikely(weights: Array, min_p: np.float32) -> None:
    """Set to 0 the weights (V,) below min_p times the largest, which itself stays."""
    floor = min_p * largest(weights)
    for v in range(weights.size):
        if weights[v] < floor:
            weights[v] = ZERO


@jit
def _cut_untypical(weights: Array, typical_p: np.float32, scratch: SamplingScratch) -> None:
    """Set to 0 the weights (V,) whose surprisal is far from the mean one; at least one stays."""
    V, whole, entropy = weights.size, total(weights), ZERO
    distance, pairs = scratch.distance, scratch.selection.pairs
    for v in range(V):
        distance[v] = -log(weights[v] / whole)
    for v in range(V):
        if weights[v] > ZERO:
            entropy += weights[v] / whole * distance[v]
    n = 0
    for v in range(V):
        distance[v] = abs(distance[v] - entropy)
        pairs[n] = make_pair(bits_from_float(distance[v]), v)
        n += weights[v] > ZERO
    if n == 0:  # no number among them
        return
    order = in_order(scratch.selection, n, n)
    last = pair_id(order[_kept(weights, order, n, typical_p * whole) - 1])
    border = distance[last]
    for v in range(V):
        stays = distance[v] < border or (distance[v] == border and v <= last)
        weights[v] = weights[v] if stays else ZERO


@jit_inline
def _heat(logits: Array, largest_logit: np.float32, temperature: np.float32, out: Array) -> None:
    """Write exp((logits - largest_logit) / temperature), all (V,)."""
    # Less the largest first, and never far below what exp makes 0 of, lest a small temperature
    # overflow.
    lowest = _LOWEST * temperature
    for v in range(logits.size):
        difference = logits[v] - largest_logit
        out[v] = difference / temperature if difference > lowest else _LOWEST
    shifted_exp(out, ZERO, out)


@jit
def draw(
    logits: Array, largest_logit: np.float32, temperature: np.float32, cuts: Truncation,
    u: np.float32, weights: Array, scratch: SamplingScratch,
) -> int:  # fmt: skip
    """Draw one token.

    Args:
        logits: (V,), at least one of them above -inf.
        largest_logit: the largest of them.
        temperature: 0 for greedy.
        cuts: which tokens to draw among.
        u: a uniform draw from [0, 1).
        weights: (V,); in: exp(logits - largest_logit), what temperature 1 draws from; overwritten.
        scratch: for V weights; for none where no cut sorts.

    Returns:
        The token's id.
    """
    if temperature == ZERO:
        return likeliest(logits)
    if temperature != ONE:
        _heat(logits, largest_logit, temperature, weights)
    if cuts.top_k > 0 or cuts.top_p < ONE:
        _cut(weights, cuts.top_k, cuts.top_p, scratch.selection)
    if cuts.min_p > ZERO:
        _cut_unlikely(weights, cuts.min_p)
    if cuts.typical_p < ONE:
        _cut_untypical(weights, cuts.typical_p, scratch)
    threshold = u * total(weights)
    running, token = ZERO, 0
    for v in range(weights.size):
        if weights[v] > ZERO:
            running += weights[v]
            token = v
            if running > threshold:
                break
    return token
