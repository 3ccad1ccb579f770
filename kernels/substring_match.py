"""The longest piece of a query that stands in a text, by the text's suffix array.

A piece is looked up by bisection. How much it shares with the suffixes at both ends of what is
left is known and not compared again (Manber and Myers, "Suffix arrays: a new method for on-line
string searches", 1993), so one look-up takes about its length and log n steps.

A long query that repeats itself, of a text that does so too, would be compared again and again.
Such a one is cut in pieces of 1, 2, 4, ... tokens instead. The suffixes that begin with a piece
lie side by side; among them, those that go on with another piece are found by their ranks, with
nothing compared (Karp, Miller and Rosenberg, "Rapid identification of repeated patterns", 1972).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.structs import Ints

Text = npt.NDArray[np.integer[Any]]
Longs = npt.NDArray[np.int64]

_BLOCK = 32
"""Tokens compared at once, which the compiler makes a few instructions of."""

_PROBE = 16
"""Tokens of the end of a piece that are looked up first: mostly they are not there already."""

PATIENCE = 1 << 26
"""Tokens of found pieces, one after the other, before a query counts as one that repeats itself."""


@jit_inline
def _shared(text: Text, start: int, query: Ints, first: int, last: int) -> int:
    """Return how many tokens from text[start] on equal those of query[first:last]."""
    size = min(text.size - start, last - first)
    ours, theirs = text[start : start + size], query[first : first + size]
    k = 0
    while k + _BLOCK <= size:
        # Slices of their own, or the compiler looks for indices below 0 and compares one by one.
        some, others, different = ours[k : k + _BLOCK], theirs[k : k + _BLOCK], 0
        for j in range(_BLOCK):
            different |= np.int32(some[j]) ^ others[j]
        if different != 0:
            break
        k += _BLOCK
    while k < size and ours[k] == theirs[k]:
        k += 1
    return k


@jit
def longest_prefix(text: Text, suffixes: Ints, query: Ints, first: int, last: int) -> int:
    """Return how many of the first tokens of a piece stand in the text, one after the other.

    Args:
        text: (n,), each token from 0 on.
        suffixes: (n,), as `suffix_array` returned them; all from 0 to n - 1.
        query: (m,); a token below 0 stands nowhere.
        first: where the piece begins in the query.
        last: where it ends.

    Returns:
        The length, from 0 to last - first.
    """
    size = last - first
    low, high = -1, suffixes.size  # the piece belongs between these two
    below, above = 0, 0  # tokens that it shares with them
    while high - low > 1:
        middle = (low + high) // 2
        start = int(suffixes[middle])
        # What it shares with both, it shares with all between; a damaged array may be in no order.
        shared = min(below, above, text.size - start)
        shared += _shared(text, start + shared, query, first + shared, last)
        if shared == size:
            return size
        if start + shared == text.size or text[start + shared] < query[first + shared]:
            low, below = middle, shared
        else:
            high, above = middle, shared
    return max(below, above)


def longest_match(text: Text, suffixes: Ints, query: Ints, ends: Longs) -> tuple[int, int]:
    """Find the longest piece of a query that stands in a text.

    It takes less than log m log n steps for each token of the query, and about n where it repeats
    itself so much that the ranks of all suffixes are wanted.

    Args:
        text: (n,), each token from 0 on.
        suffixes: (n,), as `suffix_array` returned them; all from 0 to n - 1.
        query: (m,); a token below 0 stands nowhere.
        ends: (m + 1,) int64, not falling: how far each token is from the query's beginning, in
            the measure of length; the last entry is where the query ends.

    Returns:
        Where the piece starts in the query, and its tokens; of several equally long ones, one
        that starts first. (0, 0) where there is none of any length.
    """
    start, length = _by_comparing(text, suffixes, query, ends, PATIENCE)
    return (start, length) if start >= 0 else longest_match_by_ranks(text, suffixes, query, ends)


@jit
def _by_comparing(
    text: Text, suffixes: Ints, query: Ints, ends: Longs, patience: int
) -> tuple[int, int]:
    """Find the longest piece, token by token; (-1, 0) where that would take too long.

    Where pieces are looked up that begin one after the other, a longer one than the longest so
    far ends further right each time. Where its last tokens are not in the text, neither is any
    other piece that holds these, and all of them are passed over.
    """
    m, i, end = query.size, 0, 0
    start, length, longest = 0, 0, np.int64(0)
    while i < m:
        while end <= m and ends[end] - ends[i] <= longest:
            end += 1
        if end > m:
            break
        probe = max(i, end - _PROBE)
        if probe > i and longest_prefix(text, suffixes, query, probe, end) < end - probe:
            i = probe + 1
            continue
        count = longest_prefix(text, suffixes, query, i, m)
        if ends[i + count] - ends[i] > longest:
            start, length, longest = i, count, ends[i + count] - ends[i]
        patience -= count
        if patience < 0:
            return -1, 0
        i += 1
    return start, length


def longest_match_by_ranks(text: Text, suffixes: Ints, query: Ints, ends: Longs) -> tuple[int, int]:
    """Find the longest piece without comparing any; arguments and result as `longest_match`'s.

    Beside them, 4 n bytes and 8 m log2 m are taken meanwhile.
    """
    m = query.size
    ranks, size = _ranked(suffixes), 1
    places = [_single(text, suffixes, query)]
    while 2 * size <= m and (places[-1][0] < places[-1][1]).any():
        places.append(_doubled(suffixes, ranks, places[-1], size))
        size *= 2
    return _longest(suffixes, ranks, np.stack(places), ends)


@jit
def _ranked(suffixes: Ints) -> Ints:
    """Return where each suffix stands in the array, (n + 1,); the empty one before all."""
    ranks = np.full(suffixes.size + 1, -1, np.int32)
    for k in range(suffixes.size):
        ranks[suffixes[k]] = k
    return ranks


@jit
def _single(text: Text, suffixes: Ints, query: Ints) -> Ints:
    """Return where the suffixes lie that begin with each token: from and up to, (2, m)."""
    places = np.zeros((2, query.size), np.int32)
    for i in range(query.size):
        for side in range(2):
            low, high, token = 0, suffixes.size, query[i] + side
            while low < high:
                middle = (low + high) // 2
                if text[suffixes[middle]] < token:
                    low = middle + 1
                else:
                    high = middle
            places[side, i] = low
    return places


@jit_inline
def _going_on(suffixes: Ints, ranks: Ints, low: int, high: int, size: int, wanted: int) -> int:
    """Return the first of some suffixes that goes on, after its first tokens, at a rank or above.

    Args:
        suffixes: (n,).
        ranks: (n + 1,), where each suffix stands among them.
        low: the first of those that begin with the same tokens.
        high: where these end.
        size: how many tokens those are.
        wanted: the rank.
    """
    while low < high:
        middle = (low + high) // 2
        # Of a damaged array, a suffix may be shorter than the tokens that it is to begin with.
        if ranks[min(suffixes[middle] + size, ranks.size - 1)] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _doubled(suffixes: Ints, ranks: Ints, places: Ints, size: int) -> Ints:
    """Return where the suffixes lie that begin with pieces twice as long.

    Args:
        suffixes: (n,).
        ranks: (n + 1,).
        places: (2, m), of the pieces of `size` tokens that begin at each token.
        size: tokens of a piece.

    Returns:
        (2, m); nothing where a piece would go beyond the query.
    """
    doubled = np.zeros_like(places)
    for i in range(places.shape[1] - 2 * size + 1):
        low, high = places[0, i], places[1, i]
        for side in range(2):
            wanted = places[side, i + size]
            doubled[side, i] = _going_on(suffixes, ranks, low, high, size, wanted)
    return doubled


@jit
def _longest(suffixes: Ints, ranks: Ints, places: Ints, ends: Longs) -> tuple[int, int]:
    """Put pieces of falling sizes together at each token, and return the longest that results.

    Args:
        suffixes: (n,).
        ranks: (n + 1,).
        places: (levels, 2, m), where the suffixes lie that begin with pieces of 1, 2, 4, ...
        ends: (m + 1,).
    """
    levels, _, m = places.shape
    start, length, longest = 0, 0, np.int64(0)
    for i in range(m):
        if ends[m] - ends[i] <= longest:
            break
        low, high, size = 0, suffixes.size, 0
        for level in range(levels - 1, -1, -1):
            if i + size + (1 << level) > m:
                continue
            first, last = places[level, 0, i + size], places[level, 1, i + size]
            below = _going_on(suffixes, ranks, low, high, size, first)
            above = _going_on(suffixes, ranks, low, high, size, last)
            if below < above:
                low, high, size = below, above, size + (1 << level)
        if ends[i + size] - ends[i] > longest:
            start, length, longest = i, size, ends[i + size] - ends[i]
    return start, length
