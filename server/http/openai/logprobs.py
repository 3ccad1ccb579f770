"""`TextLogprobs` is the `logprobs` object of a text: its tokens, their log-probabilities, places.

Each number is the one of the wire: a float32, written with as many digits as give it back exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from json.encoder import encode_basestring as quoted
from typing import Any

from treadle.v1 import sequence_pb2 as pb


class TextLogprobs:
    """Collects the tokens of one text.

    Args:
        alternatives: Whether the likeliest tokens at each position are shown.
    """

    def __init__(self, alternatives: bool) -> None:
        self._alternatives = alternatives
        self._text = ""
        """The end of the text."""
        self._begin = 0
        """Where that begins."""
        self._offset = 0
        """Where the next token begins."""
        self._hidden = 0
        """Tokens since the last one that has a text of its own."""

    def add(self, text: str, tokens: Iterable[pb.Token]) -> str:
        """Takes the next part of a text and its tokens.

        Args:
            text: The text, which may be behind the tokens.
            tokens: The tokens.

        Returns:
            The object for these tokens, as JSON.
        """
        passed = min(self._offset - self._begin, len(self._text))
        self._text = self._text[passed:] + text
        self._begin += passed
        names = list[str]()
        numbers = list[str]()
        tops = list[str]()
        offsets = list[str]()
        ids = list[str]()
        for token in tokens:
            name = token_name(token)
            offsets.append(str(self._place(token.text)))
            names.append(quoted(name))
            ids.append(str(token.id))
            known = token.HasField("log_probability")
            numbers.append(repr(token.log_probability) if known else "null")
            if self._alternatives:
                tops.append(_tops(token, name) if known else "null")
        shown_tops = f"[{','.join(tops)}]" if self._alternatives else "null"
        return (
            f'{{"tokens":[{",".join(names)}],"token_logprobs":[{",".join(numbers)}],'
            f'"top_logprobs":{shown_tops},"text_offset":[{",".join(offsets)}],'
            f'"token_ids":[{",".join(ids)}]}}'
        )

    def _place(self, text: str) -> int:
        """Returns where the next token begins in the text, and passes it.

        What the text shows between two tokens is passed as well: the space that some tokenizers
        put there, and characters whose bytes are tokens without a text of their own.
        """
        if not text:
            self._hidden += 1
            return self._offset
        start = self._offset - self._begin
        found = self._text.find(text, start, start + len(text) + self._hidden + 1)
        if found > start:
            self._offset += found - start
        self._hidden = 0
        place = self._offset
        self._offset += len(text)
        return place


def token_name(token: pb.Token | pb.Alternative) -> str:
    """Returns what stands for a token: its text, or its id where it has none of its own."""
    return token.text or f"<|{token.id}|>"


def _tops(token: pb.Token, name: str) -> str:
    """Returns the likeliest tokens at a position and the one that stands there, as JSON."""
    found = dict[str, Any]()
    for other in token.alternatives:
        found.setdefault(token_name(other), other.log_probability)
    found.setdefault(name, token.log_probability)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))
