"""Selection and the truncation built on it against a stable sort of everything, to the bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.activations import log
from treadle.kernels.jit import PYTHON_MODE, jit
from treadle.kernels.loss import row_max, row_sum, shifted_exp
from treadle.kernels.sampling import Truncation, allocate_sampling_scratch, truncate
from treadle.kernels.selection import BINS, KEY_BITS, make_pair, select

Floats = NDArray[np.float32]

SIZES = (1, 2, 31, 33, 49, 300) if PYTHON_MODE else (1, 2, 31, 33, 49, 300, 5_000)
LARGEST_KEY = 2**KEY_BITS - 1


def keys_of(kind: str, n: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(n)
    keys: dict[str, NDArray[np.int64]] = {
        "random": rng.integers(LARGEST_KEY, size=n, endpoint=True),
        "equal": np.full(n, 12345),
        "zero": np.zeros(n, np.int64),
        "few": rng.choice([0, 1, 2**20, LARGEST_KEY], n),
        "descending": LARGEST_KEY - np.arange(n),
        "one outlier": np.where(np.arange(n) == n // 2, 0, LARGEST_KEY - rng.integers(3, size=n)),
    }
    return keys[kind]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["random", "equal", "zero", "few", "descending", "one outlier"])
def test_what_is_selected_is_the_beginning_of_a_stable_sort(kind: str, n: int) -> None:
    keys = keys_of(kind, n)
    order = np.argsort(keys, kind="stable")
    rng = np.random.default_rng(n)
    many = rng.integers(2**38, size=n, endpoint=True)
    sparse = np.where(rng.random(n) < 0.2, many, 0)
    sparse[rng.integers(n)] = 5
    for shares in (np.ones(n, np.int64), many, sparse):
        sums = np.cumsum(shares[order])
        whole = int(sums[-1])
        for target in {
            1,
            2,
            whole // 3,
            whole - 1,
            whole,
            int(sums[n // 2]),
            int(sums[n // 2]) + 1,
        }:
            if not 1 <= target <= whole:
                continue
            pairs = np.array([make_pair(np.int32(key), i) for i, key in enumerate(keys)], np.int64)
            bins = np.full(BINS, -1, np.int64)
            last = order[np.argmax(sums >= target)]
            expected = make_pair(np.int32(keys[last]), int(last))
            assert select(pairs, shares, n, target, bins) == expected


# ---------------------------------------------------------------- the cuts


def shares_of(weights: Floats) -> NDArray[np.int64]:
    """Whole numbers, in units of 2**-38 of the largest weight."""
    return (weights.astype(np.float64) * (2.0**38 / np.float64(weights.max()))).astype(np.int64)


def reaching(weights: Floats, order: NDArray[np.int64], p: float) -> NDArray[np.int64]:
    """The beginning of an order of places that reaches p of its sum; at least one place."""
    sums = np.cumsum(shares_of(weights)[order])
    target = np.ceil(np.float64(np.float32(p)) * np.float64(sums[-1]))
    return order[: 1 + int(np.argmax(sums >= target))]


def only(weights: Floats, kept: NDArray[np.int64]) -> Floats:
    """The weights, with 0 for all that are not kept."""
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    return left


def cut_by_sort(
    weights: Floats, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0
) -> Floats:
    """What `truncate` leaves, by a stable sort for each cut."""
    order = np.argsort(-weights, kind="stable")
    order = order[weights[order] > 0][: top_k or None]
    if top_p < 1:
        order = reaching(weights, order, top_p)
    kept = np.sort(order[weights[order] >= np.float32(min_p) * weights.max()])
    if typical_p < 1:
        distance = distances(np.ascontiguousarray(weights[kept]))
        of_kept = np.argsort(distance, kind="stable")
        kept = kept[reaching(weights[kept], of_kept, typical_p)]
    return only(weights, kept)


@jit
def _write_logs(weights: Floats, whole: np.float32, out: Floats) -> None:
    for i in range(weights.size):
        out[i] = log(weights[i] / whole)


def distances(weights: Floats) -> Floats:
    """How far each surprisal is from the mean one, by the kernels' logarithm: no libm's."""
    whole = np.float32(row_sum(weights))
    logs = np.empty_like(weights)
    _write_logs(weights, whole, logs)
    entropy = np.float32(row_sum(-logs * (weights / whole)))
    distance: Floats = np.abs(-logs - entropy)
    return distance


def left_by_us(
    weights: Floats, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0
) -> Floats:
    """What `truncate` leaves."""
    V = weights.size
    scratch = allocate_sampling_scratch(V)
    for part in scratch:
        part[:] = -1
    cuts = Truncation(top_k, np.float32(top_p), np.float32(min_p), np.float32(typical_p))
    n = truncate(weights, np.float32(weights.max()), cuts, scratch)
    ids = scratch.ids[:n]
    assert (np.diff(ids) > 0).all()
    assert scratch.weights[:n].tobytes() == weights[ids].tobytes()
    return only(weights, ids.astype(np.int64))


def rows() -> Iterator[tuple[str, NDArray[np.floating[Any]]]]:
    """Weights as a draw makes them of logits: the largest is 1, and none is below exp(-87)."""
    rng = np.random.default_rng(3)
    for V in (1, 2, 7, 40, 300) if PYTHON_MODE else (1, 2, 7, 40, 300, 3_000):
        gaussian = rng.standard_normal(V)
        yield "flat", 0.1 * gaussian
        yield "peaked", 9 * gaussian
        yield "ties", np.round(2 * gaussian)
        yield "equal", np.zeros(V)
        yield "nearly equal", 1e-6 * gaussian
        yield "ascending", np.arange(V) / 20
        yield "descending", -np.arange(V) / 20
        yield "one", np.where(np.arange(V) == V // 2, 0, -1e4)
        yield "banned", np.where(rng.random(V) < 0.5, -np.inf, gaussian)
        yield "many small", np.where(np.arange(V) == V - 1, 0.0, -16.6 + 0.3 * gaussian)
        yield "smaller than a sum takes notice of", np.where(np.arange(V) == 0, 0, -40 + gaussian)


ROWS = [(name, np.asarray(logits, np.float32)) for name, logits in rows()]
ROWS = [(name, logits) for name, logits in ROWS if logits.max() > -np.inf]


def weights_of(logits: Floats) -> Floats:
    weights = np.empty_like(logits)
    shifted_exp(logits, np.float32(row_max(logits)), weights)
    return weights


@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_k_and_top_p_leave_what_a_whole_sort_leaves(top_p: float) -> None:
    for name, logits in ROWS:
        V = logits.size
        weights = weights_of(logits)
        for top_k in sorted({0, 1, 2, V // 9, V // 2, V - 1, V, V + 5}):
            left = left_by_us(weights, top_k, top_p)
            assert left.tobytes() == cut_by_sort(weights, top_k, top_p).tobytes(), (name, V, top_k)
            assert np.count_nonzero(left) > 0


@pytest.mark.parametrize("typical_p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999])
def test_typical_p_leaves_what_a_whole_sort_leaves(typical_p: float) -> None:
    for name, logits in ROWS:
        weights = weights_of(logits)
        left = left_by_us(weights, typical_p=typical_p)
        expected = cut_by_sort(weights, typical_p=typical_p)
        assert left.tobytes() == expected.tobytes(), (name, weights.size)
        assert np.count_nonzero(left) > 0


def test_cuts_work_on_what_the_ones_before_them_left() -> None:
    rng = np.random.default_rng(5)
    for name, logits in ROWS:
        weights = weights_of(logits)
        for _ in range(4):
            top_k = int(rng.choice([0, 3, 40, 100]))
            top_p = float(rng.choice([1.0, 0.9, 0.3]))
            min_p = float(rng.choice([0.0, 0.01, 0.5]))
            typical_p = float(rng.choice([1.0, 0.9, 0.3]))
            cuts = (top_k, top_p, min_p, typical_p)
            left = left_by_us(weights, *cuts)
            assert left.tobytes() == cut_by_sort(weights, *cuts).tobytes(), (name, cuts)


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e-44])
def test_weights_of_any_size_are_cut_alike(scale: float) -> None:
    """Down to subnormal ones, which no draw makes."""
    rng = np.random.default_rng(4)
    weights = (rng.random(200) * scale).astype(np.float32)
    for top_k, top_p in ((0, 0.5), (20, 1.0), (50, 0.9)):
        left = left_by_us(weights, top_k, top_p)
        assert left.tobytes() == cut_by_sort(weights, top_k, top_p).tobytes()


def test_nothing_is_left_of_what_is_no_number() -> None:
    """A diverged model's weights are all NaN."""
    weights = np.full(50, np.nan, np.float32)
    for cuts in ({"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}, {"typical_p": 0.5}):
        assert not left_by_us(weights, **cuts).any()
