"""Tokens that are bytes: 256 of them, and no data that they cannot hold.

A text is its UTF-8 bytes. Tokens that are not UTF-8 are shown with U+FFFD, as Python's and the
browsers' decoders do.
"""

from __future__ import annotations

import codecs
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import CorpusLayout, TokenizerConfig, UnknownPolicy
from treadle.model.errors import UnknownSymbolError
from treadle.model.tokenizers.base import (
    NEWLINE_MARK,
    REPLACEMENT,
    SURROGATE,
    Tokenizer,
    Tokens,
    TokenStream,
)

BYTE_VALUES = 256


class ByteTokenizer(Tokenizer):
    """One token a byte; token i is byte i, and nothing is unknown.

    The only text that has no bytes is one with lone surrogates, which no file and no request
    holds: it falls under the policy, and UNKNOWN reads it as U+FFFD.

    Args:
        config: How text becomes tokens.
        layout: How the corpus is cut.
    """

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout) -> None:
        super().__init__(config, layout, BYTE_VALUES, has_unknown=False)

    def encode(self, text: str, policy: UnknownPolicy | None = None) -> NDArray[np.int32]:
        """See `Tokenizer.encode`; UNKNOWN is legal here, as nothing needs an unknown token."""
        policy = self.check_policy(policy)
        return self.encode_bytes(readable(text, policy).encode())

    def encode_bytes(self, data: bytes) -> NDArray[np.int32]:
        """Returns the tokens of bytes, (n,) int32."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)

    def encode_byte_items(self, data: bytes) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        r"""Returns the tokens of items of bytes, each ended by "\n"; see `encode_items`."""
        marked = self.encode_bytes(data)
        marked[marked == ord("\n")] = NEWLINE_MARK
        return self._cut(marked)

    def check_policy(self, policy: UnknownPolicy | None) -> UnknownPolicy:
        """Returns the policy that holds when `policy` is asked for; every one is legal."""
        return self._asked(policy)

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        marked = self.encode(text)
        if items:
            marked[marked == ord("\n")] = NEWLINE_MARK
        return marked

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        raise AssertionError("nothing is unknown to bytes")

    def decode(self, tokens: Tokens) -> str:
        """See `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""
        ids = self._ids(tokens)
        return ids[ids < BYTE_VALUES].astype(np.uint8).tobytes()

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`: only ASCII bytes are characters by themselves."""
        return chr(token) if 0 <= token < 128 else ""

    def characters(self, tokens: Tokens) -> int:
        """Returns the characters that begin in tokens: UTF-8's bytes but the continuing ones."""
        ids = self._ids(tokens)
        return int(np.count_nonzero((ids < BYTE_VALUES) & (ids & 0xC0 != 0x80)))

    def stream(self, held: bytes = b"") -> TokenStream:
        """See `Tokenizer.stream`; the bytes of a character are held back until it is whole."""
        return ByteStream(self, held)

    def _vocabulary_json(self) -> dict[str, Any]:
        return {}


def readable(text: str, policy: UnknownPolicy) -> str:
    """Returns a text that has bytes: one without lone surrogates.

    Raises:
        UnknownSymbolError: There is one, and the policy is ERROR.
    """
    stranger = SURROGATE.search(text)
    if stranger is None:
        return text
    if policy is UnknownPolicy.ERROR:
        code, position = ord(stranger.group()), stranger.start()
        raise UnknownSymbolError(
            f"a lone surrogate (U+{code:04X}) at position {position} (counted from 0) is no "
            "character: take it out, or set unknown_policy to 'skip' or 'unknown'",
            stranger.group(),
            position,
        )
    return SURROGATE.sub("" if policy is UnknownPolicy.SKIP else REPLACEMENT, text)


class HasBytes(Protocol):
    """A tokenizer whose tokens are bytes, one or several."""

    def decode_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""


class ByteStream(TokenStream):
    """A stream from bytes to text.

    Args:
        tokenizer: Whose tokens they are.
        held: The bytes of the character that the text so far ends in the middle of.
    """

    def __init__(self, tokenizer: HasBytes, held: bytes = b"") -> None:
        self._bytes = tokenizer.decode_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((held, 0))

    def push(self, tokens: Tokens) -> str:
        """See `TokenStream.push`."""
        return self._decoder.decode(self._bytes(tokens))

    def flush(self) -> str:
        """See `TokenStream.flush`: half a character gives U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    @property
    def held(self) -> bytes:
        """See `TokenStream.held`: the bytes of a character that is not whole."""
        return self._decoder.getstate()[0]

    @property
    def cuts_character(self) -> bool:
        """See `TokenStream.cuts_character`."""
        return bool(self.held)
