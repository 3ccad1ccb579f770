"""`Vocabulary` collects the tokens of a PyTorch module, and makes its tokenizer of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import LoadError
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import tokenizer_from_json
from treadle.server.errors import StatusError, invalid, shorten
from treadle.server.messages.import_request import needs_vocabulary

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.server.resources.memory_budget import Reservation

MOST_TOKENS = 1_000_000
"""Tokens of the largest vocabulary, as in training."""

MOST_BYTES = 16 << 20
"""Bytes of the texts of the largest vocabulary."""

_TOKEN_BYTES = 600
"""Memory of a token in the list, in the tokenizer's tables, and in the header of its file."""

_TEXT_TIMES = 10
"""Memory of a token's text in bytes per byte."""

_TRIED = 5_000
"""Tokens that are read as text, to see whether a text has them: a fraction of a second."""

_SHOWN = 5
_SHOWN_BYTES = 40
_FIELD = "vocabulary.tokens"


class Vocabulary:
    """The tokens of a module, in the order of their ids.

    Args:
        held: The reservation of their memory.
    """

    def __init__(self, held: Reservation) -> None:
        self._held = held
        self._tokens: list[str] = []
        self._bytes = 0

    def add(self, tokens: Sequence[str]) -> None:
        """Takes the next tokens.

        Raises:
            StatusError: INVALID_ARGUMENT: there are too many, or they are too long, or none;
                RESOURCE_EXHAUSTED: they do not fit into the memory budget.
        """
        if not tokens:  # empty parts would keep a silent upload alive
            raise invalid([(_FIELD, "a part of the vocabulary is empty")])
        count = len(self._tokens) + len(tokens)
        self._bytes += sum(len(token.encode()) for token in tokens)
        if count > MOST_TOKENS or self._bytes > MOST_BYTES:
            text = f"a vocabulary may have {MOST_TOKENS:,} tokens and {MOST_BYTES:,} bytes"
            raise invalid([(_FIELD, text)])
        self._held.resize(_TOKEN_BYTES * count + _TEXT_TIMES * self._bytes)
        self._tokens += tokens

    def check_kind(self, config: TokenizerConfig) -> None:
        """Checks that there is a vocabulary where one is needed, and none otherwise.

        Raises:
            StatusError: INVALID_ARGUMENT.
        """
        if needs_vocabulary(config) and not self._tokens:
            text = f"the tokens of a module of {config.kind} are not known without its vocabulary"
            raise invalid([(_FIELD, f"{text}: send it before the file")])
        if self._tokens and not needs_vocabulary(config):
            text = "the tokens of a module of bytes are the 256 bytes: send no vocabulary"
            raise invalid([(_FIELD, text)])

    def tokenizer(self, config: TokenizerConfig, layout: CorpusLayout) -> Tokenizer:
        """Returns the tokenizer. It takes a second for a million tokens.

        Args:
            config: Its settings.
            layout: The layout of its corpus.

        Raises:
            StatusError: INVALID_ARGUMENT: a token is empty, or there twice, or not of the kind.
        """
        self.check_kind(config)
        self._check_tokens(config.kind)
        content: dict[str, object] = {"config": config.to_json(), "layout": layout.value}
        if config.kind is TokenizerKind.CHARACTERS:
            content["symbols"] = "".join(self._tokens)
        else:
            content["words"] = self._tokens
        try:
            return tokenizer_from_json(content)
        except LoadError as error:
            raise invalid([(_FIELD, str(error))]) from error

    def _check_tokens(self, kind: TokenizerKind) -> None:
        """Checks each token by itself, and that it differs from the others."""
        places: dict[str, int] = {}
        for place, token in enumerate(self._tokens):
            if not token:
                raise _wrong(place, "is empty")
            if kind is TokenizerKind.CHARACTERS and len(token) != 1:
                raise _wrong(place, f"is not one character: {_shown(token)}")
            first = places.setdefault(token, place)
            if first != place:
                raise _wrong(place, f"is the same as token {first}: {_shown(token)}")


def unread_tokens(tokenizer: Tokenizer) -> str:
    """Returns a sentence about the tokens of a vocabulary that no text is read as; empty: none.

    Args:
        tokenizer: The tokenizer.
    """
    if tokenizer.config.kind is TokenizerKind.BYTES:
        return ""
    unread: list[str] = []
    for token in range(min(tokenizer.ordinary, _TRIED)):
        text = tokenizer.token_text(token)
        if tokenizer.encode(text, UnknownPolicy.SKIP).tolist() != [token]:
            unread.append(text)
    if not unread:
        return ""
    shown = ", ".join(map(_shown, unread[:_SHOWN])) + (", ..." if len(unread) > _SHOWN else "")
    count = "1 token" if len(unread) == 1 else f"{len(unread):,} tokens"
    whole = "the vocabulary" if tokenizer.ordinary <= _TRIED else f"its first {_TRIED:,} tokens"
    return (
        f"no text is read as {count} of {whole}, which can only be generated: {shown}; "
        f"{tokenizer.config.kind} cut or change a text that contains them"
    )


def _shown(token: str) -> str:
    return repr(shorten(token, _SHOWN_BYTES))


def _wrong(place: int, what: str) -> StatusError:
    return invalid([(_FIELD, f"token {place} of the vocabulary, counted from 0, {what}")])
