"""Suffix arrays: where all suffixes of a text start, in their order.

The array is made by induced sorting (Nong, Zhang and Chan, "Linear suffix array construction by
almost pure induced-sorting", 2009), in time and memory linear in n whatever the text is. A suffix
is S where it is smaller than the one after it, else L; one that is S after an L is leftmost (LMS).
Those in order put all others in order in two passes, and they are put in order by the same means:
their pieces, up to the next one, become the tokens of a text of half the size at most.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.jit import jit
from treadle.kernels.structs import Bits, Ints


def suffix_array(text: Ints, V: int) -> Ints:
    """Return where the suffixes of a text start, the smallest suffix first.

    A suffix is smaller than a longer one that it begins.

    Args:
        text: (n,), each token from 0 to V - 1; n below 2**31.
        V: tokens in the vocabulary.

    Returns:
        (n,) int32. Beside it, the text and V, about 16 n bytes are taken meanwhile.
    """
    n = text.size
    suffixes = np.full(n, -1, np.int32)
    if n < 2:
        return np.arange(n, dtype=np.int32)
    small, buckets = np.zeros(n, np.uint8), np.zeros((2, V + 1), np.int32)
    _classify(text, small, buckets)
    lms = (np.flatnonzero((small[:-1] == 0) & (small[1:] == 1)) + 1).astype(np.int32)
    _induce(text, small, buckets, lms, suffixes)
    if lms.size > 1:
        order = _in_order(text, lms, suffixes)
        suffixes[:] = -1
        _induce(text, small, buckets, order, suffixes)
    return suffixes


def _in_order(text: Ints, lms: Ints, suffixes: Ints) -> Ints:
    """Return the LMS suffixes in order, of an array that has their first pieces in order."""
    order, names = np.empty_like(lms), np.empty_like(lms)
    different = _name(text, lms, suffixes, np.full(text.size, -1, np.int32), order, names)
    return order if different == lms.size else lms[suffix_array(names, different)]


@jit
def _classify(text: Ints, small: Bits, buckets: Ints) -> None:
    """Tell S from L, and where in the array each token's suffixes begin.

    Args:
        text: (n,), n > 0.
        small: (n,), zeros; 1 is written for S.
        buckets: (2, V + 1), zeros; written is where a token's L begin, and its S.
    """
    n, V = text.size, buckets.shape[1] - 1
    large, smaller = buckets[0], buckets[1]
    for i in range(n - 2, -1, -1):
        if text[i] == text[i + 1]:
            small[i] = small[i + 1]
        else:
            small[i] = text[i] < text[i + 1]
    for i in range(n):  # the S of a token end where the next token begins
        if small[i]:
            large[text[i] + 1] += 1
        else:
            smaller[text[i]] += 1
    for token in range(V):
        smaller[token] += large[token]
        large[token + 1] += smaller[token]


@jit
def _induce(text: Ints, small: Bits, buckets: Ints, lms: Ints, suffixes: Ints) -> None:
    """Put all suffixes in order.

    Args:
        text: (n,), n > 0.
        small: (n,), as `_classify` left it.
        buckets: (2, V + 1), as `_classify` left it.
        lms: the LMS suffixes in order; in any order, the pieces of LMS suffixes come in order.
        suffixes: (n,), all -1; written.
    """
    n = text.size
    free = buckets[1].copy()
    for k in range(lms.size):
        token = text[lms[k]]
        suffixes[free[token]] = lms[k]
        free[token] += 1
    free[:] = buckets[0]
    suffixes[free[text[n - 1]]] = n - 1  # the last one is L, and nothing after it puts it there
    free[text[n - 1]] += 1
    for k in range(n):
        i = suffixes[k] - 1
        if i >= 0 and small[i] == 0:
            suffixes[free[text[i]]] = i
            free[text[i]] += 1
    free[:] = buckets[0]
    for k in range(n - 1, -1, -1):
        i = suffixes[k] - 1
        if i >= 0 and small[i] == 1:
            free[text[i] + 1] -= 1
            suffixes[free[text[i] + 1]] = i


@jit
def _name(text: Ints, lms: Ints, suffixes: Ints, place: Ints, order: Ints, names: Ints) -> int:
    """Number the pieces of LMS suffixes in their order, equal ones alike.

    Args:
        text: (n,).
        lms: (m,), m > 0, from left to right.
        suffixes: (n,), the pieces in order.
        place: (n,), all -1; overwritten.
        order: (m,), written: LMS suffixes, their pieces in order.
        names: (m,), written: the number of each, from left to right.

    Returns:
        How many different numbers there are.
    """
    n, m, count = text.size, lms.size, 0
    for k in range(m):
        place[lms[k]] = k
    for k in range(n):
        if suffixes[k] >= 0 and place[suffixes[k]] >= 0:
            order[count] = suffixes[k]
            count += 1
    name, left, before = 0, 0, 0
    for k in range(m):
        at = place[order[k]]
        right = lms[at + 1] if at + 1 < m else n
        if k > 0:
            size = right - lms[at]
            same = right < n and left < n and left - before == size
            if same:
                i = 0
                while i <= size and text[before + i] == text[lms[at] + i]:
                    i += 1
                same = i > size
            if not same:
                name += 1
        names[at], left, before = name, right, lms[at]
    return name + 1
