"""`ValidationBatches` are one pass over a validation part, or over a fixed sample of it.

A text is cut into rows side by side, and a sample is the beginning of every row. Items are sorted
by length into groups, and a sample consists of groups at even distances. So a sample is spread over
the whole part, and depends only on the part and on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from treadle.model.data.batch import Batch, Ints, ItemGroup, TextSegments, even_cuts
from treadle.model.data.batching import item_tokens

if TYPE_CHECKING:
    from treadle.model.data.splits import TokenData
    from treadle.model.tokenizers.base import Tokenizer


class ValidationBatches:
    """One pass over a validation part or a sample of it, which predicts every token exactly once.

    Args:
        data: The validation part.
        tokenizer: The tokenizer of the tokens.
        streams: Most rows side by side; fewer if they would be shorter than the window.
        window: Steps of every batch.
        context: Text: tokens that a row reads before its own without predicting them, so that its
            hidden state is warmed up.
        at_most: Tokens of the sample, rounded up to whole steps of all rows, or to whole groups
            of items; None: the whole part.
    """

    def __init__(
        self,
        data: TokenData,
        tokenizer: Tokenizer,
        streams: int,
        window: int,
        context: int,
        at_most: int | None = None,
    ) -> None:
        self._data = data
        self._window = window
        self._ends = (-1, -1) if data.offsets is None else item_tokens(tokenizer)
        self._text: TextSegments | None = None
        self._groups: tuple[Ints, ...] = ()
        self.tokens = 0
        """Number of tokens that the pass predicts."""
        if data.offsets is None:
            self._cut_text(streams, context, at_most)
        elif data.items:
            self._group_items(streams, at_most)

    def _cut_text(self, streams: int, context: int, at_most: int | None) -> None:
        transitions = len(self._data.tokens) - 1
        if transitions < 1:
            return
        rows = max(1, min(streams, transitions // self._window))
        edges = even_cuts(transitions, rows)
        firsts = edges[:-1]
        stops = edges[1:]
        if at_most is not None:
            stops = np.minimum(stops, firsts - (-at_most // rows))
        starts = np.maximum(firsts - context, 0)
        self._text = TextSegments(self._data.tokens, starts, firsts, stops)
        self.tokens = int((stops - firsts).sum())

    def _group_items(self, streams: int, at_most: int | None) -> None:
        assert self._data.offsets is not None
        lengths = np.diff(self._data.offsets)
        order = np.argsort(lengths, kind="stable")
        self._rows = min(streams, self._data.items)
        groups = -(-self._data.items // self._rows)
        chosen = np.arange(groups)
        if at_most is not None and at_most < self._data.predicted:
            count = -(-groups * at_most // self._data.predicted)
            chosen = (2 * np.arange(count) + 1) * groups // (2 * count)
        self._groups = tuple(order[g * self._rows : (g + 1) * self._rows] for g in chosen.tolist())
        self.tokens = sum(int(lengths[group].sum()) + len(group) for group in self._groups)

    def __iter__(self) -> Iterator[Batch]:
        if self._text is not None:
            text = self._text
            yield from self._windows(text, int((text.stops - text.starts).max()))
        for group in self._groups:
            items = self._items(group)
            yield from self._windows(items, int(items.lengths[-1]) + 1)

    def _items(self, group: Ints) -> ItemGroup:
        assert self._data.offsets is not None
        starts = self._data.offsets[group]
        lengths = self._data.offsets[group + 1] - starts
        begin, end = self._ends
        return ItemGroup(self._data.tokens, starts, lengths, begin, end, self._rows)

    def _windows(self, rows: TextSegments | ItemGroup, length: int) -> Iterator[Batch]:
        for first in range(0, length, self._window):
            yield rows.batch(first, min(first + self._window, length), self._window)
