"""The batches of a validation: a whole part of a corpus, or the same sample of it every time.

Of a text the part is cut in rows side by side, and a sample is the beginning of every row. Of
items, sorted by length, a sample is groups at even distances. So a sample is spread over the
whole part, and it depends on the part and on the number of tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from treadle.model.data.batch import Batch, Ints, ItemRows, TextRows, even_cuts
from treadle.model.data.batching import item_tokens

if TYPE_CHECKING:
    from treadle.model.data.splits import TokenData
    from treadle.model.tokenizers.base import Tokenizer


class ValidationBatches:
    """One pass over a validation part or a sample of it; predicts every token exactly once.

    Args:
        data: The validation part.
        tokenizer: What made the tokens.
        streams: Rows side by side at most; fewer where they would be shorter than the window.
        window: Steps of every batch.
        context: Text: tokens that a row reads, unscored, before its own, so that it starts as
            warm as if it had come from there.
        at_most: Tokens of the sample, rounded up to whole steps of all rows, or to whole groups
            of items; None: the whole part.
    """

    def __init__(
        self, data: TokenData, tokenizer: Tokenizer, streams: int, window: int, context: int,
        at_most: int | None = None,
    ) -> None:  # fmt: skip
        self._data = data
        self._window = window
        self._ends = (-1, -1) if data.offsets is None else item_tokens(tokenizer)
        self._text: TextRows | None = None
        self._groups: tuple[Ints, ...] = ()
        self.tokens = 0
        """Tokens that are predicted in all."""
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
        firsts, stops = edges[:-1], edges[1:]
        if at_most is not None:
            stops = np.minimum(stops, firsts - (-at_most // rows))
        starts = np.maximum(firsts - context, 0)
        self._text = TextRows(self._data.tokens, starts, firsts, stops)
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

    def _items(self, group: Ints) -> ItemRows:
        assert self._data.offsets is not None
        starts = self._data.offsets[group]
        lengths = self._data.offsets[group + 1] - starts
        begin, end = self._ends
        return ItemRows(self._data.tokens, starts, lengths, begin, end, self._rows)

    def _windows(self, rows: TextRows | ItemRows, length: int) -> Iterator[Batch]:
        for first in range(0, length, self._window):
            yield rows.batch(first, min(first + self._window, length), self._window)
