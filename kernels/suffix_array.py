"""`suffix_array` sorts all suffixes of a text, in linear time.

The array is made by induced sorting (SA-IS: Nong, Zhang and Chan, "Linear suffix array construction
by almost pure induced-sorting", 2009), in time and memory linear in n whatever the text is. A
suffix is of type S if it is smaller than the next one, else of type L. A suffix of type S after one
of type L is leftmost-S (LMS). The sorted LMS suffixes induce the order of all others in two passes.
They are sorted by the same means: their substrings, each up to the next LMS suffix, become the
tokens of a text of at most half the size.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.jit import jit
from treadle.kernels.structs import Bits, Ints


def suffix_array(text: Ints, V: int) -> Ints:
    """Returns where the suffixes of a text start, the smallest suffix first.

    A suffix is smaller than a longer one that it is a prefix of.

    Args:
        text: (n,), each token from 0 to V - 1; n below 2**31.
        V: tokens in the vocabulary.

    Returns:
        (n,) int32. About 16 n bytes are used meanwhile, apart from the text, the result and V.
    """
    n = text.size
    suffixes = np.full(n, -1, np.int32)
    if n < 2:
        return np.arange(n, dtype=np.int32)
    is_s = np.zeros(n, np.uint8)
    buckets = np.zeros((2, V + 1), np.int32)
    _classify(text, is_s, buckets)
    lms = (np.flatnonzero((is_s[:-1] == 0) & (is_s[1:] == 1)) + 1).astype(np.int32)
    _induce(text, is_s, buckets, lms, suffixes)
    if lms.size > 1:
        order = _sort_lms(text, lms, suffixes)
        suffixes[:] = -1
        _induce(text, is_s, buckets, order, suffixes)
    return suffixes


def _sort_lms(text: Ints, lms: Ints, suffixes: Ints) -> Ints:
    """Returns the LMS suffixes in order, given an array with their first substrings in order."""
    order = np.empty_like(lms)
    names = np.empty_like(lms)
    place = np.full(text.size, -1, np.int32)
    different = _name_substrings(text, lms, suffixes, place, order, names)
    return order if different == lms.size else lms[suffix_array(names, different)]


@jit
def _classify(text: Ints, is_s: Bits, buckets: Ints) -> None:
    """Finds the type of each suffix, and where in the array each token's suffixes begin.

    Args:
        text: (n,), n > 0.
        is_s: (n,), zeros; 1 is written for type S.
        buckets: (2, V + 1), zeros; written: where a token's L suffixes begin, and its S suffixes.
    """
    n = text.size
    V = buckets.shape[1] - 1
    l_starts = buckets[0]
    s_starts = buckets[1]
    for i in range(n - 2, -1, -1):
        if text[i] == text[i + 1]:
            is_s[i] = is_s[i + 1]
        else:
            is_s[i] = text[i] < text[i + 1]
    for i in range(n):  # the S suffixes of a token end where the next token begins
        if is_s[i]:
            l_starts[text[i] + 1] += 1
        else:
            s_starts[text[i]] += 1
    for token in range(V):
        s_starts[token] += l_starts[token]
        l_starts[token + 1] += s_starts[token]


@jit
def _induce(text: Ints, is_s: Bits, buckets: Ints, lms: Ints, suffixes: Ints) -> None:
    """Puts all suffixes in the order that the LMS suffixes induce.

    Args:
        text: (n,), n > 0.
        is_s: (n,), as `_classify` left it.
        buckets: (2, V + 1), as `_classify` left it.
        lms: the LMS suffixes in order; given in any order, their substrings end up in order.
        suffixes: (n,), all -1; written.
    """
    n = text.size
    free = buckets[1].copy()
    for k in range(lms.size):
        token = text[lms[k]]
        suffixes[free[token]] = lms[k]
        free[token] += 1
    free[:] = buckets[0]
    suffixes[free[text[n - 1]]] = n - 1  # the last suffix is L, and no suffix induces its place
    free[text[n - 1]] += 1
    for k in range(n):
        i = suffixes[k] - 1
        if i >= 0 and is_s[i] == 0:
            suffixes[free[text[i]]] = i
            free[text[i]] += 1
    free[:] = buckets[0]
    for k in range(n - 1, -1, -1):
        i = suffixes[k] - 1
        if i >= 0 and is_s[i] == 1:
            free[text[i] + 1] -= 1
            suffixes[free[text[i] + 1]] = i


@jit
def _name_substrings(
    text: Ints, lms: Ints, suffixes: Ints, place: Ints, order: Ints, names: Ints
) -> int:
    """Numbers the LMS substrings in their order, equal ones alike.

    Args:
        text: (n,).
        lms: (m,), m > 0, from left to right.
        suffixes: (n,), the substrings in order.
        place: (n,), all -1; overwritten.
        order: (m,), written: the LMS suffixes, their substrings in order.
        names: (m,), written: the number of each, from left to right.

    Returns:
        How many different numbers there are.
    """
    n = text.size
    m = lms.size
    for k in range(m):
        place[lms[k]] = k
    found = 0
    for k in range(n):
        if suffixes[k] >= 0 and place[suffixes[k]] >= 0:
            order[found] = suffixes[k]
            found += 1
    name = 0
    end_before = 0
    start_before = 0
    for k in range(m):
        at = place[order[k]]
        start = lms[at]
        end = lms[at + 1] if at + 1 < m else n
        if k > 0:
            size = end - start
            same = end < n and end_before < n and end_before - start_before == size
            if same:
                i = 0
                while i <= size and text[start_before + i] == text[start + i]:
                    i += 1
                same = i > size
            if not same:
                name += 1
        names[at] = name
        end_before = end
        start_before = start
    return name + 1
