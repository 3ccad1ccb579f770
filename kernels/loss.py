"""Softmax cross-entropy over rows of logits, and the logarithm of the softmax.

log p_k = (l_k - m) - log(sum_v exp(l_v - m)), m = max_v l_v. The sum is one vector
of sums of every LANES-th term, its halves then added until one is left (see `simd`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, ZERO, exp, log
from treadle.kernels.intrinsics import larger
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.simd import (
    LANES,
    lane_maximum,
    lane_sum,
    load,
    load_padded,
    splat,
    store,
)

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_LOWEST = np.float32(-np.inf)


@jit
def largest(row: Array) -> np.float32:
    """Return the largest element of a row (V,); NaN if one is NaN."""
    V = row.size
    whole = V // LANES * LANES
    m = load_padded(row, whole, V - whole, _LOWEST)
    for v in range(0, whole, LANES):
        m = larger(m, load(row, v, LANES))
    return lane_maximum(m)


@jit
def total(row: Array) -> np.float32:
    """Return the sum of a row (V,), lane by lane."""
    V = row.size
    whole = V // LANES * LANES
    sums = splat(ZERO)
    for v in range(0, whole, LANES):
        sums = sums + load(row, v, LANES)
    return lane_sum(sums + load(row, whole, V - whole))


@jit_inline
def _exponentials(logits: Array, largest_logit: np.float32, v: int, left: int) -> Array:
    """exp(logits[v:] - largest_logit), and 0 past the first `left`."""
    return exp(load_padded(logits, v, left, _LOWEST) - largest_logit)


@jit
def shifted_exp(logits: Array, largest_logit: np.float32, out: Array) -> np.float32:
    """Write exp(logits - largest_logit) to `out`, both (V,), and return their sum."""
    V = logits.size
    whole = V // LANES * LANES
    sums = splat(ZERO)
    for v in range(0, whole, LANES):
        e = _exponentials(logits, largest_logit, v, LANES)
        store(out, v, LANES, e)
        sums = sums + e
    if whole < V:
        e = _exponentials(logits, largest_logit, whole, V - whole)
        store(out, whole, V - whole, e)
        sums = sums + e
    return lane_sum(sums)


@jit
def log_probability(
    logit: np.float32, largest_logit: np.float32, sum_of_exponentials: np.float32
) -> np.float32:
    """Return log p of a token, in nats, from its logit and the two summaries of its row."""
    return (logit - largest_logit) - log(sum_of_exponentials)


@jit
def cross_entropy(logits: Array, targets: Ints, scale: np.float32) -> float:
    """Turn logits into their gradient and return the loss.

    Args:
        logits: (N, V); in: the scores; out: scale * (softmax - one-hot of the target), 0 in
            rows without a target.
        targets: (N,); below 0 for rows without a target.
        scale: what the gradient of each counted row is multiplied by: 1 / rows for the mean.

    Returns:
        The sum of -log p(target) over the counted rows, in nats.
    """
    loss = 0.0
    for n in range(logits.shape[0]):
        row, target = logits[n], targets[n]
        if target < 0:
            row[:] = ZERO
            continue
        m = largest(row)
        at_target = row[target]
        s = shifted_exp(row, m, row)
        loss -= float(log_probability(at_target, m, s))
        factor = scale * (ONE / s)
        for v in range(row.size):
            row[v] *= factor
        row[target] -= scale
    return loss


@jit
def target_log_probabilities(logits: Array, targets: Ints, out: Array) -> None:
    """Write log p(target) of every row, in nats, and 0 where there is no target.

    Args:
        logits: (N, V); overwritten.
        targets: (N,); below 0 for rows without a target.
        out: (N,), written.
    """
    for n in range(logits.shape[0]):
        row, target = logits[n], targets[n]
        if target < 0:
            out[n] = ZERO
            continue
        m = largest(row)
        at_target = row[target]
        out[n] = log_probability(at_target, m, shifted_exp(row, m, row))
