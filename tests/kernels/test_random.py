"""Philox4x32-10 against its authors' known answers, and the numbers made from it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import same_bytes

from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.random import fill_uniform, philox, philox_block, uniform

KNOWN_ANSWERS = [
    # counter, key and result as in kat_vectors of Random123, the authors' own library
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

DRAWS = 4_000 if PYTHON_MODE else 100_000


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def join(low: int, high: int) -> np.uint64:
    return np.uint64(high << 32 | low)


def fill(seed: int, stream: int, count: int, limit: float = 1.0) -> NDArray[np.float32]:
    out = np.full(count, np.nan, np.float32)
    fill_uniform(np.uint64(seed), np.uint64(stream), np.float32(limit), out)
    return out


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    arguments = join(k0, k1), join(c2, c3), join(c0, c1)
    assert [int(word) for word in philox_block(*arguments)] == words(result)
    assert int(philox(*arguments)) == words(result)[0]


def test_uniform_is_the_upper_bits_of_a_word() -> None:
    for n in range(200):
        arguments = np.uint64(3), np.uint64(1), np.uint64(n)
        u = uniform(*arguments)
        assert float(u) == (int(philox(*arguments)) >> 8) / 2**24
        assert 0 <= u < 1


@pytest.mark.parametrize("stream", [0, 1, 2**64 - 1])
def test_draws_are_uniform(stream: int) -> None:
    draws = (fill(5, stream, DRAWS).astype(np.float64) + 1) / 2
    assert draws.mean() == pytest.approx(0.5, abs=5 / (12 * DRAWS) ** 0.5)
    bins = np.bincount((draws * 16).astype(int), minlength=16)
    assert bins.size == 16
    chi_square = ((bins - DRAWS / 16) ** 2 / (DRAWS / 16)).sum()
    assert chi_square < 50  # of 15 degrees of freedom: once in 100,000 by chance
    neighbours = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(neighbours) < 5 / DRAWS**0.5


def test_fill_is_draw_by_draw() -> None:
    out = fill(11, 4, 50, limit=0.25)
    for n in range(50):
        u = uniform(np.uint64(11), np.uint64(4), np.uint64(n))
        assert out[n] == np.float32(0.25) * (np.float32(2) * u - np.float32(1))
    assert same_bytes(fill(11, 4, 7, limit=0.25), out[:7])
    assert out.min() >= -0.25
    assert out.max() < 0.25


@pytest.mark.parametrize(("seed", "stream"), [(12, 4), (11, 5), (11 + 2**32, 4), (11, 4 + 2**32)])
def test_every_bit_of_seed_and_stream_counts(seed: int, stream: int) -> None:
    one = fill(11, 4, 2000)
    other = fill(seed, stream, 2000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.12
    assert (one != other).mean() > 0.99
