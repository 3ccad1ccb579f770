"""`count_targets` and `add_shards` do what a batch needs before and after its shards."""

from __future__ import annotations

from treadle.kernels.jit import jit
from treadle.kernels.structs import Array, Ints


@jit
def count_targets(tokens: Ints, targets: Ints, V: int) -> int:
    """Counts the targets of a batch, and checks that everything in it is in the vocabulary.

    Args:
        tokens: (T, B).
        targets: (T, B); below 0 where there is nothing to learn.
        V: tokens in the vocabulary.

    Returns:
        The number of targets; -1 if a token or a target is not in the vocabulary.
    """
    read = tokens.reshape(tokens.size)
    expected = targets.reshape(targets.size)
    count = 0
    outside = 0
    for n in range(read.size):
        outside += (read[n] < 0) | (read[n] >= V)
    for n in range(expected.size):
        outside += (expected[n] < -1) | (expected[n] >= V)
        count += expected[n] >= 0
    return -1 if outside else count


@jit
def count_series(tokens: Ints, targets: Ints, lengths: Ints, V: int, counts: Ints) -> bool:
    """Counts the targets of every batch of a series.

    Args:
        tokens: (N, B), the steps of all batches.
        targets: (N, B).
        lengths: (S,), steps of every batch.
        V: tokens in the vocabulary.
        counts: (S,), written.

    Returns:
        Whether all tokens and targets are in the vocabulary.
    """
    first = 0
    for n in range(lengths.size):
        last = first + lengths[n]
        counts[n] = count_targets(tokens[first:last], targets[first:last], V)
        if counts[n] < 0:
            return False
        first = last
    return True


@jit
def add_shards(others: Array, total: Array, first: int, last: int) -> None:
    """Adds the gradients of further shards to that of the first, shard by shard.

    Args:
        others: (S, N), the further shards in order.
        total: (N,), elements `first` to `last` of which are added to.
        first: the first element.
        last: the element after the last.
    """
    for shard in range(others.shape[0]):
        for n in range(first, last):
            total[n] += others[shard, n]
