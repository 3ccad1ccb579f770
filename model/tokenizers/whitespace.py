r"""Tokens that stand between white space, and the ends of lines.

A token is a run of anything but white space, or "\n". What is decoded is what was read but for
white space within lines: there, one blank stands between two tokens. So `<unk>` is one token, and
the tokens of a text that was cut into words before, such as the Penn Treebank's (Mikolov et al.
2010), are its words and one end for each line, which are what published perplexities are counted
over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizers.base import NEWLINE_MARK, UNKNOWN_MARK, WordListTokenizer
from treadle.model.tokenizers.token_stream import TokenStream

if TYPE_CHECKING:
    from treadle.model.tokenizers.token_ids import TokenIds

NEWLINE = "\n"

EVENT = re.compile(r"\S+")
"""Matches a run of anything but white space."""


class WhitespaceTokenizer(WordListTokenizer):
    """One token a run of anything but white space, or the end of a line."""

    cut: ClassVar[re.Pattern[str] | None] = re.compile(r"\s")

    joins_with_blanks: ClassVar[bool] = True

    piece: ClassVar[re.Pattern[str]] = re.compile(r"\S+|\n")
    """What matches a token's text."""

    @classmethod
    def _pieces(cls, text: str) -> Iterator[list[str]]:
        yield cls.piece.findall(text)

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        if not items:
            return self._find(self.piece.findall(text))
        end = np.full(1, NEWLINE_MARK, np.int32)
        found = [np.empty(0, np.int32)]
        for item in text.split(NEWLINE)[:-1]:
            found += [self._find(item.split()), end]
        return np.concatenate(found)

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        # Where ends of items are marked, they are not among the marks of pieces.
        before = marked[: int(np.argmax(marked == UNKNOWN_MARK))]
        left = before.size
        ends = int(np.count_nonzero(before == NEWLINE_MARK))
        pattern = EVENT if ends or NEWLINE_MARK in marked else self.piece
        left -= ends
        for match in pattern.finditer(text):
            if not left:
                return match.group(), match.start()
            left -= 1
        raise AssertionError("no symbol is unknown")

    def decode(self, tokens: TokenIds) -> str:
        """See `Tokenizer.decode`: one blank between the tokens of a line."""
        return self.stream().push(self._ids(tokens))

    def texts(self, tokens: TokenIds) -> list[str]:
        """Returns the texts of tokens, those of special ones left out.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return [text for token in self._ids(tokens).tolist() if (text := self._texts[token])]

    def characters(self, tokens: TokenIds) -> int:
        """Returns the code points of tokens and of the blanks between them."""
        lengths = self._lengths[self._ids(tokens)]
        shown = self._ids(tokens)[lengths > 0]
        words = shown != self._table.get(NEWLINE, -1)
        return int(lengths.sum()) + int(np.count_nonzero(words[1:] & words[:-1]))

    def stream(self, held: bytes = b"") -> TokenStream:
        """See `Tokenizer.stream`; a token brings the blank before it."""
        return WhitespaceStream(self, bool(held))


class EventTokenizer(WhitespaceTokenizer):
    """One token an event; the end of a line is white space like any other."""

    piece: ClassVar[re.Pattern[str]] = EVENT


class WhitespaceStream(TokenStream):
    """A stream from tokens to text.

    Args:
        tokenizer: Whose tokens they are.
        within: Whether the text so far ends within a line.
    """

    def __init__(self, tokenizer: WhitespaceTokenizer, within: bool = False) -> None:
        self._texts = tokenizer.texts
        self._within = within

    def push(self, tokens: TokenIds) -> str:
        """See `TokenStream.push`."""
        parts = []
        for text in self._texts(tokens):
            word = text != NEWLINE
            if word and self._within:
                parts.append(" ")
            parts.append(text)
            self._within = word
        return "".join(parts)

    @property
    def held(self) -> bytes:
        """See `TokenStream.held`: whether the text so far ends within a line."""
        return b"\1" if self._within else b""
