"""`Splitter` divides a corpus into parts for training, validation and the test.

`TokenData` is one such part. Parts are cut from training files, or consist of separate files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from treadle.model.data.shuffle import Purpose, permutation
from treadle.model.data.token_array import TokenArray, TokenWriter, join, joined_view, release_pages

if TYPE_CHECKING:
    from treadle.model.data.corpus_reader import FileTokens
    from treadle.model.scratch_files import Folder

MIN_HELD_OUT_TOKENS = 32
"""Smallest held-out part, in tokens: the loss on a smaller one would be too inexact."""

_ITEMS = 1 << 16
"""Items that are processed together."""


@dataclass(frozen=True)
class TokenData:
    """One part of a corpus, as tokens."""

    tokens: TokenArray
    """The tokens, (n,), in the smallest type that holds the vocabulary: those of all items one
    after the other, without begin and end. They may be mapped from a file."""
    offsets: NDArray[np.int64] | None = None
    """The start of each item, (items + 1,) int64, the last entry n; None for the layout TEXT."""

    @property
    def items(self) -> int:
        """Number of items; 0 for the layout TEXT."""
        return 0 if self.offsets is None else len(self.offsets) - 1

    @property
    def predicted(self) -> int:
        """Tokens that a pass predicts: all of a text but the first, or all items and their ends."""
        return (
            max(len(self.tokens) - 1, 0) if self.offsets is None else len(self.tokens) + self.items
        )

    def has_item(self, tokens: Sequence[int]) -> bool:
        """Returns whether an item equals these tokens."""
        if self.offsets is None:
            return False
        item = np.array(tokens, np.int64)
        alike = np.flatnonzero(np.diff(self.offsets) == item.size)
        for first in range(0, alike.size, _ITEMS):
            starts = self.offsets[alike[first : first + _ITEMS]]
            items = self.tokens[starts[:, None] + np.arange(item.size)]
            if (items == item).all(axis=1).any():
                return True
        return False


@dataclass(frozen=True)
class Shares:
    """The shares of the training files that are held out."""

    valid: float
    """Share for validation, 0 for none."""
    test: float
    """Share for the test, 0 for none."""

    @property
    def kept(self) -> float:
        """Share that is trained on."""
        return 1 - (self.valid + self.test)


class Splitter:
    """Divides files into the parts of a corpus.

    Args:
        vocabulary_size: Tokens in the vocabulary.
        folder: The folder of the files that hold the tokens; None: in memory.
        seed: Seed for drawing items.
    """

    def __init__(self, vocabulary_size: int, folder: Folder | None, seed: int) -> None:
        self._size = vocabulary_size
        self._folder = folder
        self._seed = seed

    def whole(self, files: Sequence[FileTokens]) -> TokenData:
        """Returns the concatenation of files, as one part."""
        return self._joined([TokenData(file.tokens, file.offsets) for file in files])

    def split(
        self, files: Sequence[FileTokens], shares: Shares, weights: Sequence[float]
    ) -> tuple[TokenData, TokenData, TokenData]:
        """Returns the parts of training files for training, validation and the test.

        Args:
            files: The files.
            shares: The shares of each file that are held out: the end of a text, or drawn items.
            weights: Number of times that a pass reads the training part of each file.
        """
        parts = [self._parts(file, shares, number) for number, file in enumerate(files)]
        train = [
            piece
            for number, ((part, _, _), weight) in enumerate(zip(parts, weights, strict=True))
            for piece in self._repeated(part, weight, number)
        ]
        valid, test = (self._joined([part[place] for part in parts]) for place in (1, 2))
        return self._training(train), valid, test

    def _parts(self, file: FileTokens, shares: Shares, number: int) -> list[TokenData]:
        if file.offsets is None:
            cuts = _cuts(file.tokens.size, shares)
            return [TokenData(file.tokens[cuts[i] : cuts[i + 1]]) for i in range(3)]
        items = file.items
        order = permutation(items, self._seed, Purpose.VALIDATION_ITEMS, number)
        part = np.zeros(items, np.uint8)
        cuts = _cuts(items, shares)
        part[order[cuts[1] : cuts[2]]] = 1
        part[order[cuts[2] :]] = 2
        data = TokenData(file.tokens, file.offsets)
        return [
            data if shares.kept == 1 and i == 0 else self._take(data, part == i) for i in range(3)
        ]

    def _repeated(self, data: TokenData, weight: float, number: int) -> list[TokenData]:
        """Returns as many copies of a part as its weight, the last one a fraction of the part."""
        pieces = [data] * int(weight)
        fraction = weight - int(weight)
        if not fraction:
            return pieces
        if data.offsets is None:
            return [*pieces, TokenData(data.tokens[: int(data.tokens.size * fraction)])]
        order = permutation(data.items, self._seed, Purpose.WEIGHTED_ITEMS, number)
        chosen = np.zeros(data.items, np.bool_)
        chosen[order[: int(data.items * fraction)]] = True
        return [*pieces, self._take(data, chosen)]

    def _take(self, data: TokenData, chosen: NDArray[np.bool_]) -> TokenData:
        """Returns the chosen items, in the order of the corpus."""
        assert data.offsets is not None
        with TokenWriter(self._size, self._folder) as writer:
            for first in range(0, data.items, _ITEMS):
                offsets = data.offsets[first : first + _ITEMS + 1]
                mask = np.repeat(chosen[first : first + _ITEMS], np.diff(offsets))
                writer.write(data.tokens[offsets[0] : offsets[-1]][mask])
            tokens = writer.finish()
        release_pages(data.tokens)
        lengths = np.diff(data.offsets)[chosen]
        return TokenData(tokens, np.append(0, np.cumsum(lengths)).astype(np.int64))

    def _training(self, parts: Sequence[TokenData]) -> TokenData:
        """Returns the concatenation of parts; parts that occur several times are not copied."""
        if len({id(part) for part in parts}) == len(parts):
            return self._joined(parts)
        return TokenData(joined_view([part.tokens for part in parts]), _offsets(parts))

    def _joined(self, parts: Sequence[TokenData]) -> TokenData:
        arrays = [part.tokens for part in parts]
        return TokenData(join(arrays, self._size, self._folder), _offsets(parts))


def _offsets(parts: Sequence[TokenData]) -> NDArray[np.int64] | None:
    """Returns the starts of the items of joined parts, (items + 1,) int64; None for texts."""
    if not parts or parts[0].offsets is None:
        return None
    starts = [np.zeros(1, np.int64)]
    size = 0
    for part in parts:
        assert part.offsets is not None
        starts.append(part.offsets[1:] + size)
        size += part.tokens.size
    return np.concatenate(starts)


def _cuts(count: int, shares: Shares) -> tuple[int, int, int, int]:
    """Returns the limits of the three parts of `count` elements: training, validation, test."""
    last = int(count * (1 - shares.test))
    return 0, min(int(count * shares.kept), last), last, count
