"""Text to tokens as it comes: cut anywhere, it gives the tokens that the whole text has.

What cannot be made tokens before more is known is held back:

- words: the last word, or run of punctuation, since it may go on. Every white space character and
  `_` begins a piece, and all but the blank are one by themselves;
- events, and what stands between white space: the last one, until there is white space;
- subwords: all from the last white space on that stands behind a character which is none: what is
  learned never reaches across it;
- of words and subwords never much more than MAX_PIECE characters: what is longer is cut;
- in lower case: a capital sigma, until it is known whether it ends its word. It is the one letter
  whose lower case depends on its neighbours (Unicode 16, table 3-17): they are looked for across
  characters such as the apostrophe, which that rule leaves out of account.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Generator
from typing import Self

import numpy as np
import numpy.typing as npt

from treadle.model.enums import TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, UnknownSymbolError
from treadle.model.tokenizers.base import MAX_PIECE, Tokenizer
from treadle.model.tokenizers.surrogates import SURROGATE, handle_surrogates

Ints = npt.NDArray[np.int32]

MAX_HELD = 1 << 16
"""The most characters that are held back."""

_SIGMA = "\u03a3"

_SLICE = 2048
"""Characters made tokens in one step."""

_SEEN = 2
"""Characters before the new ones that a pattern has to see again."""


class IncrementalEncoder:
    """Makes tokens of a text that comes in pieces.

    The tokens of all pushes and of the end, joined, are `tokenizer.encode` of the whole text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None = None,
        max_held: int | None = MAX_HELD,
        *,
        lowered: bool = False,
    ) -> None:
        """Begin a text.

        Args:
            tokenizer: makes the tokens.
            policy: what to do with unknown symbols; None: the tokenizer's own policy.
            max_held: the most characters that are held back; None: any number.
            lowered: whether the text comes in lower case, where that is how it is looked up.

        Raises:
            ConfigError: the policy is UNKNOWN and there is no unknown token.
        """
        self._tokenizer = tokenizer
        self._policy = tokenizer.check_policy(policy)
        self._max_held = max_held
        self._cut = tokenizer.cut
        self._lower = _LowerCase() if tokenizer.config.lowers and not lowered else None
        self._held = ""
        self._position = 0

    def push(self, text: str) -> Ints:
        """Take the next piece of the text, of any length.

        Returns:
            The tokens that are now certain, (n,).

        Raises:
            UnknownSymbolError: a symbol is unknown and the policy is ERROR; its position is that
                in the whole text. The text cannot go on.
            ConfigError: more than `max_held` characters would be held back. It cannot go on.
        """
        tokens = self._take(text if self._lower is None else self._lower.push(text))
        if self._max_held is not None and self._waiting > self._max_held:
            raise ConfigError(
                f"more than {self._max_held:,} characters without a place where {self._kind} may "
                "be cut: put white space between them, or score the text in one call"
            )
        return tokens

    def end(self) -> Ints:
        """End the text; the next push begins another one.

        Returns:
            The tokens of what was held back, (n,).

        Raises:
            UnknownSymbolError: as for `push`.
        """
        before = self._take("" if self._lower is None else self._lower.end())
        held = self._held
        self._held = ""
        tokens = np.concatenate((before, self._encode(held)))
        self._position = 0
        return tokens

    @property
    def position(self) -> int:
        """Where the next push begins in the whole text, in code points."""
        return self._position + self._waiting

    def copied(self) -> Self:
        """Return a reader that stands where this one does and goes its own way."""
        twin = copy.copy(self)
        twin._lower = copy.copy(self._lower)
        return twin

    def drop(self) -> None:
        """Drop what is held back."""
        self._position = self.position
        self._held = ""
        if self._lower is not None:
            self._lower.end()

    @property
    def _waiting(self) -> int:
        return len(self._held) + (0 if self._lower is None else self._lower.waiting)

    @property
    def _kind(self) -> str:
        return self._tokenizer.config.kind.plural

    def _take(self, text: str) -> Ints:
        """Take text in its final case; return the tokens that are now certain."""
        if self._cut is None:
            return self._encode(text)
        if self._tokenizer.config.kind is TokenizerKind.SUBWORDS:
            text = self._legal(text)
        new = len(self._held)
        self._held += text
        place = -1
        for match in self._cut.finditer(self._held, max(new - _SEEN, 0)):
            place = match.end()
        place = max(place, 0)
        if len(self._held) - place > MAX_PIECE:
            place += self._tokenizer.certain(self._held[place:])
        if not place:
            return np.zeros(0, np.int32)
        certain = self._held[:place]
        self._held = self._held[place:]
        return self._encode(certain)

    def _legal(self, text: str) -> str:
        """Return a text without lone surrogates: they may not hide where it can be cut."""
        if SURROGATE.search(text) is None:
            return text
        with _Moved(self._position + len(self._held)):
            return handle_surrogates(text, self._policy)

    def _encode(self, text: str) -> Ints:
        with _Moved(self._position):
            tokens = self._tokenizer.encode(text, self._policy)
        self._position += len(text)
        return tokens


def encode_in_steps(
    tokenizer: Tokenizer, text: str, policy: UnknownPolicy | None = None
) -> Generator[None, None, Ints]:
    """Make tokens of a whole text in short steps, so that a long one can be dropped.

    Args:
        tokenizer: makes the tokens.
        text: of any length.
        policy: what to do with unknown symbols; None: the tokenizer's own policy.

    Yields:
        None between two steps.

    Returns:
        What `tokenizer.encode` does, (n,).

    Raises:
        UnknownSymbolError, ConfigError: as `Tokenizer.encode`.
    """
    if len(text) <= _SLICE:
        return tokenizer.encode(text, policy)
    lowered = tokenizer.config.lowers and _SIGMA in text
    if lowered:
        # What follows a sigma may tell nothing of it for megabytes, and all of it would wait to be
        # made tokens in one step.
        text = text.lower()
        yield
    reader = IncrementalEncoder(tokenizer, policy, max_held=None, lowered=lowered)
    parts = []
    for start in range(0, len(text), _SLICE):
        parts.append(reader.push(text[start : start + _SLICE]))
        yield
    return np.concatenate((*parts, reader.end()))


class _Moved:
    """Moves the positions that errors name, from those in a part to those in the whole text."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnknownSymbolError) and self._offset:
            position = error.position + self._offset
            # No symbol holds a blank but before it, so the first such words are the message's.
            message = str(error).replace(
                f" at position {error.position} ", f" at position {position} ", 1
            )
            raise UnknownSymbolError(message, error.symbol, position) from None


class _LowerCase:
    """Turns text into lower case piece by piece; the pieces join to `str.lower` of the whole."""

    def __init__(self) -> None:
        self._before = ""  # the last character given out that the rule takes into account
        self._raw = ""

    @property
    def waiting(self) -> int:
        """Characters held back."""
        return len(self._raw)

    def push(self, text: str) -> str:
        """Take the next text; return what is now certain."""
        if self._raw and not text.strip(_ignored(text)):
            self._raw += text  # nothing here tells of the sigma that waits
            return ""
        certain = self._raw + text
        self._raw = ""
        last = certain.rfind(_SIGMA)
        after = certain[last + 1 :]
        if last >= 0 and not after.strip(_ignored(after)):
            self._raw = certain[last:]
            certain = certain[:last]
        return self._give(certain, self._raw[:1])

    def end(self) -> str:
        """End the text; return what was held back."""
        lowered = self._give(self._raw, "")
        self._raw = self._before = ""
        return lowered

    def _give(self, certain: str, sigma: str) -> str:
        """Return text in lower case as it is between what was before and a sigma, or nothing."""
        before = self._before
        self._before = _last(certain) or self._before
        lowered = (before + certain + sigma).lower()
        return lowered[len(before.lower()) : len(lowered) - len(sigma)]


def _last(text: str) -> str:
    """Return the last character of a text that the rule takes into account, or nothing."""
    return text.rstrip(_ignored(text))[-1:]


def _ignored(text: str) -> str:
    """Return the characters of a text that the rule of the final sigma leaves out of account."""
    return "".join(filter(_is_ignored, set(text)))


@functools.lru_cache(maxsize=1 << 12)
def _is_ignored(character: str) -> bool:
    # Python does not give that property by itself, but it follows the rule: a sigma behind a
    # letter is a final one before such a character alone, and none where a letter comes after.
    alone = f"a{_SIGMA}{character}".lower()
    followed = f"a{_SIGMA}{character}a".lower()
    return alone[1] == "\u03c2" and followed[1] == "\u03c3"
