"""`ByteTokenizer` has one token for each of the 256 bytes, so it can read any data.

A text is encoded as UTF-8. Tokens that are not UTF-8 are decoded to U+FFFD, as in Python and in web
browsers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.tokenizers.base import BYTE_VALUES, NEWLINE_MARK, Tokenizer
from treadle.model.tokenizers.incremental_decoder import ByteDecoder, IncrementalDecoder
from treadle.model.tokenizers.surrogates import handle_surrogates

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.model.enums import CorpusLayout, UnknownPolicy
    from treadle.model.tokenizers.token_ids import TokenIds


class ByteTokenizer(Tokenizer):
    """One token per byte; token i is byte i, and no byte is unknown.

    Only lone surrogates have no bytes; no file and no request can hold them. The policy applies
    to them, and UNKNOWN reads them as U+FFFD.

    Args:
        config: How text becomes tokens.
        layout: The layout of the corpus.
    """

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout) -> None:
        super().__init__(config, layout, BYTE_VALUES, has_unknown=False)

    def encode(self, text: str, policy: UnknownPolicy | None = None) -> NDArray[np.int32]:
        """Implements `Tokenizer.encode`; UNKNOWN is legal, as no unknown token is needed."""
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
        """Returns the policy to apply; every policy is legal."""
        return self._requested(policy)

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        marked = self.encode(text)
        if items:
            marked[marked == ord("\n")] = NEWLINE_MARK
        return marked

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        raise AssertionError("nothing is unknown to bytes")

    def decode(self, tokens: TokenIds) -> str:
        """Implements `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: TokenIds) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""
        ids = self._ids(tokens)
        return ids[ids < BYTE_VALUES].astype(np.uint8).tobytes()

    def token_text(self, token: int) -> str:
        """Implements `Tokenizer.token_text`: only ASCII bytes are characters of their own."""
        return chr(token) if 0 <= token < 128 else ""

    def characters(self, tokens: TokenIds) -> int:
        """Returns the number of characters that begin in tokens, without continuation bytes."""
        ids = self._ids(tokens)
        return int(np.count_nonzero((ids < BYTE_VALUES) & (ids & 0xC0 != 0x80)))

    def stream(self, held: bytes = b"") -> IncrementalDecoder:
        """Implements `Tokenizer.stream`; bytes of an incomplete character are held back."""
        return ByteDecoder(self.decode_bytes, held)

    def _vocabulary_json(self) -> dict[str, Any]:
        return {}
