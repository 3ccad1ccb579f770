r"""`make_batches` turns a training part into `Batches`: an endless sequence of batches.

Every token is trained on exactly once per pass: nothing is dropped at the end. If a length does
not divide evenly, the parts differ by one step. A short remainder would be worse: its gradient
would have the weight of a full batch.

- Text: the n - 1 transitions from one token to the next are cut into `batch_size` streams,
  side by side; hidden state is carried from batch to batch until the pass ends.
- Lines: an item is trained on as `begin item -> item end`. Each pass draws an order of the items,
  takes pools of `POOL` groups, sorts each pool by length so that the rows of a group end at
  about the same step, and draws an order of the groups. A group longer than the window takes
  several batches of the same rows, with state carried.

Both continue from any `position` exactly as if they had never stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np

from treadle.model.data.batch import (
    IGNORED,
    Batch,
    BatchSeries,
    ItemGroup,
    TextSegments,
    even_cuts,
)
from treadle.model.data.shuffle import Purpose, permutation
from treadle.model.errors import CorpusError, LoadError

if TYPE_CHECKING:
    from treadle.model.config import DataConfig
    from treadle.model.data.corpus import TokenData
    from treadle.model.tokenizers.base import Tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "Batches",
    "LineBatches",
    "TextBatches",
    "make_batches",
]

POOL = 64
"""Groups whose items are sorted by length together."""


class Batches(ABC):
    """An endless sequence of batches, pass after pass over the training part.

    Args:
        batch_size: Rows of a batch.
        window: Steps of a batch.
        tokens_per_epoch: Tokens predicted in one pass.
        notices: Notices about sizes that were shrunk.
    """

    batch_size: int
    """Rows of every batch, after shrinking."""
    window: int
    """Steps of every batch, after shrinking."""
    tokens_per_epoch: int
    """Tokens predicted in one pass."""
    notices: tuple[str, ...]
    """Notices about sizes that were shrunk."""

    def __init__(
        self, batch_size: int, window: int, tokens_per_epoch: int, notices: tuple[str, ...]
    ) -> None:
        self.batch_size = batch_size
        self.window = window
        self.tokens_per_epoch = tokens_per_epoch
        self.notices = notices
        self._epoch = 0
        self._batch = 0

    @property
    def position(self) -> dict[str, int]:
        """The position of the next batch: `epoch` and `batch`, both from 0."""
        return {"epoch": self._epoch, "batch": self._batch}

    def seek(self, position: Mapping[str, int]) -> None:
        """Continues from a `position` of batches over the same data with the same settings.

        Args:
            position: The position.

        Raises:
            LoadError: There is no such position.
        """
        epoch = position.get("epoch", -1)
        batch = position.get("batch", -1)
        whole = isinstance(epoch, int) and isinstance(batch, int)
        if not whole or not 0 <= epoch < 2**32 or not 0 <= batch < self.batches_in(epoch):
            raise LoadError(
                f"the position in the corpus (epoch {epoch}, batch {batch}) does not exist: "
                "continue with the corpus and the settings that the run began with"
            )
        self._epoch = epoch
        self._batch = batch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = self._make(self._epoch, self._batch)
        self._batch += 1
        if self._batch == self.batches_in(self._epoch):
            self._epoch += 1
            self._batch = 0
        return batch

    def series(self, count: int) -> BatchSeries:
        """Returns the next batches, `count` of them or fewer, as a series."""
        return BatchSeries.of([next(self) for _ in range(count)])

    @abstractmethod
    def batches_in(self, epoch: int) -> int:
        """Returns the number of batches of an epoch, which may depend on the drawn orders."""

    @abstractmethod
    def _make(self, epoch: int, batch: int) -> Batch:
        """Returns one batch."""


class TextBatches(Batches):
    """Batches of one long text.

    Args:
        data: The text's tokens, 2 or more.
        batch_size: Streams side by side. Shrunk until each is as long as the window.
        window: Steps of a batch. Shrunk if one stream is still too short.

    Raises:
        CorpusError: There are fewer than 2 tokens.
    """

    def __init__(self, data: TokenData, batch_size: int, window: int) -> None:
        count = len(data.tokens)
        transitions = count - 1
        if transitions < 1:
            raise CorpusError(f"a text of {count} tokens has nothing to predict: give it more")
        rows = max(1, min(batch_size, transitions // window))
        steps = min(window, transitions)
        reason = f"the corpus has {count:,} tokens to train on"
        notices = _shrunk("batch size", batch_size, rows, reason)
        notices += _shrunk("window", window, steps, reason)
        super().__init__(rows, steps, transitions, notices)
        edges = even_cuts(transitions, rows)
        self._segments = TextSegments(data.tokens, edges[:-1], edges[:-1], edges[1:])
        longest = int(np.diff(edges).max())
        self._cuts = even_cuts(longest, -(-longest // steps))

    def batches_in(self, epoch: int) -> int:
        """Returns the number of batches of an epoch, which is always the same."""
        return len(self._cuts) - 1

    def series(self, count: int) -> BatchSeries:
        """Returns the next batches, up to the end of the epoch, as a series."""
        begin = self._batch
        end = min(begin + count, self.batches_in(self._epoch))
        cuts = self._cuts[begin : end + 1]
        first, last = (int(cut) for cut in (cuts[0], cuts[-1]))
        whole = self._segments.batch(first, last, last - first)
        fresh = np.zeros((end - begin, self.batch_size), np.bool_)
        fresh[0] = whole.fresh
        self._batch = end
        if end == self.batches_in(self._epoch):
            self._epoch += 1
            self._batch = 0
        return BatchSeries(whole.tokens, whole.targets, fresh, np.diff(cuts).astype(np.int32))

    def _make(self, epoch: int, batch: int) -> Batch:
        first, last = self._cuts[batch : batch + 2].tolist()
        return self._segments.batch(first, last, self.window)


class LineBatches(Batches):
    """Batches of items.

    Args:
        data: The items, 1 or more.
        begin: The token before every item.
        end: The token after every item.
        batch_size: Items side by side. Shrunk to the number of items.
        window: Steps of a batch. Shrunk to the longest item and its end token.
        seed: Seed of the orders.

    Raises:
        CorpusError: There is no item.
    """

    def __init__(
        self, data: TokenData, begin: int, end: int, batch_size: int, window: int, seed: int
    ) -> None:
        if data.offsets is None or not data.items:
            raise CorpusError(
                "a corpus of lines without a line has nothing to predict: give it some"
            )
        self._data = data.tokens
        self._offsets = data.offsets
        self._begin = begin
        self._end = end
        self._seed = seed
        self._lengths = np.diff(data.offsets)
        longest = int(self._lengths.max())
        rows = min(batch_size, data.items)
        steps = min(window, longest + 1)
        notices = _shrunk("batch size", batch_size, rows, f"there are {rows:,} lines to train on")
        notices += _shrunk("window", window, steps, f"the longest line has {longest:,} tokens")
        super().__init__(rows, steps, data.predicted, notices)
        self._planned = -1
        self._plan(0)

    def _plan(self, epoch: int) -> None:
        """Draws the order of an epoch's items and groups."""
        if self._planned == epoch:
            return
        count = len(self._lengths)
        cuts = even_cuts(count, -(-count // self.batch_size))
        order = permutation(count, self._seed, Purpose.TRAINING_ITEMS, epoch)
        for pool in range(0, len(cuts) - 1, POOL):
            span = slice(cuts[pool], cuts[min(pool + POOL, len(cuts) - 1)])
            by_length = np.argsort(self._lengths[order[span]], kind="stable")
            order[span] = order[span][by_length]
        self._order = order
        self._cuts = cuts
        self._groups = permutation(len(cuts) - 1, self._seed, Purpose.TRAINING_GROUPS, epoch)
        # The last item of a group is its longest.
        lasting = self._lengths[order[cuts[1:] - 1]][self._groups] + 1
        self._first_batches = np.append(0, np.cumsum(-(-lasting // self.window)))
        self._planned = epoch

    def batches_in(self, epoch: int) -> int:
        """Returns the number of batches of an epoch; it varies if items exceed the window."""
        self._plan(epoch)
        return int(self._first_batches[-1])

    def _make(self, epoch: int, batch: int) -> Batch:
        self._plan(epoch)
        place = int(np.searchsorted(self._first_batches, batch, side="right")) - 1
        first_batch, next_batch = self._first_batches[place : place + 2].tolist()
        group = int(self._groups[place])
        chosen = self._order[self._cuts[group] : self._cuts[group + 1]]
        items = ItemGroup(
            self._data,
            self._offsets[chosen],
            self._lengths[chosen],
            self._begin,
            self._end,
            self.batch_size,
        )
        cuts = even_cuts(int(items.lengths[-1]) + 1, next_batch - first_batch)
        first, last = cuts[batch - first_batch : batch - first_batch + 2].tolist()
        return items.batch(first, last, self.window)


def _shrunk(name: str, asked: int, given: int, reason: str) -> tuple[str, ...]:
    return (f"{name} {asked:,} shrunk to {given:,}: {reason}",) if given < asked else ()


def make_batches(data: TokenData, config: DataConfig, tokenizer: Tokenizer, seed: int) -> Batches:
    """Returns the batches of a training part.

    Args:
        data: The training part.
        config: Its batch size and window are upper bounds.
        tokenizer: The tokenizer of the tokens.
        seed: Seed of the orders of items.

    Raises:
        CorpusError: There is nothing to predict.
    """
    if data.offsets is None:
        return TextBatches(data, config.batch_size, config.window)
    begin, end = item_tokens(tokenizer)
    return LineBatches(data, begin, end, config.batch_size, config.window, seed)


def item_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the tokens before and after every item.

    Args:
        tokenizer: A tokenizer built for the layout LINES.
    """
    if tokenizer.begin is None or tokenizer.end is None:
        raise ValueError("items need a tokenizer built for the layout LINES")
    return tokenizer.begin, tokenizer.end
