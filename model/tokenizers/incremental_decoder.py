"""`IncrementalDecoder` turns tokens into text while they arrive.

The concatenation of the returned texts is the text of `Tokenizer.decode` for all tokens. Subclasses
decode tokens whose texts depend on each other.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.model.tokenizers.token_ids import TokenIds


class IncrementalDecoder:
    """Decodes tokens whose texts do not depend on each other.

    Args:
        decode: Returns the text of tokens.
    """

    def __init__(self, decode: Callable[[TokenIds], str]) -> None:
        self._decode = decode

    def push(self, tokens: TokenIds) -> str:
        """Adds the next tokens; returns the complete text, never half a character."""
        return self._decode(tokens)

    def flush(self) -> str:
        """Ends the text; returns the text that was held back."""
        return ""

    @property
    def held(self) -> bytes:
        """State of the decoder, up to 7 bytes: a new decoder with it continues this one."""
        return b""

    @property
    def cuts_character(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return False


class LookupDecoder(IncrementalDecoder):
    """Decodes tokens by a table with the text of every token.

    Args:
        texts: The text of every token, by id.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def push(self, tokens: TokenIds) -> str:
        """Implements `IncrementalDecoder.push`."""
        texts = self._texts
        return "".join([texts[token] for token in tokens])


class ByteDecoder(IncrementalDecoder):
    """Decodes tokens of one or more bytes as UTF-8.

    Args:
        decode_bytes: Returns the bytes of tokens.
        held: The first bytes of an incomplete character at the end of the text so far.
    """

    def __init__(self, decode_bytes: Callable[[TokenIds], bytes], held: bytes = b"") -> None:
        self._bytes = decode_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((held, 0))

    def push(self, tokens: TokenIds) -> str:
        """Implements `IncrementalDecoder.push`."""
        return self._decoder.decode(self._bytes(tokens))

    def flush(self) -> str:
        """Implements `IncrementalDecoder.flush`: half a character gives U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    @property
    def held(self) -> bytes:
        """Implements `IncrementalDecoder.held`: the bytes of an incomplete character."""
        return self._decoder.getstate()[0]

    @property
    def cuts_character(self) -> bool:
        """Implements `IncrementalDecoder.cuts_character`."""
        return bool(self.held)
