r"""Tokens that are words, or runs of punctuation, with the blank before them.

Every text is the concatenation of its pieces, so nothing is lost but what is unknown:

- a line's end, `\n`;
- a word: letters and digits, with the marks that stand on them (Hindi and Thai write vowels as
  marks), and the one blank before it;
- a run of anything else that is neither space nor `_`, and the one blank before it;
- any other white space character, and `_`, each by itself.

So every white space character begins a piece, which is what lets a text be cut into blocks.
Scripts written without blanks (Chinese, Japanese, Thai) give whole phrases as words: take
characters for them. A piece of more than MAX_PIECE characters is cut after each so many.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import CorpusLayout, TokenizerConfig, UnknownPolicy
from treadle.model.errors import CorpusError
from treadle.model.tokenizers.base import (
    MAX_PIECE,
    NEWLINE_MARK,
    REPLACEMENT,
    SURROGATE,
    UNKNOWN_MARK,
    Tokenizer,
    Tokens,
)

_WINDOW = 2 * MAX_PIECE
"""Characters cut into pieces together: few, since the search lets no other thread run."""

_JOINERS = "\u200c\u200d"


@functools.cache
def pieces_pattern() -> re.Pattern[str]:
    """Returns the pattern whose matches are the pieces of a text."""
    # `re` has no class for marks. They all stand below U+1F000, but for a block of variation
    # selectors; reading the names of the rest would take ten times as long.
    marks = (chr(c) for c in itertools.chain(range(0x300, 0x1F000), range(0xE0100, 0xE01F0)))
    marked = "".join(mark for mark in marks if unicodedata.category(mark).startswith("M"))
    # The look-ahead spares nearly every character the long class: five times the speed.
    word = rf"[^\W_]+(?:(?=[^\x00-\x7f])[{marked}{_JOINERS}]+[^\W_]*)*"
    return re.compile(rf" ?{word}| ?[^\w\s]+|\s|_")


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields where each block of a text starts, and its pieces, none longer than MAX_PIECE."""
    start, find = 0, pieces_pattern().findall
    while start < len(text):
        stop = min(start + _WINDOW, len(text))
        pieces = find(text, start, stop)
        if max(map(len, pieces)) > MAX_PIECE:
            long = next(index for index, piece in enumerate(pieces) if len(piece) > MAX_PIECE)
            pieces[long:] = [pieces[long][:MAX_PIECE]]
        elif stop < len(text):
            pieces.pop()  # it may go on
        yield start, pieces
        start += sum(map(len, pieces))


def frequent(pieces: Iterable[list[str]], most: int, without: str, least: int = 1) -> list[str]:
    """Returns the most frequent pieces, ties in code point order.

    Args:
        pieces: The pieces of the corpus, in parts.
        most: How many to return at most.
        without: Pieces that hold one of these characters are not counted.
        least: How often a piece must be there.

    Raises:
        CorpusError: A piece holds half of a surrogate pair, which no file could hold.
    """
    counts: Counter[str] = Counter()
    for some in pieces:
        counts.update(some)
    if any(map(SURROGATE.search, counts)):
        raise CorpusError("a text holds a lone surrogate, which is no character: take it out")
    legal = (
        word
        for word, count in counts.items()
        if count >= least and not any(symbol in word for symbol in without)
    )
    return sorted(legal, key=lambda word: (-counts[word], word))[:most]


class PieceTokenizer(Tokenizer):
    """A tokenizer whose vocabulary is a list of pieces of text.

    Args:
        config: How text becomes tokens.
        layout: How the corpus is cut.
        words: The vocabulary, each piece once; token i is `words[i]`.
    """

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout, words: Sequence[str]) -> None:
        super().__init__(
            config, layout, len(words), has_unknown=config.policy is UnknownPolicy.UNKNOWN
        )
        self.words = tuple(words)
        self._table = {word: token for token, word in enumerate(self.words)}
        self._texts = [*self.words, *[""] * (self.vocabulary_size - self.ordinary)]
        if self.unknown is not None:
            self._texts[self.unknown] = REPLACEMENT
        self._lengths = np.array([len(text) for text in self._texts], dtype=np.int64)

    @classmethod
    def build(
        cls, config: TokenizerConfig, layout: CorpusLayout, texts: Iterable[str], without: str
    ) -> Self:
        """Returns a tokenizer whose vocabulary is the most frequent pieces of `texts`.

        Args:
            config: How text becomes tokens.
            layout: How the corpus is cut.
            texts: The corpus, in parts.
            without: Characters whose pieces are to be unknown.

        Raises:
            CorpusError: A text holds half of a surrogate pair.
        """
        pieces = itertools.chain.from_iterable(map(cls._pieces, texts))
        most, least = config.max_vocabulary_size, config.min_frequency
        return cls(config, layout, frequent(pieces, most, without, least))

    @staticmethod
    @abstractmethod
    def _pieces(text: str) -> Iterator[list[str]]:
        """Yields the pieces of a text, some at a time."""

    def _find(self, pieces: Sequence[str]) -> NDArray[np.int32]:
        """Returns the tokens of pieces, or marks."""
        found = map(self._table.get, pieces, itertools.repeat(UNKNOWN_MARK))
        return np.fromiter(found, np.int32, len(pieces))

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`."""
        return self.words[token] if 0 <= token < self.ordinary else ""

    def _vocabulary_json(self) -> dict[str, Any]:
        return {"words": list(self.words)}


class WordTokenizer(PieceTokenizer):
    """One token a word, a run of punctuation or a white space character."""

    @staticmethod
    def _pieces(text: str) -> Iterator[list[str]]:
        return (pieces for _, pieces in _blocks(text))

    def certain(self, text: str) -> int:
        """See `Tokenizer.certain`: all but the last piece."""
        last = 0
        for start, pieces in _blocks(text):
            last = start + sum(map(len, pieces[:-1]))
        return last

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        found = [np.empty(0, np.int32)]
        for _, pieces in _blocks(text):
            marked = self._find(pieces)
            if items:
                marked[np.fromiter((p == "\n" for p in pieces), np.bool_)] = NEWLINE_MARK
            found.append(marked)
        return np.concatenate(found)

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        first = int(np.argmax(marked == UNKNOWN_MARK))
        for start, pieces in _blocks(text):
            if first < len(pieces):
                return pieces[first], start + sum(map(len, pieces[:first]))
            first -= len(pieces)
        raise AssertionError("no symbol is unknown")

    def decode(self, tokens: Tokens) -> str:
        """See `Tokenizer.decode`."""
        return "".join([self._texts[token] for token in self._ids(tokens).tolist()])

    def characters(self, tokens: Tokens) -> int:
        """See `Tokenizer.characters`."""
        return int(self._lengths[self._ids(tokens)].sum())
