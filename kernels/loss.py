"""`cross_entropy` computes the softmax cross-entropy over rows of logits, and its gradient.

log p_k = (l_k - m) - log(sum_v exp(l_v - m)), m = max_v l_v. A sum over a row is one vector of
sums of every LANES-th term, whose upper half is added to the lower one until one is left (see
`simd`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, ZERO, exp, log
from treadle.kernels.intrinsics import larger
from treadle.kernels.jit import jit_apart, jit_inline, jit_views, jit_views_apart
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


@jit_views
def row_max(row: Array) -> np.float32:
    """Returns the largest element of a row (V,); NaN if one is NaN."""
    V = row.size
    whole = V // LANES * LANES
    m = load_padded(row, whole, V - whole, _LOWEST)
    wide = whole // (4 * LANES) * (4 * LANES)
    if wide > 0:  # four at a time, since each waits for the one before it
        m0 = m
        m1 = m
        m2 = m
        m3 = m
        for v in range(0, wide, 4 * LANES):
            m0 = larger(m0, load(row, v, LANES))
            m1 = larger(m1, load(row, v + LANES, LANES))
            m2 = larger(m2, load(row, v + 2 * LANES, LANES))
            m3 = larger(m3, load(row, v + 3 * LANES, LANES))
        m = larger(larger(m0, m1), larger(m2, m3))
    for v in range(wide, whole, LANES):
        m = larger(m, load(row, v, LANES))
    return lane_maximum(m)


@jit_views
def row_sum(row: Array) -> np.float32:
    """Returns the sum of a row (V,), lane by lane."""
    V = row.size
    whole = V // LANES * LANES
    sums = splat(ZERO)
    for v in range(0, whole, LANES):
        sums = sums + load(row, v, LANES)
    return lane_sum(sums + load(row, whole, V - whole))


@jit_inline
def _exp_lanes(logits: Array, max_logit: np.float32, v: int, count: int) -> Array:
    """Returns exp(logits[v:] - max_logit) as a vector, 0 past the first `count` lanes."""
    return exp(load_padded(logits, v, count, _LOWEST) - max_logit)


@jit_views
def shifted_exp(logits: Array, max_logit: np.float32, out: Array) -> np.float32:
    """Writes exp(logits - max_logit) and returns its sum, the denominator of the softmax.

    Args:
        logits: (V,).
        max_logit: the largest of them.
        out: (V,), written; it may be `logits`.

    Returns:
        The sum of `out`.
    """
    V = logits.size
    whole = V // LANES * LANES
    sums = splat(ZERO)
    for v in range(0, whole, LANES):
        e = _exp_lanes(logits, max_logit, v, LANES)
        store(out, v, LANES, e)
        sums = sums + e
    if whole < V:
        e = _exp_lanes(logits, max_logit, whole, V - whole)
        store(out, whole, V - whole, e)
        sums = sums + e
    return lane_sum(sums)


@jit_views
def log_probability(logit: np.float32, max_logit: np.float32, exp_sum: np.float32) -> np.float32:
    """Returns log p of a token.

    Args:
        logit: of the token.
        max_logit: the largest logit of its row.
        exp_sum: the result of `shifted_exp` for its row.

    Returns:
        log p, in nats.
    """
    return (logit - max_logit) - log(exp_sum)


@jit_views
def _scale(row: Array, factor: np.float32) -> None:
    """Multiplies a row (V,) by a number."""
    V = row.size
    whole = V // LANES * LANES
    for v in range(0, whole, LANES):
        store(row, v, LANES, load(row, v, LANES) * factor)
    if whole < V:
        store(row, whole, V - whole, load(row, whole, V - whole) * factor)


@jit_views
def _find_maxima(logits: Array, targets: Ints, maxima: Array, found: Array) -> None:
    """Writes the largest logit of every row with a target, and the target's."""
    for n in range(logits.shape[0]):
        if targets[n] >= 0:
            maxima[n] = row_max(logits[n])
            found[n] = logits[n, targets[n]]


@jit_views
def _exponentiate(logits: Array, targets: Ints, maxima: Array, sums: Array) -> None:
    """Turns every row with a target into its `shifted_exp`, and writes the sums."""
    for n in range(logits.shape[0]):
        if targets[n] >= 0:
            sums[n] = shifted_exp(logits[n], maxima[n], logits[n])


@jit_views
def _scale_gradients(
    logits: Array, targets: Ints, scale: np.float32, maxima: Array, found: Array, sums: Array
) -> float:
    """Turns every row into its gradient, and returns the loss."""
    loss = 0.0
    for n in range(logits.shape[0]):
        row = logits[n]
        if targets[n] < 0:
            row[:] = ZERO
            continue
        loss -= float(log_probability(found[n], maxima[n], sums[n]))
        _scale(row, scale * (ONE / sums[n]))
        row[targets[n]] -= scale
    return loss


@jit_apart
def cross_entropy(logits: Array, targets: Ints, scale: np.float32) -> float:
    """Turns logits into their gradient and returns the loss.

    Args:
        logits: (N, V); in: the scores; out: scale * (softmax - one-hot of the target), 0 in
            rows without a target.
        targets: (N,); below 0 for rows without a target.
        scale: factor of the gradient of each counted row: 1 / rows for the mean.

    Returns:
        The sum of -log p(target) over the counted rows, in nats.
    """
    # Pass by pass: within a row, every result waits for the one before it, so that the processor
    # is busy only where it can begin the next rows meanwhile.
    N = logits.shape[0]
    maxima = np.empty(N, np.float32)
    found = np.empty(N, np.float32)
    sums = np.empty(N, np.float32)
    _find_maxima(logits, targets, maxima, found)
    _exponentiate(logits, targets, maxima, sums)
    loss: float = _scale_gradients(logits, targets, scale, maxima, found, sums)
    return loss


@jit_views_apart
def target_log_probabilities(logits: Array, targets: Ints, out: Array) -> None:
    """Writes log p(target) of every row.

    Args:
        logits: (N, V); overwritten.
        targets: (N,); below 0 for rows without a target.
        out: (N,), written: log-probabilities in nats, 0 where there is no target.
    """
    for n in range(logits.shape[0]):
        row = logits[n]
        target = targets[n]
        if target < 0:
            out[n] = ZERO
            continue
        m = row_max(row)
        target_logit = row[target]
        out[n] = log_probability(target_logit, m, shifted_exp(row, m, row))
