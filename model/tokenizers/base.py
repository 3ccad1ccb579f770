"""`Tokenizer` is the base of all tokenizers, which turn text into tokens and back.

Ids 0 to `ordinary` - 1 are the symbols of the vocabulary. They are followed by `begin` and `end`
(for corpora of one item per line) and by `unknown` (for the policy UNKNOWN), where these exist.
Text shows an unknown symbol as U+FFFD, the replacement character. So a tokenizer with an unknown
token reads U+FFFD as that token.

A subclass only looks up symbols (`_look_up`). The base class applies the policy to symbols that the
vocabulary lacks, for text and for items alike.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from treadle.model.enums import CorpusLayout, UnknownPolicy
from treadle.model.errors import ConfigError, CorpusError, UnknownSymbolError
from treadle.model.field_checks import member
from treadle.model.tokenizers.incremental_decoder import IncrementalDecoder
from treadle.model.tokenizers.surrogates import REPLACEMENT, SURROGATE

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.model.tokenizers.token_ids import TokenIds

UNKNOWN_MARK = -1
"""Returned by `_look_up` for a symbol that the vocabulary lacks."""

BYTE_VALUES = 256
"""Number of different bytes."""

MAX_PIECE = 2048
"""Most characters of a piece of text that is looked up at once, for words and subwords. A longer
piece is cut into parts of that length, so that no step takes long."""

NEWLINE_MARK = -2
"""Returned by `_look_up` for the end of an item, if `items` is set."""


class Tokenizer(ABC):
    """Turns text into tokens and back.

    Args:
        config: How text becomes tokens.
        layout: The layout of the corpus; LINES adds the tokens `begin` and `end`.
        ordinary: Tokens that are not special.
        has_unknown: Whether there is an unknown token.
    """

    cut_pattern: ClassVar[re.Pattern[str] | None] = None
    """A text may be cut after each match without a change of its tokens; None: anywhere."""

    joins_with_spaces: ClassVar[bool] = False
    """Whether text has a space between two tokens of a line."""

    config: TokenizerConfig
    """How text becomes tokens."""
    layout: CorpusLayout
    """Layout of the corpus: its division into sequences."""
    ordinary: int
    """Number of tokens that are not special; their ids come first."""
    vocabulary_size: int
    """Number of all tokens, special ones included."""
    begin: int | None
    """The token before every item of a corpus of lines; None in other corpora."""
    end: int | None
    """The token after every item of a corpus of lines; None in other corpora."""
    unknown: int | None
    """The token of symbols that the vocabulary lacks; None without one."""

    def __init__(
        self, config: TokenizerConfig, layout: CorpusLayout, ordinary: int, has_unknown: bool
    ) -> None:
        self.config = config
        self.layout = member(CorpusLayout, layout, "layout")
        lines = self.layout is CorpusLayout.LINES
        self.ordinary = ordinary
        self.begin = ordinary if lines else None
        self.end = ordinary + 1 if lines else None
        specials = 2 if lines else 0
        self.unknown = ordinary + specials if has_unknown else None
        self.vocabulary_size = ordinary + specials + int(has_unknown)

    def encode(self, text: str, policy: UnknownPolicy | None = None) -> NDArray[np.int32]:
        """Returns the tokens of a text, without `begin` and `end`.

        Args:
            text: Any text.
            policy: What to do with symbols that the vocabulary lacks; None: the tokenizer's own.

        Returns:
            Tokens, (n,) int32.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR.
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        text = self._normal(text)
        return self._resolve(self._look_up(text, items=False), text, policy)

    def encode_items(
        self, text: str, policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        r"""Returns the tokens of items, each of which ends with "\n".

        Args:
            text: The items; empty ones are legal.
            policy: What to do with unknown symbols; None: the tokenizer's own.

        Returns:
            The tokens of all items one after the other, (n,) int32, and the start of each item,
            (items + 1,) int64, the last entry being n.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR.
        """
        text = self._normal(text)
        return self._cut(self._resolve(self._look_up(text, items=True), text, policy))

    def encode_records(
        self, texts: Sequence[str], policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        r"""Returns the tokens of items given one by one, which may hold "\n".

        Args:
            texts: The items; empty ones are legal.
            policy: What to do with unknown symbols; None: the tokenizer's own.

        Returns:
            As `encode_items`.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR.
        """
        parts = [self.encode(text, policy) for text in texts]
        ends = np.cumsum([part.size for part in parts], dtype=np.int64)
        tokens = np.concatenate([np.empty(0, np.int32), *parts])
        return tokens, np.concatenate(([0], ends)).astype(np.int64)

    @staticmethod
    def _cut(marked: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Removes newline marks from `marked`; returns the tokens, and the start of each item."""
        ends = np.flatnonzero(marked == NEWLINE_MARK)
        # The k-th mark has k marks before it, which are no longer counted.
        offsets = np.concatenate(([0], ends - np.arange(ends.size)))
        return marked[marked != NEWLINE_MARK], offsets.astype(np.int64)

    def _resolve(
        self, marked: NDArray[np.int32], text: str, policy: UnknownPolicy | None
    ) -> NDArray[np.int32]:
        """Applies the policy to the marks of unknown symbols, and keeps newline marks."""
        policy = self.check_policy(policy)
        unknown = marked == UNKNOWN_MARK
        if not unknown.any():
            return marked
        if policy is UnknownPolicy.ERROR:
            raise self._unknown_symbol(text, marked)
        if self.unknown is None or policy is UnknownPolicy.SKIP:
            return marked[np.flatnonzero(~unknown)]
        marked[unknown] = self.unknown
        return marked

    def check_policy(self, policy: UnknownPolicy | None) -> UnknownPolicy:
        """Returns the policy to apply.

        Args:
            policy: The requested policy; None: the tokenizer's own.

        Raises:
            ConfigError: It is UNKNOWN and there is no unknown token, or it is not a policy.
        """
        requested = self._requested(policy)
        if requested is UnknownPolicy.UNKNOWN and self.unknown is None:
            raise ConfigError(
                "unknown_policy 'unknown' needs a model that was trained with it; "
                "this one has no unknown token: set it to 'error' or 'skip'",
                "unknown_policy",
            )
        return requested

    def _requested(self, policy: UnknownPolicy | None) -> UnknownPolicy:
        if policy is None:
            return self.config.policy
        return member(UnknownPolicy, policy, "unknown_policy")

    def _unknown_symbol(self, text: str, marked: NDArray[np.int32]) -> UnknownSymbolError:
        symbol, position = self._first_unknown(text, marked)
        shown = repr(symbol) if len(symbol) <= 40 else repr(symbol[:40]) + "..."
        code = f" (U+{ord(symbol):04X})" if len(symbol) == 1 else ""
        remedy = "'skip'" if self.unknown is None else "'skip' or 'unknown'"
        rare = ", or lower min_frequency" if self.config.min_frequency > 1 else ""
        return UnknownSymbolError(
            f"{shown}{code} at position {position} (counted from 0) is not among the "
            f"{self.ordinary:,} {self.config.kind.plural} of the vocabulary: "
            f"take it out{rare}, or set unknown_policy to {remedy}",
            symbol,
            position,
        )

    def _normal(self, text: str) -> str:
        """Returns the text to look up: in lower case, if the config says so."""
        return text.lower() if self.config.lowers else text

    def certain(self, text: str) -> int:
        """Returns the number of characters whose tokens cannot change.

        Args:
            text: A text in its final case, which begins with a piece and has no match of
                `cut_pattern`.

        Returns:
            Characters whose tokens do not depend on the text that follows; 0 if unknown.
        """
        return 0

    @abstractmethod
    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        r"""Returns a token or mark for every symbol; "\n" is marked as such if `items`."""

    @abstractmethod
    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        """Returns the first symbol marked as unknown, and its position in code points."""

    @abstractmethod
    def decode(self, tokens: TokenIds) -> str:
        """Returns the text of tokens: "" for `begin` and `end`, U+FFFD for `unknown`.

        Raises:
            ValueError: An id is not in the vocabulary.
        """

    def decode_bytes(self, tokens: TokenIds) -> bytes:
        """Returns the bytes of tokens, without spaces between them; special tokens have none."""
        return "".join(map(self.token_text, self._ids(tokens).tolist())).encode()

    @abstractmethod
    def token_text(self, token: int) -> str:
        """Returns the text of one token; "" for special tokens and for parts of characters."""

    @abstractmethod
    def characters(self, tokens: TokenIds) -> int:
        """Returns the number of code points of tokens; 1 for each `unknown`."""

    def count_unknown(self, tokens: TokenIds) -> int:
        """Returns the number of tokens that are `unknown`."""
        return 0 if self.unknown is None else int(np.count_nonzero(np.equal(tokens, self.unknown)))

    @abstractmethod
    def _vocabulary_json(self) -> dict[str, Any]:
        """Returns the entries of `to_json` in addition to the config and the layout."""

    def stream(self, held: bytes = b"") -> IncrementalDecoder:
        """Returns a decoder that turns tokens into text while they arrive.

        Args:
            held: `IncrementalDecoder.held` of the decoder to continue; empty: a new text.
        """
        return IncrementalDecoder(self.decode)

    def to_json(self) -> dict[str, Any]:
        """Returns the tokenizer as JSON values; `tokenizer_from_json` reads them."""
        head = {"config": self.config.to_json(), "layout": self.layout.value}
        return head | self._vocabulary_json()

    def _ids(self, tokens: TokenIds) -> NDArray[np.int64]:
        """Returns the tokens as an array; raises ValueError if one is not in the vocabulary."""
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocabulary_size):
            raise ValueError(f"a token is not in 0 to {self.vocabulary_size - 1}")
        return ids


def most_frequent(
    pieces: Iterable[list[str]], most: int, without: str, least: int = 1
) -> list[str]:
    """Returns the most frequent pieces, ties in code point order.

    Args:
        pieces: The pieces of the corpus, in parts.
        most: Maximum number of pieces to return.
        without: Pieces that hold one of these characters are not counted.
        least: Smallest number of occurrences of a piece.

    Raises:
        CorpusError: A piece holds half of a surrogate pair, which no file can hold.
    """
    counts: Counter[str] = Counter()
    for some in pieces:
        counts.update(some)
    if any(map(SURROGATE.search, counts)):
        raise CorpusError("a text holds a lone surrogate, which is not a character: take it out")
    legal = (
        word
        for word, count in counts.items()
        if count >= least and not any(symbol in word for symbol in without)
    )
    return sorted(legal, key=lambda word: (-counts[word], word))[:most]


class WordListTokenizer(Tokenizer):
    """A tokenizer whose vocabulary is a list of pieces of text.

    Args:
        config: How text becomes tokens.
        layout: The layout of the corpus.
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
            layout: The layout of the corpus.
            texts: The corpus, in parts.
            without: Characters; pieces that hold one are not in the vocabulary.

        Raises:
            CorpusError: A text holds half of a surrogate pair.
        """
        pieces = itertools.chain.from_iterable(map(cls._pieces, texts))
        most = config.max_vocabulary_size
        least = config.min_frequency
        return cls(config, layout, most_frequent(pieces, most, without, least))

    @staticmethod
    @abstractmethod
    def _pieces(text: str) -> Iterator[list[str]]:
        """Yields the pieces of a text in lists."""

    def _find(self, pieces: Sequence[str]) -> NDArray[np.int32]:
        """Returns the tokens of pieces, or `UNKNOWN_MARK`, (n,) int32."""
        found = map(self._table.get, pieces, itertools.repeat(UNKNOWN_MARK))
        return np.fromiter(found, np.int32, len(pieces))

    def token_text(self, token: int) -> str:
        """Implements `Tokenizer.token_text`."""
        return self.words[token] if 0 <= token < self.ordinary else ""

    def _vocabulary_json(self) -> dict[str, Any]:
        return {"words": list(self.words)}
