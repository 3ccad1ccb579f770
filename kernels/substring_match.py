"""`longest_match` finds the longest substring that a query shares with a text, by a suffix array.

A substring is looked up by bisection of the suffix array. What it shares with the suffixes at both
ends of the remaining range is known and not compared again (Manber and Myers, "Suffix arrays: a new
method for on-line string searches", 1993). One look-up takes about its length and log n steps.

If both the query and the text repeat themselves, long matches would be compared again and again.
Such a query is cut in pieces of 1, 2, 4, ... tokens instead. The suffixes that begin with a piece
are adjacent in the array. Those of them that continue with another piece are found by their ranks,
without a comparison (Karp, Miller and Rosenberg, "Rapid identification of repeated patterns",
1972).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_apart, jit_inline
from treadle.kernels.structs import Ints

Text = npt.NDArray[np.integer[Any]]
Longs = npt.NDArray[np.int64]

_BLOCK = 32
"""Tokens compared at once; the compiler turns such a loop into a few instructions."""

_PROBE = 16
"""Tokens at the end of a substring that are looked up first; most of them are not in the text."""

PATIENCE = 1 << 26
"""Tokens of matches, summed up, after which a query counts as one that repeats itself."""


@jit_inline
def _common_prefix(text: Text, start: int, query: Ints, first: int, last: int) -> int:
    """Returns how many tokens from text[start] on equal those of query[first:last]."""
    size = min(text.size - start, last - first)
    ours = text[start : start + size]
    theirs = query[first : first + size]
    k = 0
    while k + _BLOCK <= size:
        # Slices of their own; otherwise the compiler checks for negative indices one by one.
        our_block = ours[k : k + _BLOCK]
        their_block = theirs[k : k + _BLOCK]
        different = 0
        for j in range(_BLOCK):
            different |= np.int32(our_block[j]) ^ their_block[j]
        if different != 0:
            break
        k += _BLOCK
    while k < size and ours[k] == theirs[k]:
        k += 1
    return k


@jit_apart
def longest_prefix(text: Text, suffixes: Ints, query: Ints, first: int, last: int) -> int:
    """Returns the length of the longest prefix of query[first:last] that is in the text.

    Args:
        text: (n,), each token from 0 on.
        suffixes: (n,), the result of `suffix_array`; all from 0 to n - 1.
        query: (m,); a token below 0 equals no token of the text.
        first: where the substring begins in the query.
        last: where it ends.

    Returns:
        The length, from 0 to last - first.
    """
    size = last - first
    low = -1  # the substring belongs between these two
    high = suffixes.size
    shared_low = 0  # tokens that it shares with them
    shared_high = 0
    while high - low > 1:
        middle = (low + high) // 2
        start = int(suffixes[middle])
        # What it shares with both ends, it shares with all between. In a damaged array the suffix
        # may be shorter than that.
        shared = min(shared_low, shared_high, text.size - start)
        shared += _common_prefix(text, start + shared, query, first + shared, last)
        if shared == size:
            return size
        if start + shared == text.size or text[start + shared] < query[first + shared]:
            low = middle
            shared_low = shared
        else:
            high = middle
            shared_high = shared
    return max(shared_low, shared_high)


def longest_match(text: Text, suffixes: Ints, query: Ints, ends: Longs) -> tuple[int, int]:
    """Finds the longest substring of a query that is in a text.

    It takes less than log m log n steps for each token of the query, and about n more where the
    query repeats itself so much that the ranks of all suffixes are needed.

    Args:
        text: (n,), each token from 0 on.
        suffixes: (n,), the result of `suffix_array`; all from 0 to n - 1.
        query: (m,); a token below 0 equals no token of the text.
        ends: (m + 1,) int64, ascending: the distance of each token from the query's beginning, in
            the unit of length; the last entry is where the query ends.

    Returns:
        Where the substring starts in the query, and its tokens; of several equally long ones, one
        that starts first. (0, 0) where no substring of any length is in the text.
    """
    start, length = _by_comparing(text, suffixes, query, ends, PATIENCE)
    if start < 0:
        return longest_match_by_ranks(text, suffixes, query, ends)
    return start, length


@jit_apart
def _by_comparing(
    text: Text, suffixes: Ints, query: Ints, ends: Longs, patience: int
) -> tuple[int, int]:
    """Finds the longest match, token by token; (-1, 0) where that would take too long.

    Substrings are looked up in the order of their beginnings. A longer match than the longest so
    far must end further to the right each time. If its last tokens are not in the text, no
    substring that holds these is, and all of them are skipped.
    """
    m = query.size
    i = 0
    end = 0
    start = 0
    length = 0
    longest = np.int64(0)
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
            start = i
            length = count
            longest = ends[i + count] - ends[i]
        patience -= count
        if patience < 0:
            return -1, 0
        i += 1
    return start, length


def longest_match_by_ranks(text: Text, suffixes: Ints, query: Ints, ends: Longs) -> tuple[int, int]:
    """Finds the longest match without comparing tokens, by the ranks of suffixes.

    About 4 n + 8 m log2 m bytes are used meanwhile.

    Args:
        text: as for `longest_match`.
        suffixes: as for `longest_match`.
        query: as for `longest_match`.
        ends: as for `longest_match`.

    Returns:
        The result of `longest_match`.
    """
    m = query.size
    ranks = _rank_suffixes(suffixes)
    size = 1
    ranges = [_token_ranges(text, suffixes, query)]
    while 2 * size <= m and (ranges[-1][0] < ranges[-1][1]).any():
        ranges.append(_double_ranges(suffixes, ranks, ranges[-1], size))
        size *= 2
    return _join_pieces(suffixes, ranks, np.stack(ranges), ends)


@jit_apart
def _rank_suffixes(suffixes: Ints) -> Ints:
    """Returns the rank of each suffix in the array, (n + 1,); that of the empty suffix is -1."""
    ranks = np.full(suffixes.size + 1, -1, np.int32)
    for k in range(suffixes.size):
        ranks[suffixes[k]] = k
    return ranks


@jit_apart
def _token_ranges(text: Text, suffixes: Ints, query: Ints) -> Ints:
    """Returns the range of suffixes that begin with each token: first and end, (2, m)."""
    ranges = np.zeros((2, query.size), np.int32)
    for i in range(query.size):
        for side in range(2):
            low = 0
            high = suffixes.size
            token = query[i] + side
            while low < high:
                middle = (low + high) // 2
                if text[suffixes[middle]] < token:
                    low = middle + 1
                else:
                    high = middle
            ranges[side, i] = low
    return ranges


@jit_inline
def _continuing(suffixes: Ints, ranks: Ints, low: int, high: int, size: int, rank: int) -> int:
    """Returns the first suffix of a range that continues at a rank or above.

    Args:
        suffixes: (n,).
        ranks: (n + 1,), of the suffixes.
        low: the first of the suffixes that begin with the same tokens.
        high: the end of that range.
        size: number of these tokens.
        rank: the least rank of the suffix that follows these tokens.
    """
    while low < high:
        middle = (low + high) // 2
        # In a damaged array, a suffix may be shorter than the tokens that it should begin with.
        if ranks[min(suffixes[middle] + size, ranks.size - 1)] < rank:
            low = middle + 1
        else:
            high = middle
    return low


@jit_apart
def _double_ranges(suffixes: Ints, ranks: Ints, ranges: Ints, size: int) -> Ints:
    """Returns the ranges of suffixes that begin with pieces of twice the size.

    Args:
        suffixes: (n,).
        ranks: (n + 1,).
        ranges: (2, m), of the pieces of `size` tokens that begin at each token.
        size: tokens of a piece.

    Returns:
        (2, m); an empty range where a piece would go beyond the query.
    """
    doubled = np.zeros_like(ranges)
    for i in range(ranges.shape[1] - 2 * size + 1):
        low = ranges[0, i]
        high = ranges[1, i]
        for side in range(2):
            rank = ranges[side, i + size]
            doubled[side, i] = _continuing(suffixes, ranks, low, high, size, rank)
    return doubled


@jit
def _join_pieces(suffixes: Ints, ranks: Ints, ranges: Ints, ends: Longs) -> tuple[int, int]:
    """Joins pieces of falling sizes at each token, and returns the longest match that results.

    Args:
        suffixes: (n,).
        ranks: (n + 1,).
        ranges: (levels, 2, m), of the suffixes that begin with pieces of 1, 2, 4, ... tokens.
        ends: (m + 1,).
    """
    levels, _, m = ranges.shape
    start = 0
    length = 0
    longest = np.int64(0)
    for i in range(m):
        if ends[m] - ends[i] <= longest:
            break
        low = 0
        high = suffixes.size
        size = 0
        for level in range(levels - 1, -1, -1):
            if i + size + (1 << level) > m:
                continue
            first_rank = ranges[level, 0, i + size]
            last_rank = ranges[level, 1, i + size]
            first = _continuing(suffixes, ranks, low, high, size, first_rank)
            last = _continuing(suffixes, ranks, low, high, size, last_rank)
            if first < last:
                low = first
                high = last
                size += 1 << level
        if ends[i + size] - ends[i] > longest:
            start = i
            length = size
            longest = ends[i + size] - ends[i]
    return start, length
