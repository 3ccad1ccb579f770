"""Tokens that are pieces of words, learned from the corpus: byte-level byte-pair encoding.

Sennrich et al. 2016, over bytes as GPT-2 has it (Radford et al. 2019): the vocabulary begins with
all 256 bytes, so any text is legal and comes back as it was, and grows by the pair of neighbours
that is most frequent within words. The work is done by the package `tokenizers`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import CorpusLayout, TokenizerConfig, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.tokenizer_base import (
    MAX_PIECE,
    NEWLINE_MARK,
    Tokenizer,
    Tokens,
    TokenStream,
)
from treadle.model.tokenizer_bytes import BYTE_VALUES, ByteStream, readable

_MIN_PAIRS = 2
"""How often a pair of neighbours must be there to become a token."""

CUT = re.compile(r"(?<=\S)(?=[^\S\x1c-\x1f])")
"""Matches where a text may be cut: before white space, but not within it. What is learned never
reaches across that. The four characters left out are white space to Python alone."""

_PART = 8192
"""Characters encoded in one call of the package, which lets no other thread run meanwhile."""


class SubwordTokenizer(Tokenizer):
    """One token a learned piece of a word; nothing is unknown.

    Args:
        config: How text becomes tokens.
        layout: How the corpus is cut.
        learned: What was learned, in the format of the package `tokenizers`.

    Raises:
        ConfigError: The package is not installed.
        ValueError: `learned` is not that.
    """

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout, learned: str) -> None:
        library = _library()
        try:
            self._learned = library.Tokenizer.from_str(learned)
        except Exception as fault:  # the package raises nothing more precise
            raise ValueError(f"its subwords cannot be read: {fault}") from fault
        size = self._learned.get_vocab_size()
        super().__init__(config, layout, size, has_unknown=False)
        to_byte = {mark: byte for byte, mark in enumerate(_byte_marks())}
        vocabulary = sorted(self._learned.get_vocab().items(), key=lambda entry: entry[1])
        special = [b""] * (self.vocabulary_size - size)
        self._bytes = [bytes(to_byte[mark] for mark in text) for text, _ in vocabulary] + special
        self._starts = np.array(
            [sum(byte & 0xC0 != 0x80 for byte in part) for part in self._bytes], np.int64
        )

    @classmethod
    def build(
        cls, config: TokenizerConfig, layout: CorpusLayout, texts: Iterable[str]
    ) -> SubwordTokenizer:
        """Returns a tokenizer learned from `texts`; the same texts give the same one.

        Raises:
            ConfigError: The package `tokenizers` is not installed, or the vocabulary is to be
                smaller than all bytes.
        """
        check_subwords(config)
        library = _library()
        learned = library.Tokenizer(library.models.BPE())
        learned.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=config.max_vocabulary_size,
            min_frequency=_MIN_PAIRS,
            initial_alphabet=_byte_marks(),
            show_progress=False,
        )
        legal = (part for text in texts for part in _whole(readable(text, UnknownPolicy.UNKNOWN)))
        learned.train_from_iterator(legal, trainer)
        return cls(config, layout, learned.to_str())

    def encode(self, text: str, policy: UnknownPolicy | None = None) -> NDArray[np.int32]:
        """See `Tokenizer.encode`; every policy is legal, as nothing is unknown."""
        policy = self.check_policy(policy)
        parts = _parts(readable(self._normal(text), policy), _PART)
        ids = [self._learned.encode(part, add_special_tokens=False).ids for part in parts]
        return np.concatenate([np.array(some, np.int32) for some in ids])

    def encode_items(
        self, text: str, policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See `Tokenizer.encode_items`."""
        return self.encode_records(text.split("\n")[:-1], policy)

    def encode_records(
        self, texts: Iterable[str], policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See `Tokenizer.encode_records`."""
        policy = self.check_policy(policy)
        legal = [_whole(readable(self._normal(text), policy)) for text in texts]
        joined = [part for parts in legal for part in parts]
        found = self._learned.encode_batch_fast(joined, add_special_tokens=False)
        encoded = [np.array(encoding.ids, np.int32) for encoding in found]
        ends = np.cumsum([0, *(part.size for part in encoded)], dtype=np.int64)
        tokens = np.concatenate([np.empty(0, np.int32), *encoded])
        return tokens, ends[np.cumsum([0, *map(len, legal)])]

    def certain(self, text: str) -> int:
        """See `Tokenizer.certain`: up to where what is too long is cut."""
        return (len(text) - 1) // MAX_PIECE * MAX_PIECE if text else 0

    def check_policy(self, policy: UnknownPolicy | None) -> UnknownPolicy:
        """Returns the policy that holds when `policy` is asked for; every one is legal."""
        return self._asked(policy)

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        if not items:
            return self.encode(text)
        tokens, offsets = self.encode_items(text)
        return np.insert(tokens, offsets[1:], NEWLINE_MARK)

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        raise AssertionError("nothing is unknown to subwords")

    def decode(self, tokens: Tokens) -> str:
        """See `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Tokens) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""
        return b"".join([self._bytes[token] for token in self._ids(tokens).tolist()])

    def token_text(self, token: int) -> str:
        """See `Tokenizer.token_text`: "" for pieces that cut a character in two."""
        try:
            return self._bytes[token].decode() if 0 <= token < self.ordinary else ""
        except UnicodeDecodeError:
            return ""

    def characters(self, tokens: Tokens) -> int:
        """Returns the characters that begin in tokens."""
        return int(self._starts[self._ids(tokens)].sum())

    def stream(self, held: bytes = b"") -> TokenStream:
        """See `Tokenizer.stream`; the bytes of a character are held back until it is whole."""
        return ByteStream(self, held)

    def _vocabulary_json(self) -> dict[str, Any]:
        # Read and written again: the package's own order of keys is no promise.
        return {"subwords": json.dumps(json.loads(self._learned.to_str()), ensure_ascii=False)}


def _parts(text: str, size: int) -> list[str]:
    """Cuts a text where that changes no token, and where it has to be.

    What stands between two places to cut at, and is longer than MAX_PIECE, is cut after each so
    many characters: the time that the package takes rises faster than its length.

    Args:
        text: Any text.
        size: About how long the parts are to be at most.
    """
    if len(text) <= MAX_PIECE:
        return [text]
    places, cuts = [0, *(match.start() for match in CUT.finditer(text)), len(text)], [0]
    for start, stop in pairwise(places):
        if start - cuts[-1] >= size:
            cuts.append(start)
        if stop - start > MAX_PIECE:
            cuts += range(start + MAX_PIECE, stop, MAX_PIECE)
    return [text[start:stop] for start, stop in pairwise([*cuts, len(text)])]


def _whole(text: str) -> list[str]:
    """Returns a text, cut only where it has to be."""
    return _parts(text, len(text))


def _byte_marks() -> list[str]:
    """Returns the printable character by which the format stands for each byte, as GPT-2 has it."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(BYTE_VALUES)]


def check_subwords(config: TokenizerConfig) -> None:
    """Checks that a tokenizer of subwords can be built here.

    Raises:
        ConfigError: The package `tokenizers` is not installed, or the vocabulary is to be smaller
            than all bytes.
    """
    if config.max_vocabulary_size < BYTE_VALUES:
        raise ConfigError(
            f"tokenizer.max_vocabulary_size must be {BYTE_VALUES} or more for subwords, since "
            f"every byte is one, not {config.max_vocabulary_size}",
            "tokenizer.max_vocabulary_size",
        )
    # Looked for and not imported: the package is not small.
    if importlib.util.find_spec("tokenizers") is None:
        raise _missing()


def _library() -> Any:
    """Returns the package `tokenizers`, which is not small and only needed here."""
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise _missing() from None
    return tokenizers


def _missing() -> ConfigError:
    return ConfigError(
        "tokenizer.kind 'subwords' needs the package tokenizers: pip install '.[bpe]' in a "
        "checkout of Treadle",
        "tokenizer.kind",
    )
