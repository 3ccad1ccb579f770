"""Suffix arrays and look-ups against plain Python that sorts and searches lists."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.compile import PYTHON_MODE
from treadle.kernels.suffixes import longest_match, longest_prefix, suffix_array

Ints = NDArray[np.int32]

LARGE = 2_000 if PYTHON_MODE else 1_000_000


def sorted_suffixes(text: Ints) -> list[int]:
    tokens = text.tolist()
    return sorted(range(len(tokens)), key=lambda start: tokens[start:])


def stands_in(text: list[int], piece: list[int]) -> bool:
    return any(text[i : i + len(piece)] == piece for i in range(len(text) - len(piece) + 1))


def first_longest(text: Ints, query: Ints, ends: NDArray[np.int64]) -> tuple[int, int]:
    """Every piece of the query, looked for at every place of the text."""
    tokens, asked = text.tolist(), query.tolist()
    best = (0, 0)
    for start, end in itertools.combinations(range(len(asked) + 1), 2):
        longer = ends[end] - ends[start] > ends[sum(best)] - ends[best[0]]
        if longer and stands_in(tokens, asked[start:end]):
            best = (start, end - start)
    return best


def lengths_of(query: Ints) -> NDArray[np.int64]:
    """The measure in which each token is one long."""
    return np.arange(query.size + 1)


def texts(count: int, longest: int) -> Iterator[tuple[Ints, int]]:
    """Small texts of few symbols: random ones, and repetitions of their own beginnings."""
    rng = np.random.default_rng(7)
    for number in range(count):
        size, V = int(rng.integers(longest)), int(rng.integers(1, 5))
        text = rng.integers(V, size=size, dtype=np.int32)
        if number % 3 == 0 and size:
            text = np.resize(text[: rng.integers(1, 6)], size)
        yield text, V


def check_order(text: Ints, suffixes: Ints) -> None:
    """All suffixes are there, and of each two neighbours the first is the smaller one.

    That is the case if its first token is smaller, or equal and what follows it comes before.
    """
    n = text.size
    rank = np.full(n + 1, -1, np.int64)  # the empty suffix is the smallest
    rank[suffixes] = np.arange(n)
    assert (rank[:-1] >= 0).all()
    before, after = suffixes[:-1], suffixes[1:]
    tied = text[before] == text[after]
    assert (text[before] <= text[after]).all()
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
    shorter, longer = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    while longer.size < size:
        shorter, longer = longer, np.concatenate((longer, shorter))
    return longer[:size]


@pytest.mark.parametrize(
    "kind", ["one token", "two in turn", "fibonacci", "random", "large vocabulary", "falling"]
)
def test_bad_texts_take_no_longer(kind: str) -> None:
    rng = np.random.default_rng(1)
    text = {
        "one token": lambda: np.zeros(LARGE, np.int32),
        "two in turn": lambda: np.resize(np.array([0, 1], np.int32), LARGE),
        "fibonacci": lambda: fibonacci(LARGE),
        "random": lambda: rng.integers(4, size=LARGE, dtype=np.int32),
        "large vocabulary": lambda: rng.integers(70_000, size=LARGE, dtype=np.int32),
        "falling": lambda: np.arange(LARGE, dtype=np.int32)[::-1] // 2,
    }[kind]()
    V = int(text.max()) + 1
    suffix_array(text[:10], V)  # loads the kernels
    began = time.process_time()
    suffixes = suffix_array(text, V)
    assert time.process_time() - began < 20
    check_order(text, suffixes)
    assert suffix_array(text, V).tobytes() == suffixes.tobytes()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_the_longest_piece_is_found(kind: type[np.uint8 | np.uint16 | np.int32]) -> None:
    rng = np.random.default_rng(3)
    for text, V in texts(count=80, longest=50):
        suffixes = suffix_array(text, V)
        query = rng.integers(-1, V + 1, size=rng.integers(25), dtype=np.int32)
        wanted = first_longest(text, query, lengths_of(query))
        assert longest_match(text.astype(kind), suffixes, query, lengths_of(query)) == wanted


def test_length_has_a_measure_of_its_own() -> None:
    """Tokens of no length, and few long ones that outweigh many short ones."""
    rng = np.random.default_rng(4)
    for text, V in texts(count=150, longest=40):
        query = rng.integers(V, size=rng.integers(20), dtype=np.int32)
        lengths = np.array([0, 1, 2, 9])[rng.permutation(4)]
        ends = np.append(0, np.cumsum(lengths[query])).astype(np.int64)
        wanted, size = first_longest(text, query, ends)
        start, length = longest_match(text, suffix_array(text, V), query, ends)
        assert start == wanted
        assert ends[start + length] - ends[start] == ends[wanted + size] - ends[wanted]
        assert stands_in(text.tolist(), query[start : start + length].tolist())


def test_long_pieces_are_compared_in_blocks() -> None:
    """Pieces around the sizes of blocks and probes, which end in the midst of a text or at it."""
    text = np.random.default_rng(5).integers(2, size=500, dtype=np.int32)
    suffixes = suffix_array(text, 2)
    for size in (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130):
        for start in (0, 200, 500 - size):
            query = np.concatenate(([-1], text[start : start + size], [-1], text[:3]))
            query = query.astype(np.int32)
            found = longest_match(text, suffixes, query, lengths_of(query))
            assert found == first_longest(text, query, lengths_of(query))
            assert found[1] >= size


def test_the_longest_beginning_is_found() -> None:
    rng = np.random.default_rng(6)
    for text, V in texts(count=200, longest=50):
        query = rng.integers(-1, V + 1, size=20, dtype=np.int32)
        first, last = sorted(rng.integers(21, size=2).tolist())
        piece, tokens = query[first:last].tolist(), text.tolist()
        wanted = max(k for k in range(len(piece) + 1) if not k or stands_in(tokens, piece[:k]))
        found = longest_prefix(text, suffix_array(text, V), query, first, last)
        assert found == wanted


def test_what_is_empty_holds_nothing() -> None:
    nothing, some = np.zeros(0, np.int32), np.zeros(5, np.int32)
    assert suffix_array(nothing, 3).size == 0
    none = suffix_array(nothing, 3)
    assert longest_match(nothing, none, some, lengths_of(some)) == (0, 0)
    assert longest_match(some, suffix_array(some, 1), nothing, lengths_of(nothing)) == (0, 0)
    assert longest_prefix(nothing, none, some, 0, 5) == 0


def test_a_damaged_array_leads_nowhere_beside_the_text() -> None:
    """In any order, and with places told twice: what is found stands there all the same."""
    rng = np.random.default_rng(8)
    for text, V in texts(count=200, longest=50):
        suffixes = rng.integers(max(text.size, 1), size=text.size, dtype=np.int32)
        query = rng.integers(V, size=20, dtype=np.int32)
        start, length = longest_match(text, suffixes, query, lengths_of(query))
        assert 0 <= start <= start + length <= query.size


@pytest.mark.skipif(PYTHON_MODE, reason="tells of compiled time")
def test_a_long_query_takes_no_minutes() -> None:
    """All of it in the text; two halves from two places; none; and worst, nothing but repeats."""
    rng = np.random.default_rng(9)
    text = rng.integers(4, size=LARGE, dtype=np.int32)
    suffixes = suffix_array(text, 4)
    halves = np.concatenate((text[:50_000], text[300_000:350_000])).astype(np.int32)
    runs, same = np.zeros(20_000, np.int32), np.zeros(100_000, np.int32)
    cases = [
        (text, suffixes, text[7:100_007].copy(), (0, 100_000)),
        (text, suffixes, halves, (0, 50_000)),
        (text, suffixes, same + 5, (0, 0)),
        (runs, suffix_array(runs, 1), same, (0, 20_000)),
    ]
    for held, order, query, wanted in cases:
        began = time.process_time()
        start, length = longest_match(held.astype(np.uint8), order, query, lengths_of(query))
        assert time.process_time() - began < 20
        assert length - wanted[1] < 20  # a random neighbour may go on with the next tokens
        assert start == wanted[0]
