"""Longest matches by suffix array against plain Python that searches lists."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_texts import texts

from treadle.kernels import substring_match
from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.substring_match import longest_match, longest_match_by_ranks, longest_prefix
from treadle.kernels.suffix_array import suffix_array

Ints = NDArray[np.int32]
LookUp = Callable[[Any, Ints, Ints, NDArray[np.int64]], tuple[int, int]]

WAYS = pytest.mark.parametrize("look_up", [longest_match, longest_match_by_ranks])

LARGE = 2_000 if PYTHON_MODE else 1_000_000


def stands_in(text: list[int], piece: list[int]) -> bool:
    return any(text[i : i + len(piece)] == piece for i in range(len(text) - len(piece) + 1))


def first_longest(text: Ints, query: Ints, ends: NDArray[np.int64]) -> tuple[int, int]:
    """Every piece of the query, looked for at every place of the text."""
    tokens = text.tolist()
    asked = query.tolist()
    best = (0, 0)
    for start, end in itertools.combinations(range(len(asked) + 1), 2):
        longer = ends[end] - ends[start] > ends[sum(best)] - ends[best[0]]
        if longer and stands_in(tokens, asked[start:end]):
            best = (start, end - start)
    return best


def lengths_of(query: Ints) -> NDArray[np.int64]:
    """The measure in which each token is one long."""
    return np.arange(query.size + 1)


@WAYS
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_the_longest_piece_is_found(
    kind: type[np.uint8 | np.uint16 | np.int32], look_up: LookUp
) -> None:
    rng = np.random.default_rng(3)
    for text, V in texts(count=80, longest=50):
        suffixes = suffix_array(text, V)
        query = rng.integers(-1, V + 1, size=rng.integers(25), dtype=np.int32)
        expected = first_longest(text, query, lengths_of(query))
        assert look_up(text.astype(kind), suffixes, query, lengths_of(query)) == expected


@WAYS
def test_length_has_a_measure_of_its_own(look_up: LookUp) -> None:
    """Tokens of no length, and few long ones that outweigh many short ones."""
    rng = np.random.default_rng(4)
    for text, V in texts(count=150, longest=40):
        query = rng.integers(V, size=rng.integers(20), dtype=np.int32)
        lengths = np.array([0, 1, 2, 9])[rng.permutation(4)]
        ends = np.append(0, np.cumsum(lengths[query])).astype(np.int64)
        expected, size = first_longest(text, query, ends)
        start, length = look_up(text, suffix_array(text, V), query, ends)
        assert start == expected
        assert ends[start + length] - ends[start] == ends[expected + size] - ends[expected]
        assert stands_in(text.tolist(), query[start : start + length].tolist())


@WAYS
def test_pieces_of_all_sizes_are_found(look_up: LookUp) -> None:
    """Pieces around the sizes of blocks and probes, which end in the midst of a text or at it."""
    text = np.random.default_rng(5).integers(2, size=500, dtype=np.int32)
    suffixes = suffix_array(text, 2)
    for size in (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130):
        for start in (0, 200, 500 - size):
            query = np.concatenate(([-1], text[start : start + size], [-1], text[:3]))
            query = query.astype(np.int32)
            found = look_up(text, suffixes, query, lengths_of(query))
            assert found == first_longest(text, query, lengths_of(query))
            assert found[1] >= size


def test_the_longest_beginning_is_found() -> None:
    rng = np.random.default_rng(6)
    for text, V in texts(count=200, longest=50):
        query = rng.integers(-1, V + 1, size=20, dtype=np.int32)
        first, last = sorted(rng.integers(21, size=2).tolist())
        piece = query[first:last].tolist()
        tokens = text.tolist()
        expected = max(k for k in range(len(piece) + 1) if not k or stands_in(tokens, piece[:k]))
        found = longest_prefix(text, suffix_array(text, V), query, first, last)
        assert found == expected


@WAYS
def test_no_piece_is_passed_over(look_up: LookUp) -> None:
    """Adjacent pieces: the longest one may begin wherever others end."""
    rng = np.random.default_rng(11)
    text = rng.integers(4, size=3000, dtype=np.int32)
    suffixes = suffix_array(text, 4)
    for first in range(1, 60):
        sizes = np.array([first, 60, *rng.integers(1, 60, size=4)])
        starts = rng.integers(text.size - 60, size=sizes.size)
        pieces = [np.append(text[a : a + n], -1) for a, n in zip(starts, sizes, strict=True)]
        query = np.concatenate(pieces).astype(np.int32)
        longest = int(sizes.argmax())
        place = int(sizes[:longest].sum()) + longest
        found = look_up(text, suffixes, query, lengths_of(query))
        assert found == (place, sizes[longest])


@WAYS
def test_what_is_empty_holds_nothing(look_up: LookUp) -> None:
    nothing = np.zeros(0, np.int32)
    some = np.zeros(5, np.int32)
    none = suffix_array(nothing, 3)
    assert look_up(nothing, none, some, lengths_of(some)) == (0, 0)
    assert look_up(some, suffix_array(some, 1), nothing, lengths_of(nothing)) == (0, 0)
    assert longest_prefix(nothing, none, some, 0, 5) == 0


@WAYS
def test_a_damaged_array_leads_nowhere_beside_the_text(look_up: LookUp) -> None:
    """In any order, and with duplicate places: without the compiler, this would be an error."""
    rng = np.random.default_rng(8)
    for text, V in texts(count=200, longest=50):
        suffixes = rng.integers(max(text.size, 1), size=text.size, dtype=np.int32)
        query = rng.integers(V, size=20, dtype=np.int32)
        start, length = look_up(text, suffixes, query, lengths_of(query))
        assert 0 <= start <= start + length <= query.size


def test_a_query_that_repeats_itself_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less patience than a query asks for, the result is the same."""
    rng = np.random.default_rng(10)
    for text, V in texts(count=60, longest=60):
        query = np.resize(text[: rng.integers(1, 9)], 40) if text.size else text
        suffixes = suffix_array(text, V)
        ends = lengths_of(query)
        expected = longest_match(text, suffixes, query, ends)
        for patience in (0, 7, 100):
            monkeypatch.setattr(substring_match, "PATIENCE", patience)
            assert longest_match(text, suffixes, query, ends) == expected
        monkeypatch.undo()


@pytest.mark.skipif(PYTHON_MODE, reason="measures compiled time")
def test_a_long_query_takes_no_minutes() -> None:
    """All of it in the text; two halves from two places; none; and worst, nothing but repeats."""
    text = np.random.default_rng(9).integers(4, size=LARGE, dtype=np.int32)
    text[600_000:640_000] = 0
    text[700_000:740_000] = np.resize(np.array([0, 1, 1], np.int32), 40_000)
    suffixes = suffix_array(text, 4)
    halves = np.concatenate((text[:50_000], text[300_000:350_000])).astype(np.int32)
    same = np.zeros(100_000, np.int32)
    cases = [
        (text[7:100_007].copy(), 0, 100_000),
        (halves, 0, 50_000),
        (same + 5, 0, 0),
        (same, 0, 40_000),
        (np.resize(np.array([0, 1, 1], np.int32), 100_000), 0, 40_000),
    ]
    for query, expected, size in cases:
        began = time.process_time()
        start, length = longest_match(text.astype(np.uint8), suffixes, query, lengths_of(query))
        assert time.process_time() - began < 20
        assert 0 <= start - expected < 3
        assert 0 <= length - size < 20  # a random neighbour may continue with the same tokens
