"""Selection: the smallest of many keys in order, in time that grows with their number alone.

A comparison sort of a vocabulary takes far longer than everything else a draw does. Here pairs
(key, id) are sorted by counting digits (radix sort, Knuth, TAOCP 3, 5.2.5), lower ids first
among equal keys; where only the first few are wanted, a histogram of the leading digit leaves out
the others first. Neither has an input that makes it slow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_inline

Pairs = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

KEY_BITS = 31
"""A key is below 2**KEY_BITS, as the bits of any float32 from 0 up are."""

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_DIGITS = 3
_DIGIT_BITS = -(-KEY_BITS // _DIGITS)
_FEW = 32
"""So few pairs are sorted by insertion, which then takes less time than counting does."""


class SortScratch(NamedTuple):
    """What sorting V keys works in; overwritten."""

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
    """Return the pair that stands for an id with its key, 0 up to and without 2**KEY_BITS."""
    return np.int64((np.int64(key) << _ID_BITS) | id_)


@jit_inline
def pair_id(pair: np.int64) -> int:
    """Return a pair's id."""
    return int(pair & _ID_MASK)


@jit
def _width_of(pairs: Pairs, n: int) -> int:
    """Return how many bits the largest key of the first n pairs has."""
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
    """Sort n pairs by key, stable, and return the array that holds them."""
    pairs, spare, counts = scratch
    digit_bits = -(-_width_of(pairs, n) // _DIGITS)
    size = 1 << digit_bits
    mask = size - 1
    counts[: _DIGITS * size] = 0
    low, middle, high = _ID_BITS, _ID_BITS + digit_bits, _ID_BITS + 2 * digit_bits
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
        shift, first = _ID_BITS + digit * digit_bits, digit * size
        for place in range(n):
            pair = pairs[place]
            value = first + ((pair >> shift) & mask)
            spare[counts[value]] = pair
            counts[value] += 1
        pairs, spare = spare, pairs
    return pairs


@jit
def _leave_out_large(scratch: SortScratch, n: int, wanted: int) -> int:
    """Move pairs to the front, in their order, among them the `wanted` smallest of n.

    Returns:
        How many they are: those whose leading digit is at most that of the last one wanted.
    """
    pairs, counts = scratch.pairs, scratch.counts
    shift = _ID_BITS + max(_width_of(pairs, n) - _DIGIT_BITS, 0)
    counts[: 1 << _DIGIT_BITS] = 0
    for place in range(n):
        counts[pairs[place] >> shift] += 1
    left, border = wanted, 0
    while left > counts[border]:
        left -= counts[border]
        border += 1
    kept = 0
    for place in range(n):
        pair = pairs[place]
        pairs[kept] = pair
        kept += (pair >> shift) <= border
    return kept


@jit
def in_order(scratch: SortScratch, n: int, wanted: int) -> Pairs:
    """Sort the smallest of the first n pairs by key, and by id where keys are equal.

    Args:
        scratch: its pairs are in ascending order of their ids; overwritten.
        n: how many there are.
        wanted: how many are to be in order, from 1 to n.

    Returns:
        The array whose first `wanted` elements they are.
    """
    if wanted < n:
        n = _leave_out_large(scratch, n, wanted)
    if n <= _FEW:
        _insertion_sort(scratch.pairs, n)
        return scratch.pairs
    return _radix_sort(scratch, n)
