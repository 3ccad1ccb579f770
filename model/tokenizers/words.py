r"""`WordTokenizer` cuts text into words and runs of punctuation, with the space before them.

Every text is the concatenation of its pieces, so only unknown pieces are lost:

- the end of a line, `\n`;
- a word: letters and digits with their marks (Hindi and Thai write vowels as marks), and one space
  before it;
- a run of other characters, except white space and `_`, and one space before it;
- any other white space character, and `_`, each a separate piece.

So every white space character begins a piece, and a text can be cut into blocks there. Scripts
without spaces (Chinese, Japanese, Thai) give whole phrases as words: use characters for them. A
piece of more than MAX_PIECE characters is cut into parts of that length.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizers.base import (
    MAX_PIECE,
    NEWLINE_MARK,
    UNKNOWN_MARK,
    WordListTokenizer,
)

if TYPE_CHECKING:
    from treadle.model.tokenizers.token_ids import TokenIds

_WINDOW = 2 * MAX_PIECE
"""Characters that are cut into pieces together: few, since the search blocks other threads."""

_JOINERS = "\u200c\u200d"


@functools.cache
def pieces_pattern() -> re.Pattern[str]:
    """Returns the pattern whose matches are the pieces of a text."""
    # `re` has no class for marks. They are all below U+1F000, except a block of variation
    # selectors; reading the names of the rest would take ten times as long.
    marks = (chr(c) for c in itertools.chain(range(0x300, 0x1F000), range(0xE0100, 0xE01F0)))
    marked = "".join(mark for mark in marks if unicodedata.category(mark).startswith("M"))
    # The look-ahead avoids the long class for nearly every character: five times the speed.
    word = rf"[^\W_]+(?:(?=[^\x00-\x7f])[{marked}{_JOINERS}]+[^\W_]*)*"
    return re.compile(rf" ?{word}| ?[^\w\s]+|\s|_")


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the start of each block of a text, and its pieces, none longer than MAX_PIECE."""
    start = 0
    find = pieces_pattern().findall
    while start < len(text):
        stop = min(start + _WINDOW, len(text))
        pieces = find(text, start, stop)
        if max(map(len, pieces)) > MAX_PIECE:
            long = next(index for index, piece in enumerate(pieces) if len(piece) > MAX_PIECE)
            pieces[long:] = [pieces[long][:MAX_PIECE]]
        elif stop < len(text):
            pieces.pop()  # the last piece may continue
        yield start, pieces
        start += sum(map(len, pieces))


class WordTokenizer(WordListTokenizer):
    """One token per word, run of punctuation or white space character."""

    cut_pattern: ClassVar[re.Pattern[str] | None] = re.compile(r"[^\S ]|_|(?= )")

    @staticmethod
    def _pieces(text: str) -> Iterator[list[str]]:
        return (pieces for _, pieces in _blocks(text))

    def certain(self, text: str) -> int:
        """Implements `Tokenizer.certain`: all but the last piece."""
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

    def decode(self, tokens: TokenIds) -> str:
        """Implements `Tokenizer.decode`."""
        return "".join([self._texts[token] for token in self._ids(tokens).tolist()])

    def characters(self, tokens: TokenIds) -> int:
        """Implements `Tokenizer.characters`."""
        return int(self._lengths[self._ids(tokens)].sum())
