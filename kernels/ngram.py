"""`count_ngrams` counts n-grams in a trie; `likelihood` predicts a text from the counts.

c(u w) is how often token w followed the context u, c(u) the sum of these counts over w, t(u) the
number of different tokens that followed u, and u' the context without its first token. Then
(Witten and Bell, "The zero-frequency problem", 1991, method C, interpolated as by Chen and Goodman,
1998):

    p(w | u) = (c(u w) + t(u) p(w | u')) / (c(u) + t(u))

The empty context falls back to 1 / V. A context that never occurred leaves p(w | u') as it is.

A node of the trie is a sequence of tokens. Its children are found by open addressing in one hash
table whose entries are compared as a whole, so nothing is approximate, and the layout depends on
the order of arrival alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.structs import Ints

_SHIFT = 512
_TINY = 2.0**-_SHIFT
_BITS = 31
_LOW = 0x2545F491
_HIGH = 0x1B873593
"""Factors below 2**30: products with 31 bits fit an int64, so nothing overflows."""


class Trie(NamedTuple):
    """The nodes of a trie; node 0 is the empty sequence."""

    slots: Ints
    """(a power of two,), nodes by hash, 0 for a free slot; at least twice as many as nodes."""
    keys: npt.NDArray[np.int64]
    """(nodes,), parent * V + token."""
    counts: Ints
    """(nodes,), occurrences of the sequence, c(u w)."""
    totals: Ints
    """(nodes,), occurrences of a token after the sequence, c(u)."""
    kinds: Ints
    """(nodes,), different tokens after the sequence, t(u)."""


def allocate_trie(nodes: int) -> Trie:
    """Returns an empty trie for so many nodes, the empty sequence included."""
    return Trie(
        slots=np.zeros(1 << (2 * nodes - 1).bit_length(), np.int32),
        keys=np.zeros(nodes, np.int64),
        counts=np.zeros(nodes, np.int32),
        totals=np.zeros(nodes, np.int32),
        kinds=np.zeros(nodes, np.int32),
    )


@jit_inline
def _find_slot(trie: Trie, key: int) -> int:
    """Returns the slot of a key's node, or the free slot where it belongs."""
    mixed = (key & ((1 << _BITS) - 1)) * _LOW + (key >> _BITS) * _HIGH
    last = trie.slots.size - 1
    slot = ((mixed >> 20) ^ (mixed >> 43)) & last
    while trie.slots[slot] != 0 and trie.keys[trie.slots[slot]] != key:
        slot = (slot + 1) & last
    return slot


@jit
def count_ngrams(tokens: Ints, begin: int, V: int, trie: Trie, path: Ints) -> tuple[int, int]:
    """Counts every sequence of up to path.size tokens.

    Args:
        tokens: (n,), below V. The first one, and every `begin`, is context only.
        begin: the token before which there is no context; below 0 for none.
        V: tokens in the vocabulary.
        trie: empty.
        path: (order,), overwritten.

    Returns:
        The tokens that were read before the trie was full, and its nodes.
    """
    nodes = 1
    depth = 0  # path[k] is the node of the last k tokens, for k up to depth
    path[0] = 0
    for n in range(tokens.size):
        token = int(tokens[n])
        counted = n > 0 and token != begin
        if nodes + path.size > trie.keys.size:
            return n, nodes
        if token == begin:
            depth = 0
        for k in range(depth, -1, -1):
            parent = int(path[k])
            slot = _find_slot(trie, parent * V + token)
            if trie.slots[slot] == 0:
                trie.slots[slot] = nodes
                trie.keys[nodes] = parent * V + token
                nodes += 1
            child = trie.slots[slot]
            if counted:
                trie.kinds[parent] += trie.counts[child] == 0
                trie.counts[child] += 1
                trie.totals[parent] += 1
            if k + 1 < path.size:
                path[k + 1] = child
        depth = min(depth + 1, path.size - 1)
    return tokens.size, nodes


@jit_inline
def _interpolate(trie: Trie, node: int, child: int, shorter: float) -> float:
    """Returns p(w | u).

    Args:
        trie: the counts.
        node: the node of u.
        child: the node of u w; 0 if u w never occurred.
        shorter: p(w | u').
    """
    count = float(trie.counts[child]) if child else 0.0
    kinds = float(trie.kinds[node])
    return (count + kinds * shorter) / (float(trie.totals[node]) + kinds)


@jit
def likelihood(tokens: Ints, begin: int, V: int, trie: Trie, path: Ints) -> tuple[float, int, int]:
    """Multiplies the probabilities of all tokens but the first one and every `begin`.

    Args:
        tokens: (n,), below V.
        begin: as for `count_ngrams`.
        V: tokens in the vocabulary.
        trie: as `count_ngrams` left it.
        path: (order,), overwritten.

    Returns:
        The product as a mantissa m and an exponent e, m 2**e, since the last bits of a logarithm
        differ between platforms; and the number of tokens that were predicted.
    """
    mantissa = 1.0
    exponent = 0
    count = 0
    depth = 0
    path[0] = 0
    for n in range(tokens.size):
        token = int(tokens[n])
        if token == begin:
            depth = 0
        p = 1.0 / V
        deepest = 0
        for k in range(depth + 1):  # a token that never followed these never followed more
            node = int(path[k])
            child = int(trie.slots[_find_slot(trie, node * V + token)])
            if trie.totals[node]:
                p = _interpolate(trie, node, child, p)
            if child and k + 1 < path.size:
                deepest = k + 1
            path[k] = child
        for k in range(min(depth, path.size - 2), -1, -1):
            path[k + 1] = path[k]
        path[0] = 0
        depth = deepest
        if n > 0 and token != begin:
            mantissa *= p
            count += 1
            if mantissa < _TINY:
                mantissa *= 2.0**_SHIFT
                exponent -= _SHIFT
    return mantissa, exponent, count
