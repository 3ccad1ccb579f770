"""One batch, and the two ways to lay tokens side by side in it.

A batch has `window` steps of B rows, always; what holds nothing has the target `IGNORED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from treadle.model.data.token_array import TokenArray

IGNORED = -1
"""The target of a step that is not trained on."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """What one step of training reads."""

    tokens: NDArray[np.int32]
    """What the network sees, (T, B) int32; 0 where there is nothing."""
    targets: NDArray[np.int32]
    """What it is to foretell, (T, B) int32; `IGNORED` where nothing is to be."""
    fresh: NDArray[np.bool_]
    """Rows whose hidden state starts at zero before this batch, (B,) bool."""
    steps: int
    """Leading steps that hold anything: the kernels may leave out the others."""

    @property
    def token_count(self) -> int:
        """Tokens to foretell."""
        return int(np.count_nonzero(self.targets != IGNORED))


def even_cuts(length: int, parts: int) -> Ints:
    """Returns where to cut `length` into parts that differ by 1 at most, (parts + 1,) int64."""
    return np.arange(parts + 1, dtype=np.int64) * length // parts


@dataclass(frozen=True)
class TextRows:
    """Stretches of one text, side by side: row b goes from `starts[b]` to before `stops[b]`.

    A step at place p of the text sees token p and foretells token p + 1; those before
    `scored[b]` are read for their state only.
    """

    data: TokenArray
    starts: Ints
    scored: Ints
    stops: Ints

    def batch(self, first: int, last: int, window: int) -> Batch:
        """Returns the batch of steps `first` to before `last`, counted from the rows' starts."""
        places = self.starts + np.arange(first, last)[:, None]
        inside = places < self.stops
        places = np.minimum(places, len(self.data) - 2)
        tokens = np.where(inside, self._at(places), 0)
        targets = np.where(inside & (places >= self.scored), self._at(places + 1), IGNORED)
        return _padded(tokens, targets, first == 0, window)

    def _at(self, places: Ints) -> NDArray[np.int32]:
        return self.data[places].astype(np.int32)


@dataclass(frozen=True)
class ItemRows:
    """Items side by side, each between `begin` and `end`; rows beyond them stay empty."""

    data: TokenArray
    starts: Ints
    lengths: Ints
    begin: int
    end: int
    rows: int

    def batch(self, first: int, last: int, window: int) -> Batch:
        """Returns the batch of steps `first` to before `last`, counted from `begin`."""
        step = np.arange(first, last)[:, None]
        here = np.clip(self.starts + step, 0, len(self.data) - 1)
        before = np.clip(self.starts + step - 1, 0, len(self.data) - 1)
        shape = (last - first, self.rows)
        tokens, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
        filled = slice(0, len(self.starts))
        item = np.where(step == 0, self.begin, self._at(before))
        tokens[:, filled] = np.where(step <= self.lengths, item, 0)
        item = np.where(step == self.lengths, self.end, self._at(here))
        targets[:, filled] = np.where(step <= self.lengths, item, IGNORED)
        return _padded(tokens, targets, first == 0, window)

    def _at(self, places: Ints) -> NDArray[np.int32]:
        return self.data[places].astype(np.int32)


def _padded(
    tokens: NDArray[np.int32], targets: NDArray[np.int32], fresh: bool, window: int
) -> Batch:
    """Returns a batch of `window` steps, the last of which may hold nothing."""
    steps, rows = tokens.shape
    all_tokens = np.zeros((window, rows), np.int32)
    all_targets = np.full((window, rows), IGNORED, np.int32)
    all_tokens[:steps], all_targets[:steps] = tokens, targets
    return Batch(all_tokens, all_targets, np.full(rows, fresh), steps)
