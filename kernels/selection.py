"""`select` finds the fewest smallest keys whose shares reach a target, in linear time.

Sorting a vocabulary takes far longer than everything else that sampling does. Here, a histogram of
the shares over the leading digit of the keys shows which digit the target falls into; the same is
done with the next digit of these keys alone, until few are left, which are sorted. No input makes
it slow. Shares are whole numbers, so that their sums do not depend on an order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit_inline, jit_views, jit_views_apart

Longs = npt.NDArray[np.int64]

KEY_BITS = 31
"""A key is below 2**KEY_BITS, as the bits of any float32 from 0 up are."""

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_DIGITS = 3
_DIGIT_BITS = -(-KEY_BITS // _DIGITS)
_FEW = 48
"""Up to so many pairs are sorted by insertion."""

BINS = 1 << _DIGIT_BITS
"""Elements of the histogram."""


@jit_inline
def make_pair(key: np.int32, place: int) -> np.int64:
    """Returns a key, from 0 to below 2**KEY_BITS, with its place, which orders equal keys."""
    return np.int64((np.int64(key) << _ID_BITS) | place)


@jit_inline
def _place(pair: np.int64) -> int:
    return int(pair & _ID_MASK)


@jit_views
def _sort(pairs: Longs, n: int) -> None:
    """Sorts pairs by insertion; linear in their number where all keys are equal."""
    for end in range(1, n):
        pair = pairs[end]
        at = end
        while at > 0 and pairs[at - 1] > pair:
            pairs[at] = pairs[at - 1]
            at -= 1
        pairs[at] = pair


@jit_views_apart
def select(pairs: Longs, shares: Longs, n: int, target: int, bins: Longs) -> np.int64:
    """Returns the last one of the fewest smallest pairs whose shares reach a target.

    Args:
        pairs: (n,) or more, pair i of place i; overwritten.
        shares: (n,) or more, from 0 up, that of place i.
        n: number of pairs, at least 1.
        target: from 1 to the sum of the shares.
        bins: (BINS,), overwritten.

    Returns:
        The pair: these are the ones up to it.
    """
    missing = target
    shift = _ID_BITS + (_DIGITS - 1) * _DIGIT_BITS
    while n > _FEW and shift >= _ID_BITS:
        bins[:] = 0
        for i in range(n):
            pair = pairs[i]
            bins[(pair >> shift) & (BINS - 1)] += shares[_place(pair)]
        digit = 0
        while missing > bins[digit]:
            missing -= bins[digit]
            digit += 1
        left = 0
        for i in range(n):
            pair = pairs[i]
            pairs[left] = pair
            left += ((pair >> shift) & (BINS - 1)) == digit
        n = left
        shift -= _DIGIT_BITS
    _sort(pairs, n)
    last = 0
    missing -= shares[_place(pairs[0])]
    while missing > 0:
        last += 1
        missing -= shares[_place(pairs[last])]
    border: np.int64 = pairs[last]
    return border
