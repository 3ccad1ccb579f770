"""`NoveltyIndex` finds out how much of a generated text occurs in the training part.

The index holds the training part's tokens and their suffix array (`treadle.kernels.suffix_array`
makes it and `treadle.kernels.substring_match` searches it), and is stored with the model. Of the
layout LINES it holds every item once, with the tokenizer's `begin` before, between and after items.
A generated item is searched without `begin`, so no overlap crosses from one item into the next. An
item is known if the index holds it with `begin` on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.kernels.substring_match import longest_match, longest_prefix
from treadle.kernels.suffix_array import suffix_array
from treadle.model.data.token_array import TokenArray, release_pages, token_type
from treadle.model.enums import TokenizerKind, UnknownPolicy
from treadle.model.errors import LoadError
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.token_ids import TokenIds as Ids
from treadle.model.tokenizers.token_ids import check_tokens

MAX_TOKENS = 1 << 25
"""Tokens of the largest training part that is indexed; the end of each item counts as one."""

TOKENS = "novelty.tokens"
SUFFIXES = "novelty.suffixes"
NAMES = (TOKENS, SUFFIXES)
"""The tensors of an index in a model file."""

_UNMATCHED = -1
"""A token that no index holds."""

_BYTES_PER_TOKEN = 32
"""The most memory for each token while an index is built."""


@dataclass(frozen=True)
class Novelty:
    """How much of a text occurs in the training part."""

    longest_overlap: int
    """Code points of the longest piece of whole tokens that occurs there."""
    is_new: bool
    """Whether the text is not one of its items (LINES), or does not occur as a whole (TEXT)."""


def indexed_tokens(tokens: TokenArray, offsets: NDArray[np.int64] | None) -> int:
    """Returns how many tokens an index of a training part would hold at most."""
    return int(tokens.size) + (0 if offsets is None else len(offsets) - 1)


def indexing_bytes(count: int) -> int:
    """Returns the bytes needed to build an index of so many tokens; 0 for too many."""
    return _BYTES_PER_TOKEN * count if count <= MAX_TOKENS else 0


def too_large(count: int) -> str:
    """Returns why a training part of so many tokens gets no index; an empty text if it gets one."""
    if count <= MAX_TOKENS:
        return ""
    return (
        f"the training part has {count:,} tokens, more than the {MAX_TOKENS:,} of the "
        "largest novelty index: the model gets none"
    )


class NoveltyIndex:
    """An index of a training part, safe to use from many threads at once.

    See `build` and `from_tensors`; the constructor does not check the arrays.

    Args:
        tokens: (n,), in the smallest type that holds the vocabulary.
        suffixes: (n,) int32, their suffix array.
    """

    def __init__(self, tokens: TokenArray, suffixes: NDArray[np.int32]) -> None:
        # Writable arrays only: for read-only ones each kernel would be compiled once more.
        self._tokens: TokenArray = np.require(tokens, requirements=("C", "W"))
        self._suffixes: NDArray[np.int32] = np.require(suffixes, requirements=("C", "W"))

    @property
    def nbytes(self) -> int:
        """Its size in memory and in a file, in bytes."""
        return self._tokens.nbytes + self._suffixes.nbytes

    @classmethod
    def build(
        cls, tokens: TokenArray, offsets: NDArray[np.int64] | None, tokenizer: Tokenizer
    ) -> NoveltyIndex:
        """Builds the index of a training part.

        Args:
            tokens: (n,), those of all items one after the other; they may lie in a file.
            offsets: Where each item starts, (items + 1,), the last entry n; None: layout TEXT.
            tokenizer: The tokenizer of the tokens.

        Returns:
            The index.

        Raises:
            ValueError: There are too many tokens; see `too_large`.
            TokenError: A token is not in the vocabulary.
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
        """Returns how much of a text is new.

        A text of subwords is searched as it was generated, and as the training part would have
        been read: the same text may be cut into subwords in several ways.

        Args:
            ids: The tokens of the text; of layout LINES one item, with or without `begin` and
                `end`.
            tokenizer: The tokenizer that the index was built with.

        Raises:
            ValueError: An id is not in the vocabulary.
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
        """Returns the code points of the longest piece that occurs in the training part."""
        kinds, places = np.unique(ids, return_inverse=True)
        # The code points that one more such token adds: of events with the blank before it.
        added = [tokenizer.characters([i, i]) - tokenizer.characters([i]) for i in kinds.tolist()]
        ends = np.zeros(ids.size + 1, np.int64)
        np.cumsum(np.array(added, np.int64)[places], out=ends[1:])
        query = _without_begin(ids, tokenizer)
        start, length = longest_match(self._tokens, self._suffixes, query, ends)
        return tokenizer.characters(ids[start : start + length])

    def _holds(self, ids: NDArray[np.int32], tokenizer: Tokenizer) -> bool:
        """Returns whether the training part holds the item, or the text."""
        query = _without_begin(ids, tokenizer)
        if tokenizer.begin is not None:
            query = np.pad(query, 1, constant_values=tokenizer.begin)
        size = query.size
        return longest_prefix(self._tokens, self._suffixes, query, 0, size) == size

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Returns the tensors of the index in a model file."""
        return {TOKENS: self._tokens, SUFFIXES: self._suffixes}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], tokenizer: Tokenizer
    ) -> NoveltyIndex:
        """Returns the index of the tensors of a model file.

        No search of an index that passes the checks reads outside of it. The order of the suffixes
        is not checked.

        Raises:
            LoadError: The tensors are damaged, or do not belong to the tokenizer.
        """
        for name in NAMES:
            if name not in tensors:
                raise _damaged(f"{name} is missing")
        tokens = tensors[TOKENS]
        suffixes = tensors[SUFFIXES]
        dtypes = {TOKENS: token_type(tokenizer.vocabulary_size), SUFFIXES: np.int32}
        for name, dtype in dtypes.items():
            if tensors[name].dtype != dtype or tensors[name].ndim != 1:
                raise _damaged(f"{name} is not of one axis and of type {np.dtype(dtype)}")
        if tokens.size != suffixes.size or not 0 < tokens.size <= MAX_TOKENS + 1:
            raise _damaged(f"it has {tokens.size:,} tokens and {suffixes.size:,} suffixes")
        if tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary_size:
            raise _damaged("a token is not in the vocabulary")
        if suffixes.min() < 0 or suffixes.max() >= tokens.size:
            raise _damaged("a suffix begins outside of the tokens")
        return cls(tokens, suffixes)


def _damaged(reason: str) -> LoadError:
    return LoadError(f"the file's novelty index cannot be read: {reason}; copy the file again")


def _content(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Returns an item without its `begin` and its `end`."""
    if ids.size and ids[0] == tokenizer.begin:
        ids = ids[1:]
    return ids[:-1] if ids.size and ids[-1] == tokenizer.end else ids


def _without_begin(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Returns tokens of which none is `begin`, which separates items."""
    begin = _UNMATCHED if tokenizer.begin is None else tokenizer.begin
    return np.where(ids == begin, _UNMATCHED, ids).astype(np.int32)


def _separated(text: TokenArray, offsets: NDArray[np.int64], tokenizer: Tokenizer) -> TokenArray:
    """Returns every item once, with `begin` before, between and after them."""
    assert tokenizer.begin is not None
    lengths = np.diff(offsets)
    chosen = _is_first(text, offsets)
    ends = np.cumsum(lengths[chosen] + 1)
    separated = np.full(int(ends[-1]) + 1, tokenizer.begin, text.dtype)
    inside = np.ones(separated.size, np.bool_)
    inside[0] = inside[ends] = False
    separated[inside] = text[np.repeat(chosen, lengths)]
    return separated


def _is_first(text: TokenArray, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns for each item whether no item before it equals it, (items,)."""
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    first = np.zeros(lengths.size, np.bool_)
    for same_size in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = int(lengths[same_size[0]])
        if size == 0:
            first[same_size[0]] = True
            continue
        items = text[offsets[same_size][:, None] + np.arange(size)]
        keys = items.view(np.dtype((np.void, items.itemsize * size))).reshape(-1)
        first[same_size[np.unique(keys, return_index=True)[1]]] = True
    return first
