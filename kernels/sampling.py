"""`sample` draws one token from a row of logits.

1. Temperature 0 takes the likeliest token, the lowest id of equals.
2. Otherwise the logits, less the largest, are divided by the temperature.
3. Of all tokens the `top_k` likeliest stay, lower ids first among equals.
4. Of these the fewest likeliest stay whose probability reaches `top_p`.
5. Of these stay those at least `min_p` times as likely as the likeliest.
6. Of these the fewest stay whose surprisal is nearest to the mean surprisal, lower ids first among
   equals, until their probability reaches `typical_p`.
7. The remaining tokens are walked through in ascending id until their summed weight exceeds u times
   the whole; the token where it does is drawn. `draw` says in which order the weights are added.

The nucleus (4) is from Holtzman et al., "The curious case of neural text degeneration" (2020),
min-p (5) from Nguyen et al., "Turning up the heat: min-p sampling" (2024), typical sampling (6)
from Meister et al., "Locally typical sampling" (2023). Steps 3 to 6 are known as truncation. A
token of logit -inf has no weight and is never drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treadle.kernels.activations import ONE, ZERO, log
from treadle.kernels.intrinsics import bits_from_float
from treadle.kernels.jit import jit, jit_apart, jit_inline, jit_views_apart
from treadle.kernels.loss import row_max, row_sum, shifted_exp
from treadle.kernels.radix_sort import (
    COUNTS,
    Pairs,
    SortScratch,
    make_pair,
    pair_id,
    sort_smallest,
)
from treadle.kernels.simd import LANES, lane_sum, load, splat
from treadle.kernels.structs import Array

_LOWEST = np.float32(-100.0)
_STRETCH = 16 * LANES
"""Weights that are summed together first while a draw looks for its place."""
_HALF_LAST_BIT = np.float32(2.0**-25)


class Truncation(NamedTuple):
    """The tokens that a draw is restricted to; scalars."""

    top_k: int
    """0 for all tokens."""
    top_p: np.float32
    """1 for all tokens."""
    min_p: np.float32
    """0 for all tokens."""
    typical_p: np.float32
    """1 for all tokens."""


class SamplingScratch(NamedTuple):
    """The memory that truncation of V weights works in; overwritten."""

    distance: Array
    """(V,)."""
    sort: SortScratch
    """For V keys."""


@jit
def allocate_sampling_scratch(V: int) -> SamplingScratch:
    """Allocates what `sample` works in: once for many tokens, since it is large."""
    pairs = np.empty((2, V), np.int64)
    counts = np.empty(COUNTS, np.int32)
    return SamplingScratch(np.empty(V, np.float32), SortScratch(pairs[0], pairs[1], counts))


@jit_inline
def truncates(truncation: Truncation) -> bool:
    """Returns whether `sample` leaves out any token."""
    return bool(needs_sorting(truncation) or truncation.min_p > ZERO)


@jit_inline
def needs_sorting(truncation: Truncation) -> bool:
    """Returns whether `sample` sorts, and so needs scratch."""
    sorts = truncation.top_k > 0 or truncation.top_p < ONE or truncation.typical_p < ONE
    return bool(sorts)


@jit
def argmax(logits: Array) -> int:
    """Returns the lowest id among the largest logits (V,)."""
    best = 0
    for v in range(logits.size):
        if logits[v] > logits[best]:
            best = v
    return best


@jit
def _count_to_threshold(weights: Array, order: Pairs, ordered: int, threshold: np.float32) -> int:
    """Returns how many tokens, in order, it takes for their summed weight to reach a threshold."""
    running = ZERO
    kept = 0
    while kept < ordered and (kept == 0 or running < threshold):
        running += weights[pair_id(order[kept])]
        kept += 1
    return kept


@jit_apart
def _keep_top_k_and_top_p(
    weights: Array, top_k: int, top_p: np.float32, scratch: SortScratch
) -> None:
    """Sets to 0 the weights (V,) that top-k and top-p exclude; at least one stays."""
    max_weight = row_max(weights)
    max_bits = bits_from_float(max_weight)
    # Added to a sum that begins with the largest weight, anything smaller is lost in rounding.
    smallest = max_weight * _HALF_LAST_BIT
    n = 0
    for v in range(weights.size):
        scratch.pairs[n] = make_pair(np.int32(max_bits - bits_from_float(weights[v])), v)
        n += weights[v] >= smallest
    if n == 0:  # every weight is NaN
        return
    ordered = min(n, top_k) if top_k > 0 else n
    order = sort_smallest(scratch, n, ordered)
    whole = ZERO
    for rank in range(ordered):
        whole += weights[pair_id(order[rank])]
    kept = _count_to_threshold(weights, order, ordered, top_p * whole)
    last = pair_id(order[kept - 1])
    border = weights[last]
    for v in range(weights.size):
        stays = weights[v] > border or (weights[v] == border and v <= last)
        weights[v] = weights[v] if stays else ZERO


@jit
def _keep_min_p(weights: Array, min_p: np.float32) -> None:
    """Sets to 0 the weights (V,) below min_p times the largest, which itself stays."""
    floor = min_p * row_max(weights)
    for v in range(weights.size):
        if weights[v] < floor:
            weights[v] = ZERO


@jit_apart
def _keep_typical(weights: Array, typical_p: np.float32, scratch: SamplingScratch) -> None:
    """Sets to 0 the weights (V,) whose surprisal is far from the mean one; at least one stays."""
    V = weights.size
    whole = row_sum(weights)
    distance = scratch.distance
    pairs = scratch.sort.pairs
    for v in range(V):
        distance[v] = -log(weights[v] / whole)
    entropy = ZERO
    for v in range(V):
        if weights[v] > ZERO:
            entropy += weights[v] / whole * distance[v]
    n = 0
    for v in range(V):
        distance[v] = abs(distance[v] - entropy)
        pairs[n] = make_pair(bits_from_float(distance[v]), v)
        n += weights[v] > ZERO
    if n == 0:  # every weight is NaN
        return
    order = sort_smallest(scratch.sort, n, n)
    kept = _count_to_threshold(weights, order, n, typical_p * whole)
    last = pair_id(order[kept - 1])
    border = distance[last]
    for v in range(V):
        stays = distance[v] < border or (distance[v] == border and v <= last)
        weights[v] = weights[v] if stays else ZERO


@jit_inline
def _apply_temperature(
    logits: Array, max_logit: np.float32, temperature: np.float32, out: Array
) -> np.float32:
    """Writes exp((logits - max_logit) / temperature), all (V,), and returns the sum."""
    # The largest logit is subtracted first, and the difference bounded to where exp gives 0, so
    # that a small temperature does not overflow.
    lowest = _LOWEST * temperature
    for v in range(logits.size):
        difference = logits[v] - max_logit
        out[v] = difference / temperature if difference > lowest else _LOWEST
    return shifted_exp(out, ZERO, out)


@jit_inline
def _block_sum(weights: Array, first: int) -> np.float32:
    """Returns the sum of LANES weights (V,) from `first` on, lane by lane."""
    if first + LANES <= weights.size:
        return lane_sum(load(weights, first, LANES))
    return lane_sum(load(weights, first, weights.size - first))


@jit
def _stretch_sum(weights: Array, first: int) -> np.float32:
    """Returns the sum of _STRETCH weights (V,) from `first` on, lane by lane."""
    sums = splat(ZERO)
    for v in range(first, min(first + _STRETCH, weights.size - LANES + 1), LANES):
        sums = sums + load(weights, v, LANES)
    whole = weights.size // LANES * LANES
    if whole < first + _STRETCH:
        sums = sums + load(weights, whole, weights.size - whole)
    return lane_sum(sums)


@jit
def draw(weights: Array, threshold: np.float32) -> int:
    """Returns the first place at which the summed weights (V,) exceed a threshold.

    The sum grows by stretches of _STRETCH weights, within the stretch that exceeds the threshold
    by blocks of LANES, and within the block by single weights. Where rounding leaves none that
    exceeds it, the last one with a weight is taken. So the order of all sums is the same on every
    processor.
    """
    V = weights.size
    running = ZERO
    stretch = 0
    if V > _STRETCH:
        before = ZERO
        for first in range(0, V, _STRETCH):
            part = _stretch_sum(weights, first)
            if part > ZERO:
                stretch = first
                running = before
            before += part
            if before > threshold:
                break
    block = stretch
    before = running
    for first in range(stretch, min(stretch + _STRETCH, V), LANES):
        part = _block_sum(weights, first)
        if part > ZERO:
            block = first
            running = before
        before += part
        if before > threshold:
            break
    place = block
    for v in range(block, min(block + LANES, V)):
        if weights[v] > ZERO:
            place = v
            running += weights[v]
            if running > threshold:
                break
    return place


@jit_views_apart
def sample(
    logits: Array, max_logit: np.float32, temperature: np.float32, truncation: Truncation,
    u: np.float32, weights: Array, total: np.float32, scratch: SamplingScratch,
) -> int:  # fmt: skip
    """Draws one token.

    Args:
        logits: (V,), at least one of them above -inf.
        max_logit: the largest of them.
        temperature: 0 for greedy.
        truncation: the tokens to draw from.
        u: a uniform random number from [0, 1).
        weights: (V,); in: exp(logits - max_logit), the weights at temperature 1; overwritten.
        total: the sum of these weights.
        scratch: for V weights; for none where `needs_sorting` is False.

    Returns:
        The token's id.
    """
    if temperature == ZERO:
        return argmax(logits)
    if temperature != ONE:
        total = _apply_temperature(logits, max_logit, temperature, weights)
    if truncates(truncation):
        if truncation.top_k > 0 or truncation.top_p < ONE:
            _keep_top_k_and_top_p(weights, truncation.top_k, truncation.top_p, scratch.sort)
        if truncation.min_p > ZERO:
            _keep_min_p(weights, truncation.min_p)
        if truncation.typical_p < ONE:
            _keep_typical(weights, truncation.typical_p, scratch)
        total = row_sum(weights)
    return draw(weights, u * total)
