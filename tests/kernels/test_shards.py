"""What is checked of a batch before its shards, and how their gradients are added."""

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import same_bytes

from treadle.kernels.shards import add_shards, count_targets

Ints = NDArray[np.int32]


def batch(seed: int = 1) -> tuple[Ints, Ints]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(7, size=(5, 4), dtype=np.int32)
    return tokens, rng.integers(-1, 7, size=(5, 4), dtype=np.int32)


def test_targets_are_counted() -> None:
    tokens, targets = batch()
    assert count_targets(tokens, targets, 7) == np.count_nonzero(targets >= 0)
    assert count_targets(tokens, np.full_like(targets, -1), 7) == 0


@pytest.mark.parametrize(
    ("which", "odd"), [(0, -1), (0, 7), (0, -(2**31)), (1, -2), (1, 2**31 - 1)]
)
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 3)])
def test_a_token_or_target_outside_is_told(which: int, odd: int, place: tuple[int, int]) -> None:
    arrays = batch()
    arrays[which][place] = odd
    assert count_targets(*arrays, 7) == -1


def test_shards_are_added_one_after_the_other() -> None:
    shards = np.random.default_rng(1).standard_normal((4, 50), np.float32)
    total = shards[0].copy()
    add_shards(shards[1:], total, 0, 20)
    add_shards(shards[1:], total, 20, 50)
    assert same_bytes(total, ((shards[0] + shards[1]) + shards[2]) + shards[3])
