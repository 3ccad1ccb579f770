"""`CharacterTokenizer` has one token for each Unicode code point of the corpus.

A text is viewed as an array of UTF-32 code units and looked up in a table, a block at a time. So a
corpus of hundreds of megabytes takes seconds and little memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.enums import CorpusLayout, UnknownPolicy
from treadle.model.errors import CorpusError
from treadle.model.tokenizers.base import NEWLINE_MARK, UNKNOWN_MARK, Tokenizer
from treadle.model.tokenizers.incremental_decoder import IncrementalDecoder, LookupDecoder
from treadle.model.tokenizers.surrogates import REPLACEMENT

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.model.tokenizers.token_ids import TokenIds

BLOCK = 1 << 20
"""Characters that are looked up together."""

CODE_POINTS = 0x110000
"""Number of Unicode code points."""


def code_points(text: str) -> NDArray[np.uint32]:
    """Returns the code points of a text, (n,) uint32; lone surrogates are code points too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _blocks(text: str) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    for start in range(0, len(text), BLOCK):
        block = slice(start, min(start + BLOCK, len(text)))
        yield block, code_points(text[block])


def symbols_of(texts: Iterable[str], without: str, least: int = 1) -> str:
    """Returns the distinct characters of texts in code point order, except those in `without`.

    Args:
        texts: The texts.
        without: Characters to leave out.
        least: Smallest number of occurrences of a character.

    Raises:
        CorpusError: A text holds half of a surrogate pair, which no file can hold.
    """
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    for text in texts:
        for _, codes in _blocks(text):
            found = np.bincount(codes)
            counts[: found.size] += found
    if counts[0xD800:0xE000].any():
        raise CorpusError("a text holds a lone surrogate, which is not a character: take it out")
    counts[code_points(without)] = 0
    return "".join(map(chr, np.flatnonzero(counts >= least).tolist()))


class CharacterTokenizer(Tokenizer):
    """One token per Unicode code point.

    Args:
        config: How text becomes tokens.
        layout: The layout of the corpus.
        symbols: The vocabulary, each character once; token i is `symbols[i]`.
    """

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout, symbols: str) -> None:
        super().__init__(
            config, layout, len(symbols), has_unknown=config.policy is UnknownPolicy.UNKNOWN
        )
        self.symbols = symbols
        codes = code_points(symbols)
        # One entry beyond the highest symbol (or newline) stands for all code points above it.
        self._table = np.full(max(codes.max(initial=0), ord("\n")) + 2, UNKNOWN_MARK, np.int32)
        self._table[codes] = np.arange(codes.size, dtype=np.int32)
        self._item_table = self._table.copy()
        self._item_table[ord("\n")] = NEWLINE_MARK
        self._codes = np.full(self.vocabulary_size, ord(REPLACEMENT), "<u4")
        self._codes[: self.ordinary] = codes
        self._texts = [self.decode([token]) for token in range(self.vocabulary_size)]

    @classmethod
    def build(
        cls, config: TokenizerConfig, layout: CorpusLayout, texts: Iterable[str], without: str
    ) -> CharacterTokenizer:
        """Returns a tokenizer whose vocabulary is the characters of `texts`, in order.

        Args:
            config: How text becomes tokens.
            layout: The layout of the corpus.
            texts: The corpus, in parts.
            without: Characters that are not in the vocabulary.

        Raises:
            CorpusError: A text holds half of a surrogate pair.
        """
        return cls(config, layout, symbols_of(texts, without, config.min_frequency))

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        table = self._item_table if items else self._table
        last = np.uint32(table.size - 1)
        marked = np.empty(len(text), dtype=np.int32)
        for block, codes in _blocks(text):
            marked[block] = table[np.minimum(codes, last)]
        return marked

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        position = int(np.argmax(marked == UNKNOWN_MARK))
        return text[position], position

    def decode(self, tokens: TokenIds) -> str:
        """Implements `Tokenizer.decode`."""
        return self._codes[self._visible(tokens)].tobytes().decode("utf-32-le")

    def _visible(self, tokens: TokenIds) -> NDArray[np.int64]:
        ids = self._ids(tokens)
        if self.begin is None or self.end is None:
            return ids
        return ids[np.flatnonzero((ids != self.begin) & (ids != self.end))]

    def stream(self, held: bytes = b"") -> IncrementalDecoder:
        """Implements `Tokenizer.stream`."""
        return LookupDecoder(self._texts)

    def token_text(self, token: int) -> str:
        """Implements `Tokenizer.token_text`."""
        return self.symbols[token] if 0 <= token < self.ordinary else ""

    def characters(self, tokens: TokenIds) -> int:
        """Implements `Tokenizer.characters`."""
        return self._visible(tokens).size

    def _vocabulary_json(self) -> dict[str, Any]:
        return {"symbols": self.symbols}
