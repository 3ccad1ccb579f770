"""Suffix arrays against plain Python that sorts lists."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from small_texts import texts

from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.suffix_array import suffix_array

Ints = NDArray[np.int32]

LARGE = 2_000 if PYTHON_MODE else 1_000_000


def sorted_suffixes(text: Ints) -> list[int]:
    tokens = text.tolist()
    return sorted(range(len(tokens)), key=lambda start: tokens[start:])


def check_order(text: Ints, suffixes: Ints) -> None:
    """All suffixes are there, and of each two neighbours the first is the smaller one.

    That is the case if its first token is smaller, or equal and what follows it comes before.
    """
    n = text.size
    rank = np.full(n + 1, -1, np.int64)  # the empty suffix is the smallest
    rank[suffixes] = np.arange(n)
    assert (rank[:-1] >= 0).all()
    before = suffixes[:-1]
    after = suffixes[1:]
    tied = text[before] == text[after]
    assert bool((text[before] <= text[after]).all())
    assert (rank[before + 1] < rank[after + 1])[tied].all()


def test_suffixes_come_in_order() -> None:
    for text, V in texts(count=400, longest=80):
        suffixes = suffix_array(text, V)
        assert suffixes.dtype == np.int32
        assert suffixes.tolist() == sorted_suffixes(text)


def test_every_text_of_few_tokens() -> None:
    for size in range(8):
        for tokens in itertools.product(range(2 if size > 5 else 3), repeat=size):
            text = np.array(tokens, np.int32)
            assert suffix_array(text, 3).tolist() == sorted_suffixes(text)


def fibonacci(size: int) -> Ints:
    """The text that repeats itself most often without a period."""
    shorter = np.zeros(1, np.int32)
    longer = np.array([0, 1], np.int32)
    while longer.size < size:
        shorter, longer = longer, np.concatenate((longer, shorter))
    return longer[:size]


@pytest.mark.parametrize(
    "kind", ["one token", "two in turn", "fibonacci", "random", "large vocabulary", "falling"]
)
def test_bad_texts_take_no_longer(kind: str) -> None:
    rng = np.random.default_rng(1)
    makers: dict[str, Callable[[], Ints]] = {
        "one token": lambda: np.zeros(LARGE, np.int32),
        "two in turn": lambda: np.resize(np.array([0, 1], np.int32), LARGE),
        "fibonacci": lambda: fibonacci(LARGE),
        "random": lambda: rng.integers(4, size=LARGE, dtype=np.int32),
        "large vocabulary": lambda: rng.integers(70_000, size=LARGE, dtype=np.int32),
        "falling": lambda: np.arange(LARGE, dtype=np.int32)[::-1] // 2,
    }
    text = makers[kind]()
    V = int(text.max()) + 1
    suffix_array(text[:10], V)  # loads the kernels
    began = time.process_time()
    suffixes = suffix_array(text, V)
    assert time.process_time() - began < 20
    check_order(text, suffixes)
    assert suffix_array(text, V).tobytes() == suffixes.tobytes()


def test_what_is_empty_has_no_suffixes() -> None:
    assert suffix_array(np.zeros(0, np.int32), 3).tolist() == []
