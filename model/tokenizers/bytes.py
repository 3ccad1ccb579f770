"""Tokens that are bytes: 256 of them, and no data that they cannot hold.

A text is its UTF-8 bytes. Tokens that are not UTF-8 are shown with U+FFFD, as Python's and the
browsers' decoders do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizers.base import BYTE_VALUES, NEWLINE_MARK, Tokenizer
from treadle.model.tokenizers.surrogates import handle_surrogates
from treadle.model.tokenizers.token_stream import ByteStream, TokenStream

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.model.enums import CorpusLayout, UnknownPolicy
    from treadle.model.tokenizers.token_ids import TokenIds


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
        return self.encode_bytes(handle_surrogates(text, policy).encode())

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

    def decode(self, tokens: TokenIds) -> str:
        """See `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: TokenIds) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""
        ids = self._ids(tokens)
        return ids[ids < BYTE_VALUES].astype(np.uint8).tobytes()

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`: only ASCII bytes are characters by themselves."""
        return chr(token) if 0 <= token < 128 else ""

    def characters(self, tokens: TokenIds) -> int:
        """Returns the characters that begin in tokens: UTF-8's bytes but the continuing ones."""
        ids = self._ids(tokens)
        return int(np.count_nonzero((ids < BYTE_VALUES) & (ids & 0xC0 != 0x80)))

    def stream(self, held: bytes = b"") -> TokenStream:
        """See `Tokenizer.stream`; the bytes of a character are held back until it is whole."""
        return ByteStream(self.decode_bytes, held)

    def _vocabulary_json(self) -> dict[str, Any]:
        return {}
