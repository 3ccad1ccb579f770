"""Softmax and cross-entropy against the plain NumPy reference, and the order of their sums."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import relative_error, same_bytes

from treadle.kernels import reference
from treadle.kernels.loss import (
    cross_entropy,
    log_probability,
    row_max,
    row_sum,
    shifted_exp,
    target_log_probabilities,
)
from treadle.kernels.simd import LANES

Floats = NDArray[np.float32]

SIZES = [1, 2, LANES - 1, LANES, LANES + 1, 5 * LANES + 3]


def draw(N: int, V: int, seed: int = 0) -> tuple[Floats, NDArray[np.int32]]:
    """Logits (N, V) over a wide range, and targets (N,) of which the second is not counted."""
    rng = np.random.default_rng(seed)
    logits = (8 * rng.standard_normal((N, V))).astype(np.float32)
    targets = rng.integers(V, size=N, dtype=np.int32)
    targets[1:2] = -1
    return logits, targets


def expected(logits: Floats, targets: NDArray[np.int32]) -> tuple[float, int, NDArray[Any]]:
    wide = logits.astype(np.float64)[:, np.newaxis]
    loss, count, dlogits = reference.softmax_cross_entropy(wide, targets[:, np.newaxis])
    return loss, count, dlogits[:, 0]


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("N", [1, 7])
def test_cross_entropy(N: int, V: int) -> None:
    logits, targets = draw(N, V)
    loss, count, dlogits = expected(logits, targets)
    ours = logits.copy()
    # Of one token only, the loss is 0 and so is its gradient.
    assert cross_entropy(ours, targets, np.float32(1 / count)) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(ours, dlogits, rtol=1e-5, atol=3e-7)
    assert not ours[targets < 0].any()


def test_scale_scales_the_gradient_alone() -> None:
    logits, targets = draw(5, 9)
    halved = logits.copy()
    whole = logits.copy()
    loss = cross_entropy(halved, targets, np.float32(0.5))
    assert cross_entropy(whole, targets, np.float32(1)) == loss
    assert same_bytes(2 * halved, whole)


@pytest.mark.parametrize("V", SIZES)
def test_target_log_probabilities_are_the_losses_terms(V: int) -> None:
    logits, targets = draw(7, V)
    scores = np.full(7, np.nan, np.float32)
    target_log_probabilities(logits.copy(), targets, scores)
    assert scores[1] == 0
    for n in range(7):
        loss = cross_entropy(logits[n : n + 1].copy(), targets[n : n + 1], np.float32(1))
        assert loss == -float(scores[n])
    at_once = cross_entropy(logits.copy(), targets, np.float32(1))
    assert at_once == -sum(scores.astype(np.float64).tolist())


@pytest.mark.parametrize("shift", [-3e4, 3e4])
def test_logits_of_any_size_are_safe(shift: float) -> None:
    logits, targets = draw(4, 33, seed=3)
    logits = (np.round(logits * 16) / 16).astype(np.float32)  # so that the shift costs no digits
    loss, count, dlogits = expected(logits, targets)
    shifted = (logits + shift).astype(np.float32)
    assert cross_entropy(shifted, targets, np.float32(1 / count)) == pytest.approx(loss, rel=1e-6)
    assert relative_error(shifted, dlogits) < 1e-6


def test_a_hopeless_target_has_a_finite_loss() -> None:
    logits = np.array([[0, 5000, -5000]], np.float32)
    assert cross_entropy(logits, np.array([2], np.int32), np.float32(1)) == 10_000
    assert logits.tolist() == [[0, 1, -1]]


def test_nan_reaches_the_loss() -> None:
    for place in range(3):
        logits = np.zeros((1, 3), np.float32)
        logits[0, place] = np.nan
        assert math.isnan(cross_entropy(logits, np.zeros(1, np.int32), np.float32(1)))


@pytest.mark.parametrize("V", SIZES)
def test_largest(V: int) -> None:
    row = draw(1, V, seed=V)[0][0]
    for place in range(V):
        rolled = np.roll(row, place)
        assert row_max(rolled) == row.max()
        rolled[place] = np.nan
        assert np.isnan(row_max(rolled))


@pytest.mark.parametrize("V", SIZES)
def test_total_has_one_shape(V: int) -> None:
    """Partial sums of every LANES-th term, then halves added; in the reader's own few lines."""
    row = draw(1, V, seed=V)[0][0]
    padded = np.zeros((V // LANES + 1) * LANES, np.float32)
    padded[:V] = row
    sums = np.zeros(LANES, np.float32)
    for part in padded.reshape(-1, LANES):
        sums += part
    while sums.size > 1:
        sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
    assert np.float32(row_sum(row)).tobytes() == sums.tobytes()
    assert row_sum(row) == pytest.approx(math.fsum(row.tolist()), rel=1e-4, abs=1e-5)


def test_log_probability() -> None:
    row = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    out = np.zeros(3, np.float32)
    top = np.float32(row_max(row))
    sum_of_exponentials = np.float32(shifted_exp(row, top, out))
    np.testing.assert_allclose(out, np.array([1, 2, 7]) / 7, rtol=1e-6)
    assert sum_of_exponentials == pytest.approx(10 / 7, rel=1e-6)
    for logit in row:
        assert log_probability(logit, top, sum_of_exponentials) == pytest.approx(logit, rel=1e-6)
