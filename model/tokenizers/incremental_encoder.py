"""`IncrementalEncoder` encodes a text that arrives in pieces, to the tokens of the whole text.

Text whose tokens may depend on what follows is held back:

- words: the last word, or run of punctuation, since it may continue. Every white space character
  and `_` begins a piece, and all except the space are pieces of their own;
- events, and text between white space: the last token, until white space follows;
- subwords: everything from the last white space on that follows another character, since no token
  reaches across it;
- words and subwords: never much more than MAX_PIECE characters, since longer pieces are cut;
- in lower case: a capital sigma, until it is known whether it ends its word. It is the only letter
  whose lower case depends on its neighbours (Unicode 16, table 3-17). The rule skips characters
  such as the apostrophe when it looks for them.
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
"""Maximum number of characters that are held back."""

_SIGMA = "\u03a3"

_SLICE = 2048
"""Characters encoded in one step."""

_SEEN = 2
"""Characters before the new ones that a pattern has to match again."""


class IncrementalEncoder:
    """Encodes a text that arrives in pieces.

    The concatenated tokens of all calls of `push` and of `end` are `tokenizer.encode` of the text.

    Args:
        tokenizer: The tokenizer.
        policy: What to do with unknown symbols; None: the tokenizer's own policy.
        max_held: Maximum number of characters that are held back; None: no limit.
        lowered: Whether the text already is in lower case, for a tokenizer of lower case.

    Raises:
        ConfigError: The policy is UNKNOWN and there is no unknown token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None = None,
        max_held: int | None = MAX_HELD,
        *,
        lowered: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._policy = tokenizer.check_policy(policy)
        self._max_held = max_held
        self._cut = tokenizer.cut_pattern
        self._lower = _LowerCase() if tokenizer.config.lowers and not lowered else None
        self._held = ""
        self._position = 0

    def push(self, text: str) -> Ints:
        """Adds the next piece of the text.

        Args:
            text: The piece, of any length.

        Returns:
            The tokens that are now certain, (n,) int32.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR; its position is counted
                in the whole text. The text cannot be continued.
            ConfigError: More than `max_held` characters would be held back. The text cannot be
                continued.
        """
        tokens = self._take(text if self._lower is None else self._lower.push(text))
        if self._max_held is not None and self._waiting > self._max_held:
            raise ConfigError(
                f"more than {self._max_held:,} characters without a place where {self._kind} may "
                "be cut: put white space between them, or score the text in one call"
            )
        return tokens

    def end(self) -> Ints:
        """Ends the text; the next `push` begins another one.

        Returns:
            The tokens of the text that was held back, (n,) int32.

        Raises:
            UnknownSymbolError: See `push`.
        """
        before = self._take("" if self._lower is None else self._lower.end())
        held = self._held
        self._held = ""
        tokens = np.concatenate((before, self._encode(held)))
        self._position = 0
        return tokens

    @property
    def position(self) -> int:
        """The position of the next push in the whole text, in code points."""
        return self._position + self._waiting

    def copied(self) -> Self:
        """Returns an independent copy of the encoder in its present state."""
        twin = copy.copy(self)
        twin._lower = copy.copy(self._lower)
        return twin

    def drop(self) -> None:
        """Drops the text that is held back."""
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
        """Adds text in its final case; returns the tokens that are now certain."""
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
        """Removes lone surrogates from a text, since they could hide a place to cut."""
        if SURROGATE.search(text) is None:
            return text
        with _ShiftedErrors(self._position + len(self._held)):
            return handle_surrogates(text, self._policy)

    def _encode(self, text: str) -> Ints:
        with _ShiftedErrors(self._position):
            tokens = self._tokenizer.encode(text, self._policy)
        self._position += len(text)
        return tokens


def encode_in_steps(
    tokenizer: Tokenizer, text: str, policy: UnknownPolicy | None = None
) -> Generator[None, None, Ints]:
    """Encodes a whole text in short steps, so that the caller can stop early.

    Args:
        tokenizer: The tokenizer.
        text: A text of any length.
        policy: What to do with unknown symbols; None: the tokenizer's own policy.

    Yields:
        None between two steps.

    Returns:
        The tokens of `tokenizer.encode`, (n,) int32.

    Raises:
        UnknownSymbolError: See `Tokenizer.encode`.
        ConfigError: See `Tokenizer.encode`.
    """
    if len(text) <= _SLICE:
        return tokenizer.encode(text, policy)
    lowered = tokenizer.config.lowers and _SIGMA in text
    if lowered:
        # A sigma may wait for megabytes of text, which would then be encoded in one step.
        text = text.lower()
        yield
    encoder = IncrementalEncoder(tokenizer, policy, max_held=None, lowered=lowered)
    parts = []
    for start in range(0, len(text), _SLICE):
        parts.append(encoder.push(text[start : start + _SLICE]))
        yield
    return np.concatenate((*parts, encoder.end()))


class _ShiftedErrors:
    """Converts the positions in errors from a part of a text to the whole text."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnknownSymbolError) and self._offset:
            position = error.position + self._offset
            # No symbol holds a space except at its start, so the first match is not part of it.
            message = str(error).replace(
                f" at position {error.position} ", f" at position {position} ", 1
            )
            raise UnknownSymbolError(message, error.symbol, position) from None


class _LowerCase:
    """Converts text to lower case piece by piece; the result is `str.lower` of the whole text."""

    def __init__(self) -> None:
        self._before = ""  # the last returned character that the rule does not skip
        self._raw = ""

    @property
    def waiting(self) -> int:
        """Number of characters that are held back."""
        return len(self._raw)

    def push(self, text: str) -> str:
        """Adds the next text; returns the lower case that is now certain."""
        if self._raw and not text.strip(_ignored(text)):
            self._raw += text  # the rule skips all of it, so the sigma is still undecided
            return ""
        certain = self._raw + text
        self._raw = ""
        last = certain.rfind(_SIGMA)
        after = certain[last + 1 :]
        if last >= 0 and not after.strip(_ignored(after)):
            self._raw = certain[last:]
            certain = certain[:last]
        return self._lowered(certain, self._raw[:1])

    def end(self) -> str:
        """Ends the text; returns the lower case of the text that was held back."""
        lowered = self._lowered(self._raw, "")
        self._raw = self._before = ""
        return lowered

    def _lowered(self, certain: str, sigma: str) -> str:
        """Returns the lower case of a text, by the characters before it and a following sigma."""
        before = self._before
        self._before = _last(certain) or self._before
        lowered = (before + certain + sigma).lower()
        return lowered[len(before.lower()) : len(lowered) - len(sigma)]


def _last(text: str) -> str:
    """Returns the last character of a text that the rule does not skip, or ""."""
    return text.rstrip(_ignored(text))[-1:]


def _ignored(text: str) -> str:
    """Returns the characters of a text that the rule of the final sigma skips."""
    return "".join(filter(_is_ignored, set(text)))


@functools.lru_cache(maxsize=1 << 12)
def _is_ignored(character: str) -> bool:
    # Python does not expose that property, but applies the rule: a sigma after a letter is final
    # before such a character, and is not final if another letter follows.
    alone = f"a{_SIGMA}{character}".lower()
    followed = f"a{_SIGMA}{character}a".lower()
    return alone[1] == "\u03c2" and followed[1] == "\u03c3"
