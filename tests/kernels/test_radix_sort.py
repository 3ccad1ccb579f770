"""The radix sort and the truncation built on it against a stable sort of everything, to the bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.loss import row_max, row_sum, shifted_exp
from treadle.kernels.radix_sort import KEY_BITS, make_pair, pair_id, sort_smallest
from treadle.kernels.sampling import _keep_top_k_and_top_p, _keep_typical, allocate_sampling_scratch

Floats = NDArray[np.float32]

SIZES = (1, 2, 31, 33, 300) if PYTHON_MODE else (1, 2, 31, 33, 300, 5_000)
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
def test_the_order_is_that_of_a_stable_sort(kind: str, n: int) -> None:
    keys = keys_of(kind, n)
    expected = np.argsort(keys, kind="stable")
    for needed in sorted({1, min(2, n), n // 3 or 1, n - 1 or 1, n}):
        scratch = allocate_sampling_scratch(n).sort
        scratch.spare[:] = -1
        scratch.counts[:] = -1
        scratch.pairs[:] = [make_pair(np.int32(key), place) for place, key in enumerate(keys)]
        order = sort_smallest(scratch, n, needed)[:needed]
        assert [pair_id(pair) for pair in order] == expected[:needed].tolist()


# ---------------------------------------------------------------- the cuts


def walked(weights: Floats, order: NDArray[np.int64], threshold: np.float32) -> int:
    """How many stay of a whole order until their float32 sum, taken one by one, is reached."""
    running = np.float32(0)
    for rank, place in enumerate(order):
        if rank > 0 and running >= threshold:
            return rank
        running += weights[place]
    return order.size


def cut_by_sort(weights: Floats, top_k: int, top_p: float) -> Floats:
    """The result of `_keep_top_k_and_top_p` by a stable sort, with every sum in its order."""
    order = np.argsort(-weights, kind="stable")
    kept = order[: top_k or None]
    whole = np.add.accumulate(weights[kept])[-1]
    left = np.zeros_like(weights)
    kept = kept[: walked(weights, kept, np.float32(top_p) * whole)]
    left[kept] = weights[kept]
    return left


def untypical_by_sort(weights: Floats, typical_p: float) -> Floats:
    """What `_keep_typical` leaves, from a stable sort of all distances."""
    whole = np.float32(row_sum(weights))
    scratch = allocate_sampling_scratch(weights.size)
    _keep_typical(weights.copy(), np.float32(1e-30), scratch)  # for its distances: no libm's log
    distance = np.where(weights > 0, scratch.distance, np.float32(np.inf))
    order = np.argsort(distance, kind="stable")
    kept = order[: walked(weights, order, np.float32(typical_p) * whole)]
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    return left


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
        for top_k in sorted({0, 1, 2, V // 2, V - 1, V, V + 5}):
            left = weights.copy()
            scratch = allocate_sampling_scratch(V)
            _keep_top_k_and_top_p(left, top_k, np.float32(top_p), scratch.sort)
            expected = cut_by_sort(weights, top_k, top_p)
            assert left.tobytes() == expected.tobytes(), (name, V, top_k)
            assert np.count_nonzero(left) > 0


@pytest.mark.parametrize("typical_p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999])
def test_typical_p_leaves_what_a_whole_sort_leaves(typical_p: float) -> None:
    for name, logits in ROWS:
        weights = weights_of(logits)
        left = weights.copy()
        _keep_typical(left, np.float32(typical_p), allocate_sampling_scratch(weights.size))
        expected = untypical_by_sort(weights, typical_p)
        assert left.tobytes() == expected.tobytes(), (name, weights.size)
        assert np.count_nonzero(left) > 0


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e-44])
def test_weights_of_any_size_are_cut_alike(scale: float) -> None:
    """Down to subnormal ones, which no draw makes."""
    rng = np.random.default_rng(4)
    weights = (rng.random(200) * scale).astype(np.float32)
    for top_k, top_p in ((0, 0.5), (20, 1.0), (50, 0.9)):
        left = weights.copy()
        _keep_top_k_and_top_p(left, top_k, np.float32(top_p), allocate_sampling_scratch(200).sort)
        assert left.tobytes() == cut_by_sort(weights, top_k, top_p).tobytes()


def test_what_is_no_number_is_left() -> None:
    """A diverged model's weights are all NaN."""
    weights = np.full(50, np.nan, np.float32)
    _keep_top_k_and_top_p(weights, 5, np.float32(0.5), allocate_sampling_scratch(50).sort)
    _keep_typical(weights, np.float32(0.5), allocate_sampling_scratch(50))
    assert np.isnan(weights).all()
