"""Counts of n-grams in a trie, and the Witten-Bell estimate made of them.

With c(u w) how often token w came after the context u, c(u) the sum of these, t(u) how many
different tokens came, and u' the context without its first token (Witten and Bell, "The
zero-frequency problem", 1991, method C, interpolated as by Chen and Goodman, 1998):

    p(w | u) = (c(u w) + t(u) p(w | u')) / (c(u) + t(u))

Below the empty context stands 1 / V; a context that never came leaves p(w | u') as it is. A node
of the trie is a sequence of tokens; its children are found by open addressing in one table, whose
entries are compared as a whole: nothing is approximate, and the order of arrival decides alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.structs import Ints

_TINY, _SHIFT = 2.0**-512, 512
_LOW, _HIGH, _BITS = 0x2545F491, 0x1B873593, 31
"""Factors below 2**30: products with 31 bits stay within an int64, so nothing overflows."""


class Trie(NamedTuple):
    """Room for nodes; node 0 is the empty sequence."""

    slots: Ints
    """(a power of two,), nodes by hash, 0 where there is none; at least twice as many as nodes."""
    keys: npt.NDArray[np.int64]
    """(nodes,), parent * V + token."""
    counts: Ints
    """(nodes,), how often the sequence came, c(u w)."""
    totals: Ints
    """(nodes,), how often a token came after it, c(u)."""
    kinds: Ints
    """(nodes,), how many different ones, t(u)."""


def allocate_trie(nodes: int) -> Trie:
    """Return room for so many nodes, the empty sequence's included."""
    keys = np.zeros(nodes, np.int64)
    counts, totals, kinds = (np.zeros(nodes, np.int32) for _ in range(3))
    return Trie(np.zeros(1 << (2 * nodes - 1).bit_length(), np.int32), keys, counts, totals, kinds)


@jit_inline
def _slot(trie: Trie, key: int) -> int:
    """Return where a key's node stands, or the free slot where it would."""
    mixed = (key & ((1 << _BITS) - 1)) * _LOW + (key >> _BITS) * _HIGH
    last = trie.slots.size - 1
    slot = ((mixed >> 20) ^ (mixed >> 43)) & last
    while trie.slots[slot] != 0 and trie.keys[trie.slots[slot]] != key:
        slot = (slot + 1) & last
    return slot


@jit
def count_ngrams(tokens: Ints, begin: int, V: int, trie: Trie, path: Ints) -> tuple[int, int]:
    """Count every sequence of up to path.size tokens.

    Args:
        tokens: (n,), below V. The first one, and every `begin`, is context alone.
        begin: the token before which there is no context; below 0 for none.
        V: tokens in the vocabulary.
        trie: empty.
        path: (order,), overwritten.

    Returns:
        How many tokens were read before the trie was full, and its nodes.
    """
    nodes, depth = 1, 0  # path[k] is the node of the last k tokens, for k up to depth
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
            slot = _slot(trie, parent * V + token)
            if trie.slots[slot] == 0:
                trie.slots[slot], trie.keys[nodes] = nodes, parent * V + token
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
def _mixed(trie: Trie, node: int, child: int, below: float) -> float:
    """p(w | u) from p(w | u'), for the node of u and the node of u w, 0 if it never came."""
    came, kinds = float(trie.counts[child]) if child else 0.0, float(trie.kinds[node])
    return (came + kinds * below) / (float(trie.totals[node]) + kinds)


@jit
def likelihood(tokens: Ints, begin: int, V: int, trie: Trie, path: Ints) -> tuple[float, int, int]:
    """Multiply the probabilities of all tokens but the first one and every `begin`.

    Args:
        tokens: (n,), below V.
        begin: as for `count_ngrams`.
        V: tokens in the vocabulary.
        trie: as `count_ngrams` left it.
        path: (order,), overwritten.

    Returns:
        A mantissa m and an exponent e, m 2**e being the product: no logarithm, whose last bits
        differ between platforms, is taken; and how many tokens were foretold.
    """
    mantissa, exponent, count, depth = 1.0, 0, 0, 0
    path[0] = 0
    for n in range(tokens.size):
        token = int(tokens[n])
        if token == begin:
            depth = 0
        p, deepest = 1.0 / V, 0
        for k in range(depth + 1):  # a token that never came after these came after no more
            node = int(path[k])
            child = int(trie.slots[_slot(trie, node * V + token)])
            if trie.totals[node]:
                p = _mixed(trie, node, child, p)
            if child and k + 1 < path.size:
                deepest = k + 1
            path[k] = child
        for k in range(min(depth, path.size - 2), -1, -1):
            path[k + 1] = path[k]
        path[0], depth = 0, deepest
        if n > 0 and token != begin:
            mantissa, count = mantissa * p, count + 1
            if mantissa < _TINY:
                mantissa, exponent = mantissa * 2.0**_SHIFT, exponent - _SHIFT
    return mantissa, exponent, count
