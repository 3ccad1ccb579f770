"""`GradientExchange` adds up the gradients of a batch's shards where these are on several ranks.

Every rank adds up one slice of the gradient: it gets that slice of every shard, adds them in the
order of the shards by the same kernel as a single process does, and gives the sum to all ranks. So
the bits do not depend on the number of ranks, nor on which rank computes which shard.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.shards import add_shards
from treadle.model.network.parallel import Pool, parts

if TYPE_CHECKING:
    from treadle.model.network.ranks.ranks import Ranks

Array = npt.NDArray[np.float32]

_LINE = 16
"""Floats of a cache line, on which every slice begins."""

_FIRST_TAG = 8
"""The tag of shard 0."""


def share_out(items: int, ranks: int) -> list[range]:
    """Divides items among ranks, in order: their numbers differ by one at most.

    Rank 0, which also prepares the batches, never has more than another rank.

    Args:
        items: How many there are.
        ranks: How many ranks there are.

    Returns:
        The items of every rank.
    """
    cuts = [rank * items // ranks for rank in range(ranks + 1)]
    return [range(*cuts[rank : rank + 2]) for rank in range(ranks)]


class GradientExchange:
    """Adds up gradients of one size.

    Args:
        ranks: The processes of the run.
        shards: Shards of a batch.
        size: Elements of a shard's gradient, whole cache lines.
    """

    def __init__(self, ranks: Ranks, shards: int, size: int) -> None:
        self._ranks = ranks
        self.shares = share_out(shards, ranks.size)
        """The shards of every rank."""
        self._slices = [
            slice(lines.start * _LINE, lines.stop * _LINE)
            for lines in share_out(size // _LINE, ranks.size)
        ]
        own = self.shares[ranks.rank]
        mine = self._slices[ranks.rank]
        self.gradients: Array = aligned_zeros((len(own), size))
        """The gradients of this rank's shards, to be written before `send`."""
        self.total: Array = aligned_zeros(size)
        """After `finish`, the sum of all shards' gradients."""
        self._received: Array = aligned_zeros((shards - len(own), mine.stop - mine.start))
        self._parts = parts(mine.stop - mine.start)
        self._sources: list[Array] = []
        """This rank's slice of every shard, (1, N) each."""
        for rank, share in enumerate(self.shares):
            for shard in share:
                if rank == ranks.rank:
                    row = self.gradients[shard - own.start : shard - own.start + 1, mine]
                else:
                    place = shard if shard < own.start else shard - len(own)
                    row = self._received[place : place + 1]
                self._sources.append(row)
        self._lock = threading.Lock()
        self._sends: list[Any] = []
        self._receives: list[Any] = []

    def begin(self) -> None:
        """Gets ready for the shards of the other ranks."""
        self._sends = []
        self._receives = [
            None
            if rank == self._ranks.rank
            else self._ranks.receive(self._sources[shard], rank, _FIRST_TAG + shard)
            for rank, share in enumerate(self.shares)
            for shard in share
        ]

    def send(self, number: int) -> None:
        """Begins to send the gradient of one of this rank's shards; any thread may call it.

        Args:
            number: Which of them, from 0.
        """
        gradient = self.gradients[number]
        tag = _FIRST_TAG + self.shares[self._ranks.rank].start + number
        with self._lock:
            for rank, part in enumerate(self._slices):
                if rank != self._ranks.rank:
                    self._sends.append(self._ranks.send(gradient[part], rank, tag))

    def finish(self, pool: Pool) -> None:
        """Adds up the shards of all ranks, in order; `total` then holds the sum.

        Args:
            pool: The threads that share the work.
        """
        mine = self.total[self._slices[self._ranks.rank]]
        for number, (source, receive) in enumerate(zip(self._sources, self._receives, strict=True)):
            if receive is not None:
                self._ranks.wait([receive])
            self._add(source, mine, number == 0, pool)
        self._ranks.all_gather(self.total, self._slices)
        self._ranks.wait(self._sends)

    def _add(self, source: Array, total: Array, is_first: bool, pool: Pool) -> None:
        def add(part: slice) -> None:
            if is_first:
                total[part] = source[0, part]
            else:
                add_shards(source, total, part.start, part.stop)

        pool.map(add, self._parts)


def rows_of(shares: Sequence[range], slices: Sequence[slice]) -> list[slice]:
    """Returns the rows of a batch that every rank computes.

    Args:
        shares: The shards of every rank.
        slices: The rows of every shard.
    """
    edges = [0, *(each.stop for each in slices)]
    return [slice(edges[share.start], edges[share.stop]) for share in shares]
