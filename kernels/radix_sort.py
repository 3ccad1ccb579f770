"""`sort_smallest` puts the smallest of many keys in order, in time linear in their number.

A comparison sort of a vocabulary takes far longer than everything else that sampling does. Here,
pairs (key, id) are sorted by counting digits (radix sort, Knuth, TAOCP 3, 5.2.5), lower ids first
among equal keys. Where only the first few are needed, a histogram of the leading digit excludes
most of the others first. No input makes either of them slow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_apart, jit_inline

Pairs = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

KEY_BITS = 31
"""A key is below 2**KEY_BITS, as the bits of any float32 from 0 up are."""

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_DIGITS = 3
_DIGIT_BITS = -(-KEY_BITS // _DIGITS)
_INSERTION_PAIRS = 32
"""Up to so many pairs are sorted by insertion, which is then faster than counting."""


class SortScratch(NamedTuple):
    """The memory that sorting V keys works in; overwritten."""

    pairs: Pairs
    """(V,), the caller's pairs."""
    spare: Pairs
    """(V,)."""
    counts: Counts
    """(COUNTS,)."""


COUNTS = _DIGITS << _DIGIT_BITS
"""Elements of `SortScratch.counts`."""


@jit_inline
def make_pair(key: np.int32, id_: int) -> np.int64:
    """Returns the pair that stands for an id and its key, from 0 to below 2**KEY_BITS."""
    return np.int64((np.int64(key) << _ID_BITS) | id_)


@jit_inline
def pair_id(pair: np.int64) -> int:
    """Returns a pair's id."""
    return int(pair & _ID_MASK)


@jit
def _max_key_bits(pairs: Pairs, n: int) -> int:
    """Returns the number of bits of the largest key of the first n pairs."""
    union = np.int64(0)
    for place in range(n):
        union |= pairs[place]
    union >>= _ID_BITS
    width = 0
    while union > 0:
        union >>= 1
        width += 1
    return width


@jit
def _insertion_sort(pairs: Pairs, n: int) -> None:
    for place in range(1, n):
        pair = pairs[place]
        while place > 0 and pairs[place - 1] > pair:
            pairs[place] = pairs[place - 1]
            place -= 1
        pairs[place] = pair


@jit
def _radix_sort(scratch: SortScratch, n: int) -> Pairs:
    """Sorts n pairs by key, stable, and returns the array that holds them."""
    pairs, spare, counts = scratch
    digit_bits = -(-_max_key_bits(pairs, n) // _DIGITS)
    size = 1 << digit_bits
    mask = size - 1
    counts[: _DIGITS * size] = 0
    low = _ID_BITS
    middle = _ID_BITS + digit_bits
    high = _ID_BITS + 2 * digit_bits
    for place in range(n):
        pair = pairs[place]
        counts[(pair >> low) & mask] += 1
        counts[size + ((pair >> middle) & mask)] += 1
        counts[2 * size + ((pair >> high) & mask)] += 1
    for digit in range(_DIGITS):
        before = 0
        for value in range(digit * size, (digit + 1) * size):
            count = counts[value]
            counts[value] = before
            before += count
    for digit in range(_DIGITS):
        shift = _ID_BITS + digit * digit_bits
        first = digit * size
        for place in range(n):
            pair = pairs[place]
            value = first + ((pair >> shift) & mask)
            spare[counts[value]] = pair
            counts[value] += 1
        pairs, spare = spare, pairs
    return pairs


@jit
def _exclude_large(scratch: SortScratch, n: int, needed: int) -> int:
    """Moves pairs to the front, in their order, among them the `needed` smallest of n.

    Returns:
        The number of pairs moved: those whose leading digit is at most that of the last one needed.
    """
    pairs = scratch.pairs
    counts = scratch.counts
    shift = _ID_BITS + max(_max_key_bits(pairs, n) - _DIGIT_BITS, 0)
    counts[: 1 << _DIGIT_BITS] = 0
    for place in range(n):
        counts[pairs[place] >> shift] += 1
    missing = needed
    border = 0
    while missing > counts[border]:
        missing -= counts[border]
        border += 1
    kept = 0
    for place in range(n):
        pair = pairs[place]
        pairs[kept] = pair
        kept += (pair >> shift) <= border
    return kept


@jit_apart
def sort_smallest(scratch: SortScratch, n: int, needed: int) -> Pairs:
    """Sorts the smallest of the first n pairs by key, and by id where keys are equal.

    Args:
        scratch: its pairs are in ascending order of their ids; overwritten.
        n: number of pairs.
        needed: number of pairs to put in order, from 1 to n.

    Returns:
        The array whose first `needed` elements are these pairs.
    """
    if needed < n:
        n = _exclude_large(scratch, n, needed)
    if n <= _INSERTION_PAIRS:
        _insertion_sort(scratch.pairs, n)
        return scratch.pairs
    return _radix_sort(scratch, n)
