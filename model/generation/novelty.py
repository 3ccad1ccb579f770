"""What of a generated text is new: an index of the training part, stored with the model.

The index is the training part's tokens and their suffix array (`treadle.kernels.suffix_array` makes
it and `treadle.kernels.substring_match` looks up by it). Of the layout LINES every item stands in
it once, with the tokenizer's `begin` before, between and after items. A generated item is looked up
without it, so no overlap goes from one item into the next; and an item is known if it stands there
with `begin` on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.kernels.substring_match import longest_match, longest_prefix
from treadle.kernels.suffix_array import suffix_array
from treadle.model.config import TokenizerKind, UnknownPolicy
from treadle.model.data.token_array import TokenArray, release_pages, token_type
from treadle.model.errors import LoadError
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.token_ids import TokenIds as Ids
from treadle.model.tokenizers.token_ids import check_tokens

MAX_TOKENS = 1 << 25
"""Tokens of the largest training part that is indexed, each item's end counted as one."""

TOKENS, SUFFIXES = NAMES = ("novelty.tokens", "novelty.suffixes")
"""The tensors of an index in a model file."""

_STRANGER = -1
"""Stands nowhere in an index."""

_BYTES_A_TOKEN = 32
"""What is taken for each token while an index is made, at most."""


@dataclass(frozen=True)
class Novelty:
    """How much of a text the training part holds already."""

    longest_overlap: int
    """Code points of the longest piece of the text that stands there, of whole tokens."""
    is_new: bool
    """Whether the text is no item of it (LINES), or does not stand in it as a whole (TEXT)."""


def indexed_tokens(tokens: TokenArray, offsets: NDArray[np.int64] | None) -> int:
    """Return how many tokens an index of a training part would hold, items not yet made one."""
    return int(tokens.size) + (0 if offsets is None else len(offsets) - 1)


def indexing_bytes(count: int) -> int:
    """Return what is taken, in bytes, while an index of so many tokens is made; 0 for too many."""
    return _BYTES_A_TOKEN * count if count <= MAX_TOKENS else 0


def too_large(count: int) -> str:
    """Return why a training part of so many tokens gets no index, in a sentence; else nothing."""
    if count <= MAX_TOKENS:
        return ""
    return (
        f"the training part has {count:,} tokens, more than the {MAX_TOKENS:,} that a novelty "
        "index takes: the model gets none"
    )


class NoveltyIndex:
    """Tells what of a text stands in a training part; safe from many threads at once."""

    def __init__(self, tokens: TokenArray, suffixes: NDArray[np.int32]) -> None:
        """Take an index that is known to be whole; see `build` and `from_tensors`.

        Args:
            tokens: (n,), in the smallest type that holds the vocabulary.
            suffixes: (n,) int32, their suffix array.
        """
        # One kind of array, that which may be written to, is one compilation of each kernel.
        self._tokens: TokenArray = np.require(tokens, requirements=("C", "W"))
        self._suffixes: NDArray[np.int32] = np.require(suffixes, requirements=("C", "W"))

    @property
    def nbytes(self) -> int:
        """What it takes in memory, and in a file, in bytes."""
        return self._tokens.nbytes + self._suffixes.nbytes

    @classmethod
    def build(
        cls, tokens: TokenArray, offsets: NDArray[np.int64] | None, tokenizer: Tokenizer
    ) -> NoveltyIndex:
        """Make the index of a training part.

        Args:
            tokens: (n,), all items' one after the other; they may lie in a file.
            offsets: where each item starts, (items + 1,), the last entry n; None: layout TEXT.
            tokenizer: what made the tokens.

        Raises:
            ValueError: there are too many; ask `too_large` before.
            TokenError: one is not in the vocabulary.
        """
        reason = too_large(indexed_tokens(tokens, offsets))
        if reason:
            raise ValueError(reason)
        V = tokenizer.vocabulary_size
        text = np.array(tokens)
        release_pages(tokens)
        check_tokens(text, V)
        text = text.astype(token_type(V), copy=False)
        if offsets is not None:
            text = _separated(text, offsets, tokenizer)
        return cls(text, suffix_array(text.astype(np.int32, copy=False), V))

    def novelty(self, ids: Ids, tokenizer: Tokenizer) -> Novelty:
        """Tell how much of a text is new.

        A text of subwords is looked up as it was generated and as the training part would have
        been read: one text may be cut into subwords in several ways.

        Args:
            ids: its tokens; of layout LINES one item, with or without `begin` and `end`.
            tokenizer: the one that the index was built with.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        readings = [_content(np.asarray(ids, np.int32).reshape(-1), tokenizer)]
        if tokenizer.config.kind is TokenizerKind.SUBWORDS:
            again = tokenizer.encode(tokenizer.decode(readings[0]), UnknownPolicy.SKIP)
            if not np.array_equal(again, readings[0]):
                readings.append(again)
        return Novelty(
            max(self._overlap(reading, tokenizer) for reading in readings),
            not any(self._holds(reading, tokenizer) for reading in readings),
        )

    def _overlap(self, ids: NDArray[np.int32], tokenizer: Tokenizer) -> int:
        """Code points of the longest piece that stands in the training part."""
        kinds, places = np.unique(ids, return_inverse=True)
        # What one more such token adds: of events the blank before it as well.
        added = [tokenizer.characters([i, i]) - tokenizer.characters([i]) for i in kinds.tolist()]
        ends = np.zeros(ids.size + 1, np.int64)
        np.cumsum(np.array(added, np.int64)[places], out=ends[1:])
        query = _without_begin(ids, tokenizer)
        start, length = longest_match(self._tokens, self._suffixes, query, ends)
        return tokenizer.characters(ids[start : start + length])

    def _holds(self, ids: NDArray[np.int32], tokenizer: Tokenizer) -> bool:
        """Whether the training part holds the item, or the text."""
        query = _without_begin(ids, tokenizer)
        if tokenizer.begin is not None:
            query = np.pad(query, 1, constant_values=tokenizer.begin)
        size = query.size
        return longest_prefix(self._tokens, self._suffixes, query, 0, size) == size

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the index as a model file holds it."""
        return {TOKENS: self._tokens, SUFFIXES: self._suffixes}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], tokenizer: Tokenizer
    ) -> NoveltyIndex:
        """Build an index from what `tensors` returned.

        Whatever is taken here, no look-up reads beside it; that the suffixes are in order is not
        checked.

        Raises:
            LoadError: it is not that, or not of this tokenizer.
        """
        for name in NAMES:
            if name not in tensors:
                raise _damaged(f"{name} is missing")
        tokens, suffixes = tensors[TOKENS], tensors[SUFFIXES]
        wanted = {TOKENS: token_type(tokenizer.vocabulary_size), SUFFIXES: np.int32}
        for name, kind in wanted.items():
            if tensors[name].dtype != kind or tensors[name].ndim != 1:
                raise _damaged(f"{name} is not of one axis and of type {np.dtype(kind)}")
        if tokens.size != suffixes.size or not 0 < tokens.size <= MAX_TOKENS + 1:
            raise _damaged(f"it has {tokens.size:,} tokens and {suffixes.size:,} suffixes")
        if tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary_size:
            raise _damaged("a token is not in the vocabulary")
        if suffixes.min() < 0 or suffixes.max() >= tokens.size:
            raise _damaged("a suffix begins outside of the tokens")
        return cls(tokens, suffixes)


def _damaged(reason: str) -> LoadError:
    return LoadError(f"the file's novelty index cannot be read: {reason}; take the file again")


def _content(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Return an item without its begin and its end."""
    if ids.size and ids[0] == tokenizer.begin:
        ids = ids[1:]
    return ids[:-1] if ids.size and ids[-1] == tokenizer.end else ids


def _without_begin(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Return tokens of which none is what separates items."""
    begin = _STRANGER if tokenizer.begin is None else tokenizer.begin
    return np.where(ids == begin, _STRANGER, ids).astype(np.int32)


def _separated(text: TokenArray, offsets: NDArray[np.int64], tokenizer: Tokenizer) -> TokenArray:
    """Return every item once, `begin` before, between and after them."""
    assert tokenizer.begin is not None
    lengths, chosen = np.diff(offsets), _first_ones(text, offsets)
    ends = np.cumsum(lengths[chosen] + 1)
    separated = np.full(int(ends[-1]) + 1, tokenizer.begin, text.dtype)
    inside = np.ones(separated.size, np.bool_)
    inside[0] = inside[ends] = False
    separated[inside] = text[np.repeat(chosen, lengths)]
    return separated


def _first_ones(text: TokenArray, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of each item, (items,), whether no item before it equals it."""
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    first = np.zeros(lengths.size, np.bool_)
    for alike in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = int(lengths[alike[0]])
        if size == 0:
            first[alike[0]] = True
            continue
        items = text[offsets[alike][:, None] + np.arange(size)]
        keys = items.view(np.dtype((np.void, items.itemsize * size))).reshape(-1)
        first[alike[np.unique(keys, return_index=True)[1]]] = True
    return first
