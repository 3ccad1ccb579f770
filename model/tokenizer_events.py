"""Tokens that are the events of a log: runs of anything but white space.

A session is its events with one blank between them, whatever white space was there before: what is
decoded is what was read but for that. Events are numbers or names, such as the ids that a log
parser gives to its templates (DeepLog, Du et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizer_base import NEWLINE_MARK, UNKNOWN_MARK, Tokens, TokenStream
from treadle.model.tokenizer_words import PieceTokenizer


class EventTokenizer(PieceTokenizer):
    """One token an event."""

    @staticmethod
    def _pieces(text: str) -> Iterator[list[str]]:
        yield text.split()

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        if not items:
            return self._find(text.split())
        end = np.full(1, NEWLINE_MARK, np.int32)
        found = [np.empty(0, np.int32)]
        for session in text.split("\n")[:-1]:
            found += [self._find(session.split()), end]
        return np.concatenate(found)

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        before = marked[: int(np.argmax(marked == UNKNOWN_MARK))]
        first = int(np.count_nonzero(before != NEWLINE_MARK))
        events, position = text.split(), 0
        for event in events[:first]:
            position = text.index(event, position) + len(event)
        return events[first], text.index(events[first], position)

    def decode(self, tokens: Tokens) -> str:
        """See `Tokenizer.decode`: events with one blank between them."""
        return " ".join(self._shown(tokens))

    def _shown(self, tokens: Tokens) -> Sequence[str]:
        return [text for token in self._ids(tokens).tolist() if (text := self._texts[token])]

    def characters(self, tokens: Tokens) -> int:
        """Returns the code points of events and of the blanks between them."""
        lengths = self._lengths[self._ids(tokens)]
        return int(lengths.sum()) + max(int(np.count_nonzero(lengths)) - 1, 0)

    def stream(self, held: bytes = b"") -> TokenStream:
        """See `Tokenizer.stream`; an event brings the blank before it."""
        return EventStream(self, bool(held))


class EventStream(TokenStream):
    """A stream from events to text.

    Args:
        tokenizer: Whose tokens they are.
        begun: Whether events came before.
    """

    def __init__(self, tokenizer: EventTokenizer, begun: bool = False) -> None:
        super().__init__(tokenizer)
        self._begun = begun

    def push(self, tokens: Tokens) -> str:
        """See `TokenStream.push`."""
        text = self._tokenizer.decode(tokens)
        before = " " if self._begun and text else ""
        self._begun = self._begun or bool(text)
        return before + text

    @property
    def held(self) -> bytes:
        """See `TokenStream.held`: whether events came before."""
        return b"\1" if self._begun else b""
