r"""`WhitespaceTokenizer` and `EventTokenizer` cut text at white space.

A token is a run of characters that are not white space. For `WhitespaceTokenizer`, "\n" is a token,
too. Decoding restores the text except for white space within lines, which becomes one space
between two tokens. So `<unk>` is one token, and a text that is already cut into words, such as the
Penn Treebank (Mikolov et al. 2010), has its words and one end for each line as tokens. Published
perplexities refer to these.

For `EventTokenizer`, line ends are white space. Its tokens are the events of a log: numbers or
names, such as the ids that a log parser gives to its templates (DeepLog, Du et al. 2017).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizers.base import NEWLINE_MARK, UNKNOWN_MARK, WordListTokenizer
from treadle.model.tokenizers.incremental_decoder import IncrementalDecoder

if TYPE_CHECKING:
    from treadle.model.tokenizers.token_ids import TokenIds

NEWLINE = "\n"

EVENT = re.compile(r"\S+")
"""Matches a run of characters that are not white space."""


class WhitespaceTokenizer(WordListTokenizer):
    """One token per run of characters that are not white space, and per line end."""

    cut_pattern: ClassVar[re.Pattern[str] | None] = re.compile(r"\s")

    joins_with_spaces: ClassVar[bool] = True

    piece: ClassVar[re.Pattern[str]] = re.compile(r"\S+|\n")
    """Matches the text of a token."""

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
        # Ends of items are marked, but they are not pieces.
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
        """Implements `Tokenizer.decode`: one space between the tokens of a line."""
        return self.stream().push(self._ids(tokens))

    def texts(self, tokens: TokenIds) -> list[str]:
        """Returns the texts of tokens, without special tokens.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return [text for token in self._ids(tokens).tolist() if (text := self._texts[token])]

    def characters(self, tokens: TokenIds) -> int:
        """Returns the number of code points of tokens and of the spaces between them."""
        lengths = self._lengths[self._ids(tokens)]
        shown = self._ids(tokens)[lengths > 0]
        words = shown != self._table.get(NEWLINE, -1)
        return int(lengths.sum()) + int(np.count_nonzero(words[1:] & words[:-1]))

    def stream(self, held: bytes = b"") -> IncrementalDecoder:
        """Implements `Tokenizer.stream`; a token is preceded by its space."""
        return WhitespaceDecoder(self, bool(held))


class EventTokenizer(WhitespaceTokenizer):
    """One token per event of a log; a line end is white space like any other."""

    piece: ClassVar[re.Pattern[str]] = EVENT


class WhitespaceDecoder(IncrementalDecoder):
    """Decodes tokens with a space between the tokens of a line.

    Args:
        tokenizer: The tokenizer of the tokens.
        within: Whether the text so far ends within a line.
    """

    def __init__(self, tokenizer: WhitespaceTokenizer, within: bool = False) -> None:
        self._texts = tokenizer.texts
        self._within = within

    def push(self, tokens: TokenIds) -> str:
        """Implements `IncrementalDecoder.push`."""
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
        """Implements `IncrementalDecoder.held`: whether the text so far ends within a line."""
        return b"\1" if self._within else b""
