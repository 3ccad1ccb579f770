"""`Batch` is the input of one training step; `TextSegments` and `ItemGroup` fill it with tokens.

A batch always has `window` steps of B rows; a step that holds no token has the target `IGNORED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """The input of one training step."""

    tokens: NDArray[np.int32]
    """Input tokens, (T, B) int32; 0 in empty steps."""
    targets: NDArray[np.int32]
    """Tokens to predict, (T, B) int32; `IGNORED` in steps without one."""
    fresh: NDArray[np.bool_]
    """Rows whose hidden state starts at zero before this batch, (B,) bool."""
    steps: int
    """Leading steps that hold tokens; kernels may skip the others."""

    @property
    def token_count(self) -> int:
        """Number of tokens to predict."""
        return int(np.count_nonzero(self.targets != IGNORED))


@dataclass(frozen=True)
class BatchSeries:
    """The inputs of several training steps, one behind the other."""

    tokens: NDArray[np.int32]
    """Input tokens, (N, B) int32: the steps of all batches that hold tokens."""
    targets: NDArray[np.int32]
    """Tokens to predict, (N, B) int32; `IGNORED` in steps without one."""
    fresh: NDArray[np.bool_]
    """Rows whose hidden state starts at zero before each batch, (S, B) bool."""
    lengths: NDArray[np.int32]
    """Steps of each batch, (S,) int32; their sum is N."""

    @staticmethod
    def of(batches: Sequence[Batch]) -> BatchSeries:
        """Returns batches as a series."""
        return BatchSeries(
            np.concatenate([batch.tokens[: batch.steps] for batch in batches]),
            np.concatenate([batch.targets[: batch.steps] for batch in batches]),
            np.stack([batch.fresh for batch in batches]),
            np.array([batch.steps for batch in batches], np.int32),
        )


def even_cuts(length: int, parts: int) -> Ints:
    """Returns the limits of parts of a sequence whose lengths differ by at most 1.

    Args:
        length: Length of the sequence.
        parts: Number of parts.

    Returns:
        The limits of the parts, (parts + 1,) int64, from 0 to `length`.
    """
    return np.arange(parts + 1, dtype=np.int64) * length // parts


@dataclass(frozen=True)
class TextSegments:
    """Segments of one text, side by side: row b goes from `starts[b]` up to `stops[b]`.

    A step at position p of the text reads token p and predicts token p + 1. Positions before
    `scored[b]` are only read for the hidden state.
    """

    data: TokenArray
    starts: Ints
    scored: Ints
    stops: Ints

    @cached_property
    def _full_from(self) -> int:
        """The first step from which on every row has a token to predict."""
        return int((self.scored - self.starts).max())

    @cached_property
    def _full_to(self) -> int:
        """The steps of the shortest row."""
        return int((self.stops - self.starts).min())

    def batch(self, first: int, last: int, window: int) -> Batch:
        """Returns the batch of steps `first` to `last` - 1, counted from the rows' starts.

        Args:
            first: The first step.
            last: The step after the last.
            window: Steps of the batch.
        """
        if self._full_from <= first and last <= self._full_to:
            places = self.starts + np.arange(first, last + 1)[:, None]
            read = _tokens_at(self.data, places)
            return _padded(read[:-1], read[1:], first == 0, window)
        places = self.starts + np.arange(first, last)[:, None]
        inside = places < self.stops
        places = np.minimum(places, len(self.data) - 2)
        tokens = np.where(inside, _tokens_at(self.data, places), 0)
        targets = np.where(
            inside & (places >= self.scored), _tokens_at(self.data, places + 1), IGNORED
        )
        return _padded(tokens, targets, first == 0, window)


@dataclass(frozen=True)
class ItemGroup:
    """Items side by side, each between `begin` and `end`; further rows stay empty."""

    data: TokenArray
    starts: Ints
    lengths: Ints
    begin: int
    end: int
    rows: int

    def batch(self, first: int, last: int, window: int) -> Batch:
        """Returns the batch of steps `first` to `last` - 1, counted from `begin`.

        Args:
            first: The first step.
            last: The step after the last.
            window: Steps of the batch.
        """
        step = np.arange(first, last)[:, None]
        here = np.clip(self.starts + step, 0, len(self.data) - 1)
        before = np.clip(self.starts + step - 1, 0, len(self.data) - 1)
        shape = (last - first, self.rows)
        tokens = np.zeros(shape, np.int32)
        targets = np.full(shape, IGNORED, np.int32)
        filled = slice(0, len(self.starts))
        item = np.where(step == 0, self.begin, _tokens_at(self.data, before))
        tokens[:, filled] = np.where(step <= self.lengths, item, 0)
        item = np.where(step == self.lengths, self.end, _tokens_at(self.data, here))
        targets[:, filled] = np.where(step <= self.lengths, item, IGNORED)
        return _padded(tokens, targets, first == 0, window)


def _tokens_at(data: TokenArray, places: Ints) -> NDArray[np.int32]:
    return data[places].astype(np.int32)


def _padded(
    tokens: NDArray[np.int32], targets: NDArray[np.int32], fresh: bool, window: int
) -> Batch:
    """Returns a batch of `window` steps, the last of which may hold no token."""
    steps, rows = tokens.shape
    if steps == window:
        return Batch(tokens, targets, np.full(rows, fresh), steps)
    all_tokens = np.zeros((window, rows), np.int32)
    all_targets = np.full((window, rows), IGNORED, np.int32)
    all_tokens[:steps] = tokens
    all_targets[:steps] = targets
    return Batch(all_tokens, all_targets, np.full(rows, fresh), steps)
