r"""From a file to tokens: decoding, vocabulary, lines, and the part kept for validation.

Text is strict UTF-8 with an optional byte order mark; the policy decides about bytes that are
not. The bytes tokenizer takes any data as it is. The vocabulary is that of the whole corpus.

In the layout TEXT nothing is changed, "\r\n" included. In the layout LINES an item is a line
without its end ("\n" or "\r\n"); empty lines are left out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import (
    CorpusLayout,
    DataConfig,
    Split,
    TokenizerConfig,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import CorpusError, EncodingError
from treadle.model.shuffle import Purpose, permutation
from treadle.model.tokenizer import ByteTokenizer, Tokenizer, WordTokenizer, build_tokenizer
from treadle.model.tokenizer_words import boundary

MIN_VALIDATION_TOKENS = 32
"""A smaller part says too little to be worth what training loses by it."""

_BOM = b"\xef\xbb\xbf"
_ON_BAD_BYTES = {
    UnknownPolicy.ERROR: "strict",
    UnknownPolicy.SKIP: "ignore",
    UnknownPolicy.UNKNOWN: "replace",
}


@dataclass(frozen=True)
class TokenData:
    """One part of a corpus, as tokens."""

    tokens: NDArray[np.int32]
    """The tokens, (n,) int32; all items' one after the other, neither begin nor end among them."""
    offsets: NDArray[np.int64] | None = None
    """Where each item starts, (items + 1,) int64, the last entry n; None for the layout TEXT."""

    @property
    def items(self) -> int:
        """How many items there are; 0 in the layout TEXT."""
        return 0 if self.offsets is None else len(self.offsets) - 1

    @property
    def predicted(self) -> int:
        """How many tokens one pass foretells: all but a text's first; in items, the end too."""
        return (
            max(len(self.tokens) - 1, 0) if self.offsets is None else len(self.tokens) + self.items
        )


@dataclass(frozen=True)
class Corpus:
    """A corpus read, cut and turned to tokens."""

    tokenizer: Tokenizer
    """What made the tokens."""
    layout: CorpusLayout
    """How it was cut."""
    train: TokenData
    """What is trained on."""
    valid: TokenData | None
    """What is kept for validation, if anything."""
    notices: tuple[str, ...] = ()
    """Sentences about what was left out or chosen for the user."""
    test: TokenData | None = None
    """What is kept for the test at the end, if anything."""
    valid_split: Split | None = None
    """Where the validation part comes from; None without one."""
    test_split: Split | None = None
    """Where the test part comes from; None without one."""
    valid_characters: int = 0
    """Code points of the validation part; 0 without one."""
    test_characters: int = 0
    """Code points of the test part; 0 without one."""


def read_corpus(
    data: bytes | os.PathLike[str],
    tokenizer: TokenizerConfig | None = None,
    data_config: DataConfig | None = None,
    seed: int = 0,
) -> Corpus:
    """Reads a corpus.

    Args:
        data: The corpus, or the file that holds it.
        tokenizer: How text becomes tokens; None: the defaults.
        data_config: How it is cut; None: the defaults.
        seed: Draws the items kept for validation.

    Raises:
        CorpusError: It is empty, or too small to make one step of training.
        EncodingError: It is not UTF-8, and the policy is ERROR.
        UnknownSymbolError: The vocabulary has no room for a word, and the policy is ERROR.
        OSError: The file cannot be read.
    """
    tokenizer = tokenizer or TokenizerConfig()
    data_config = data_config or DataConfig()
    raw = Path(data).read_bytes() if isinstance(data, os.PathLike) else bytes(data)
    if not raw:
        raise CorpusError("the corpus is empty: give it some text")
    fraction = data_config.validation_fraction
    if data_config.layout is CorpusLayout.LINES:
        return _read_lines(raw, tokenizer, fraction, seed)
    return _read_text(raw, tokenizer, fraction)


def _decode(raw: bytes, config: TokenizerConfig) -> str:
    start = len(_BOM) if raw.startswith(_BOM) else 0
    try:
        return str(memoryview(raw)[start:], "utf-8", _ON_BAD_BYTES[config.policy])
    except UnicodeDecodeError as fault:
        offset = start + fault.start
        utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = " (it looks like UTF-16)" if utf16 else ""
        raise EncodingError(
            f"the corpus is not UTF-8{guess}: byte 0x{raw[offset]:02X} at offset {offset}; convert "
            "it, or set the tokenizer to 'bytes', or unknown_policy to 'skip'",
            offset,
        ) from None


def _read_text(raw: bytes, config: TokenizerConfig, fraction: float) -> Corpus:
    if config.kind is TokenizerKind.BYTES:
        tokenizer: Tokenizer = ByteTokenizer(config, CorpusLayout.TEXT)
        tokens = np.frombuffer(raw, np.uint8).astype(np.int32)
        cut = int(len(tokens) * (1 - fraction))
    else:
        text = _decode(raw, config)
        tokenizer = build_tokenizer(config, [text])
        tokens = tokenizer.encode(text)
        cut = int(len(text) * (1 - fraction))
        if isinstance(tokenizer, WordTokenizer):
            # No word is cut in two; the second part's tokens tell where they begin.
            cut = len(tokens) - len(tokenizer.encode(text[boundary(text, cut) :]))
    _check_size(len(tokens), "tokens", 2)
    train, valid = TokenData(tokens[:cut]), TokenData(tokens[cut:])
    return _corpus(tokenizer, TokenData(tokens), train, valid, fraction)


def _read_lines(raw: bytes, config: TokenizerConfig, fraction: float, seed: int) -> Corpus:
    layout = CorpusLayout.LINES
    if config.kind is TokenizerKind.BYTES:
        byte_tokenizer = ByteTokenizer(config, layout)
        raw = raw.replace(b"\r\n", b"\n").removesuffix(b"\r")
        raw = raw if raw.endswith(b"\n") else raw + b"\n"
        tokenizer: Tokenizer = byte_tokenizer
        tokens, offsets = byte_tokenizer.encode_byte_items(raw)
    else:
        text = _decode(raw, config).replace("\r\n", "\n").removesuffix("\r")
        text = text if text.endswith("\n") else text + "\n"
        tokenizer = build_tokenizer(config, [text], layout)
        tokens, offsets = tokenizer.encode_items(text)
    # Two items that start at the same place: the first of them is empty.
    filled = np.append(True, np.diff(offsets) > 0)
    everything = TokenData(tokens, offsets[filled])
    _check_size(everything.items, "lines with text", 1)
    train, valid = _draw_items(everything, fraction, seed)
    notices = _left_out(int(np.count_nonzero(~filled)), config)
    return _corpus(tokenizer, everything, train, valid, fraction, notices)


def _left_out(count: int, config: TokenizerConfig) -> tuple[str, ...]:
    if not count:
        return ()
    skips_words = config.kind is TokenizerKind.WORDS and config.policy is UnknownPolicy.SKIP
    reason = "empty or of unknown words only" if skips_words else "empty"
    return (f"{count:,} {'line' if count == 1 else 'lines'} left out: {reason}",)


def _check_size(size: int, unit: str, least: int) -> None:
    if size < least:
        raise CorpusError(
            f"the corpus has {size} {unit}, and training needs {least} or more: give it more text"
        )


def _draw_items(data: TokenData, fraction: float, seed: int) -> tuple[TokenData, TokenData]:
    """Splits items by the seed; both parts keep the order of the corpus."""
    order = permutation(data.items, seed, Purpose.VALIDATION_ITEMS)
    kept = np.zeros(data.items, dtype=np.bool_)
    kept[order[int(data.items * (1 - fraction)) :]] = True
    return _take_items(data, ~kept), _take_items(data, kept)


def _take_items(data: TokenData, chosen: NDArray[np.bool_]) -> TokenData:
    assert data.offsets is not None
    lengths = np.diff(data.offsets)
    tokens = data.tokens[np.repeat(chosen, lengths)]
    return TokenData(tokens, np.append(0, np.cumsum(lengths[chosen])).astype(np.int64))


def _corpus(
    tokenizer: Tokenizer,
    everything: TokenData,
    train: TokenData,
    valid: TokenData,
    fraction: float,
    notices: tuple[str, ...] = (),
) -> Corpus:
    """Decides whether the validation part is worth having."""
    layout = tokenizer.layout
    if fraction == 0:
        return Corpus(tokenizer, layout, everything, None, notices)
    if valid.predicted < MIN_VALIDATION_TOKENS or train.predicted < 1:
        why = (
            f"nothing kept for validation: it would leave {train.predicted:,} tokens to train on "
            f"and {valid.predicted:,} to validate with"
        )
        return Corpus(tokenizer, layout, everything, None, (*notices, why))
    return Corpus(tokenizer, layout, train, valid, notices)
