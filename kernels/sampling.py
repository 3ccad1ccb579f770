"""`sample` draws one token from a row of logits.

1. Temperature 0 takes the likeliest token, the lowest id of equals.
2. Otherwise the logits, less the largest, are divided by the temperature.
3. Of all tokens the `top_k` likeliest stay, lower ids first among equals.
4. Of these the fewest likeliest stay whose probability reaches `top_p`, equals as in step 3.
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
from treadle.kernels.intrinsics import any_reaches, bits_from_float, float_from_bits, maximum
from treadle.kernels.jit import jit, jit_apart, jit_inline, jit_views, jit_views_apart
from treadle.kernels.loss import row_max, row_sum, shifted_exp
from treadle.kernels.selection import BINS, Longs, make_pair, select
from treadle.kernels.simd import LANES, lane_sum, load, splat, store
from treadle.kernels.structs import Array, Ints

_LOWEST = np.float32(-100.0)
_TINIEST = np.float32(2.0**-149)
_UNITS = np.float64(2.0**38)
_STRETCH = 16 * LANES
"""Weights that are summed together first while a draw looks for its place."""
_GROUPS = 4
"""Groups of weights for each one to find, at least."""
_BISECTIONS = 11


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

    weights: Array
    """(V,), those of the tokens that stay, in ascending order of their ids."""
    ids: Ints
    """(V,), their ids."""
    distance: Array
    """(V,)."""
    pairs: Longs
    """(V,)."""
    shares: Longs
    """(V,)."""
    bins: Longs
    """(BINS,)."""


@jit_apart
def allocate_sampling_scratch(V: int) -> SamplingScratch:
    """Allocates what `sample` works in: once for many tokens, since it is large."""
    bins = np.empty(BINS if V else 0, np.int64)
    floats = np.empty((2, V), np.float32)
    longs = np.empty((2, V), np.int64)
    return SamplingScratch(floats[0], np.empty(V, np.int32), floats[1], longs[0], longs[1], bins)


@jit_inline
def truncates(truncation: Truncation) -> bool:
    """Returns whether `sample` may leave out tokens, for which it needs scratch."""
    likeliest = truncation.top_k > 0 or truncation.top_p < ONE
    return bool(likeliest or truncation.min_p > ZERO or truncation.typical_p < ONE)


@jit_views
def argmax(logits: Array) -> int:
    """Returns the lowest id among the largest logits (V,)."""
    largest = row_max(logits)
    for v in range(logits.size):
        if logits[v] == largest:
            return int(v)
    return 0  # a logit is NaN


@jit_views
def _lower_bound(weights: Array, max_weight: np.float32, k: int, maxima: Array) -> np.float32:
    """Returns a number that at least k weights (V,) reach, and not many more.

    It is one that k of the largest weights of disjoint groups reach. `maxima` (V,) is overwritten.
    """
    blocks = weights.size // LANES
    rows = max(16, k // (LANES // _GROUPS) + 1)  # of LANES groups each
    if blocks < 2 * rows:
        return ZERO
    each = blocks // rows
    for row in range(rows):
        first = row * each * LANES
        largest = load(weights, first, LANES)
        for v in range(first + LANES, first + each * LANES, LANES):
            largest = maximum(largest, load(weights, v, LANES))
        store(maxima, row * LANES, LANES, largest)
    low = np.int32(0)
    high = bits_from_float(max_weight)
    for _ in range(_BISECTIONS):
        middle = np.int32(low + (high - low) // np.int32(2))
        bound = float_from_bits(middle)
        reached = 0
        for group in range(rows * LANES):
            reached += maxima[group] >= bound
        if reached >= k:
            low = middle
        else:
            high = middle
    return float_from_bits(low)


@jit_views
def _gather(weights: Array, floor: np.float32, scratch: SamplingScratch) -> int:
    """Keeps the weights (V,) above 0 that reach a floor, and returns their number."""
    V = weights.size
    least = max(floor, _TINIEST)
    wide = 4 * LANES
    n = 0
    for first in range(0, V, wide):
        if first + wide <= V:
            low = maximum(load(weights, first, LANES), load(weights, first + LANES, LANES))
            third = load(weights, first + 2 * LANES, LANES)
            high = maximum(third, load(weights, first + 3 * LANES, LANES))
            if not any_reaches(maximum(low, high), least):
                continue
        for block in range(first, min(first + wide, V), LANES):
            if block + LANES <= V and not any_reaches(load(weights, block, LANES), least):
                continue
            for v in range(block, min(block + LANES, V)):
                scratch.weights[n] = weights[v]
                scratch.ids[n] = v
                n += weights[v] >= least
    return int(n)


@jit_inline
def _keep(scratch: SamplingScratch, kept: int, i: int, stays: bool | np.bool_) -> int:
    """Keeps weight i behind `kept` others if it stays, and returns how many are kept then."""
    scratch.weights[kept] = scratch.weights[i]
    scratch.ids[kept] = scratch.ids[i]
    return int(kept + stays)


@jit_views
def _keep_top_k(scratch: SamplingScratch, n: int, top_k: int) -> int:
    """Keeps the `top_k` largest of n weights, fewer than n, and returns their number."""
    max_bits = bits_from_float(row_max(scratch.weights[:n]))
    for i in range(n):
        key = np.int32(max_bits - bits_from_float(scratch.weights[i]))
        scratch.pairs[i] = make_pair(key, i)
        scratch.shares[i] = 1
    border = select(scratch.pairs, scratch.shares, n, top_k, scratch.bins)
    kept = 0
    for i in range(n):
        key = np.int32(max_bits - bits_from_float(scratch.weights[i]))
        kept = _keep(scratch, kept, i, make_pair(key, i) <= border)
    return kept


@jit_views
def _target(scratch: SamplingScratch, n: int, p: np.float32) -> int:
    """Writes the shares of n weights in their sum.

    A share is the weight in units of 2**-38 of the largest one, cut off. Whole numbers add up to
    the same sum in any order.

    Returns:
        The share p of that sum, at least 1.
    """
    scale = _UNITS / np.float64(row_max(scratch.weights[:n]))
    whole = np.int64(0)
    for i in range(n):
        share = np.int64(np.float64(scratch.weights[i]) * scale)
        scratch.shares[i] = share
        whole += share
    return int(max(np.int64(np.ceil(np.float64(p) * np.float64(whole))), np.int64(1)))


@jit_views
def _keep_top_p(scratch: SamplingScratch, n: int, top_p: np.float32) -> int:
    """Keeps the fewest largest of n weights that reach `top_p`, and returns their number."""
    max_bits = bits_from_float(row_max(scratch.weights[:n]))
    target = _target(scratch, n, top_p)
    for i in range(n):
        key = np.int32(max_bits - bits_from_float(scratch.weights[i]))
        scratch.pairs[i] = make_pair(key, i)
    border = select(scratch.pairs, scratch.shares, n, target, scratch.bins)
    kept = 0
    for i in range(n):
        key = np.int32(max_bits - bits_from_float(scratch.weights[i]))
        kept = _keep(scratch, kept, i, make_pair(key, i) <= border)
    return kept


@jit_views
def _keep_min_p(scratch: SamplingScratch, n: int, floor: np.float32) -> int:
    """Keeps the weights of n that reach a floor, and returns their number."""
    kept = 0
    for i in range(n):
        kept = _keep(scratch, kept, i, scratch.weights[i] >= floor)
    return kept


@jit_views
def _keep_typical(scratch: SamplingScratch, n: int, typical_p: np.float32) -> int:
    """Keeps the fewest of n weights whose surprisal is nearest to the mean one."""
    weights = scratch.weights[:n]
    distance = scratch.distance[:n]
    whole = row_sum(weights)
    for i in range(n):
        distance[i] = -log(weights[i] / whole) * (weights[i] / whole)
    entropy = row_sum(distance)
    target = _target(scratch, n, typical_p)
    for i in range(n):
        distance[i] = abs(-log(weights[i] / whole) - entropy)
        scratch.pairs[i] = make_pair(bits_from_float(distance[i]), i)
    border = select(scratch.pairs, scratch.shares, n, target, scratch.bins)
    kept = 0
    for i in range(n):
        kept = _keep(scratch, kept, i, make_pair(bits_from_float(distance[i]), i) <= border)
    return kept


@jit_views_apart
def truncate(
    weights: Array, max_weight: np.float32, truncation: Truncation, scratch: SamplingScratch
) -> int:
    """Writes the weights and ids of the tokens that stay to `scratch`.

    Args:
        weights: (V,).
        max_weight: the largest of them.
        truncation: which tokens stay.
        scratch: for V weights.

    Returns:
        The number of tokens that stay; 0 where every weight is NaN.
    """
    top_k, top_p, min_p, typical_p = truncation
    likeliest = top_k > 0 or top_p < ONE
    floor = ZERO if likeliest else min_p * max_weight
    if 0 < top_k < weights.size:
        floor = _lower_bound(weights, max_weight, top_k, scratch.distance)
    n = _gather(weights, floor, scratch)
    if 0 < top_k < n:
        n = _keep_top_k(scratch, n, top_k)
    if top_p < ONE and n > 0:
        n = _keep_top_p(scratch, n, top_p)
    if likeliest and min_p > ZERO:
        n = _keep_min_p(scratch, n, min_p * max_weight)
    if typical_p < ONE and n > 0:
        n = _keep_typical(scratch, n, typical_p)
    return n


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
        scratch: for V weights; for none where `truncates` is False.

    Returns:
        The token's id.
    """
    if temperature == ZERO:
        return argmax(logits)
    if temperature != ONE:
        total = _apply_temperature(logits, max_logit, temperature, weights)
    if truncates(truncation):
        n = truncate(weights, ONE, truncation, scratch)  # exp(0) is exactly 1
        if n == 0:  # every weight is NaN
            return 0
        kept = scratch.weights[:n]
        return int(scratch.ids[draw(kept, u * row_sum(kept))])
    return draw(weights, u * total)
