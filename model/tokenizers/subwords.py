"""`SubwordTokenizer` learns pieces of words from the corpus by byte-level byte-pair encoding.

The method is that of Sennrich et al. 2016, over bytes as in GPT-2 (Radford et al. 2019). The
vocabulary begins with all 256 bytes, so any text can be encoded and decoded without loss. It grows
by the most frequent pair of neighbours within words. The package `tokenizers` implements it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from treadle.model.bounded_json import read_json
from treadle.model.enums import CorpusLayout, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.rust_panics import no_panics
from treadle.model.tokenizers.base import BYTE_VALUES, MAX_PIECE, NEWLINE_MARK, Tokenizer
from treadle.model.tokenizers.incremental_decoder import ByteDecoder, IncrementalDecoder
from treadle.model.tokenizers.surrogates import handle_surrogates
from treadle.model.tokenizers.token_ids import TokenIds, check_tokens

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig

_MIN_PAIRS = 2
"""Smallest number of occurrences of a pair that becomes a token."""

CUT = re.compile(r"(?<=\S)(?=[^\S\x1c-\x1f])")
"""Matches where a text may be cut: before white space, but not within it. No token reaches across
such a place. The four excluded characters are white space in Python only."""

_MAX_TOKENS = 1_000_000
"""Most tokens of a vocabulary, as for `TokenizerConfig.max_vocabulary_size`."""

_MAX_TOKEN_BYTES = 1 << 16
"""Most bytes of a token: far more than the longest learned piece has."""

_MOST_UNBROKEN = 1 << 22
"""Most characters without a place to cut from which subwords are learned."""

_PART = 8192
"""Characters encoded in one call of the package, during which no other thread runs."""


class SubwordTokenizer(Tokenizer):
    """One token per learned piece of a word; no text is unknown.

    Args:
        config: How text becomes tokens.
        layout: The layout of the corpus.
        learned: The result of learning, in the format of the package `tokenizers`. Only the
            vocabulary and the merges are used; any other setting that changes tokens is an
            error.

    Raises:
        ConfigError: The package is not installed.
        ValueError: `learned` has another format.
    """

    cut_pattern: ClassVar[re.Pattern[str] | None] = CUT

    def __init__(self, config: TokenizerConfig, layout: CorpusLayout, learned: str) -> None:
        vocabulary, merges = read_learned(learned)
        self._learned = _assemble(vocabulary, merges)
        super().__init__(config, layout, len(vocabulary), has_unknown=False)
        to_byte = {mark: byte for byte, mark in enumerate(_byte_marks())}
        special = [b""] * (self.vocabulary_size - self.ordinary)
        self._bytes = [bytes(to_byte[mark] for mark in text) for text in vocabulary] + special
        self._starts = np.array(
            [sum(byte & 0xC0 != 0x80 for byte in part) for part in self._bytes], np.int64
        )

    @classmethod
    def build(
        cls, config: TokenizerConfig, layout: CorpusLayout, texts: Iterable[str]
    ) -> SubwordTokenizer:
        """Returns a tokenizer learned from texts; the same texts give the same one.

        Args:
            config: How text becomes tokens.
            layout: The layout of the corpus.
            texts: The corpus, in parts.

        Raises:
            ConfigError: The package `tokenizers` is not installed, or the vocabulary is
                smaller than the number of bytes.
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
        legal = _learnable(texts)
        with _no_panics("learn subwords"):
            learned.train_from_iterator(legal, trainer)
        return cls(config, layout, learned.to_str())

    def encode(self, text: str, policy: UnknownPolicy | None = None) -> NDArray[np.int32]:
        """Implements `Tokenizer.encode`; every policy is legal, since no text is unknown."""
        policy = self.check_policy(policy)
        parts = _parts(handle_surrogates(self._normal(text), policy), _PART)
        with _no_panics("read a text"):
            ids = [self._learned.encode(part, add_special_tokens=False).ids for part in parts]
        tokens = np.concatenate([np.array(some, np.int64) for some in ids])
        return self._checked(tokens)

    def encode_items(
        self, text: str, policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Implements `Tokenizer.encode_items`."""
        return self.encode_records(text.split("\n")[:-1], policy)

    def encode_records(
        self, texts: Iterable[str], policy: UnknownPolicy | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Implements `Tokenizer.encode_records`."""
        policy = self.check_policy(policy)
        legal = [_whole(handle_surrogates(self._normal(text), policy)) for text in texts]
        joined = [part for parts in legal for part in parts]
        with _no_panics("read texts"):
            found = self._learned.encode_batch_fast(joined, add_special_tokens=False)
        encoded = [np.array(encoding.ids, np.int64) for encoding in found]
        ends = np.cumsum([0, *(part.size for part in encoded)], dtype=np.int64)
        tokens = self._checked(np.concatenate([np.empty(0, np.int64), *encoded]))
        return tokens, ends[np.cumsum([0, *map(len, legal)])]

    def _checked(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """Checks the tokens that the package returned, and converts them to int32."""
        check_tokens(tokens, self.ordinary)
        return tokens.astype(np.int32)

    def certain(self, text: str) -> int:
        """Implements `Tokenizer.certain`: up to the last cut of a piece that is too long."""
        return (len(text) - 1) // MAX_PIECE * MAX_PIECE if text else 0

    def check_policy(self, policy: UnknownPolicy | None) -> UnknownPolicy:
        """Returns the policy to apply; every policy is legal."""
        return self._requested(policy)

    def _look_up(self, text: str, *, items: bool) -> NDArray[np.int32]:
        if not items:
            return self.encode(text)
        tokens, offsets = self.encode_items(text)
        return np.insert(tokens, offsets[1:], NEWLINE_MARK)

    def _first_unknown(self, text: str, marked: NDArray[np.int32]) -> tuple[str, int]:
        raise AssertionError("nothing is unknown to subwords")

    def decode(self, tokens: TokenIds) -> str:
        """Implements `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: TokenIds) -> bytes:
        """Returns the bytes of tokens; special tokens have none."""
        return b"".join([self._bytes[token] for token in self._ids(tokens).tolist()])

    def token_text(self, token: int) -> str:
        """Implements `Tokenizer.token_text`: "" for parts of a character."""
        try:
            return self._bytes[token].decode() if 0 <= token < self.ordinary else ""
        except UnicodeDecodeError:
            return ""

    def characters(self, tokens: TokenIds) -> int:
        """Returns the characters that begin in tokens."""
        return int(self._starts[self._ids(tokens)].sum())

    def stream(self, held: bytes = b"") -> IncrementalDecoder:
        """Implements `Tokenizer.stream`; bytes of an incomplete character are held back."""
        return ByteDecoder(self.decode_bytes, held)

    def _vocabulary_json(self) -> dict[str, Any]:
        # Parsed and written again: the package does not guarantee an order of keys.
        return {"subwords": json.dumps(json.loads(self._learned.to_str()), ensure_ascii=False)}


def read_learned(learned: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the vocabulary, token by token, and the merges of byte-level BPE.

    Args:
        learned: In the format of the package `tokenizers`.

    Raises:
        ValueError: It has another format, or settings beyond byte-level BPE: a normalizer, padding,
            truncation, a post-processor, added tokens or the like.
    """
    try:
        content = read_json(learned)
    except RecursionError as fault:
        raise ValueError("its subwords are nested too deeply") from fault
    parts = _only(content, "subword tokenizer", {"version", "model", "pre_tokenizer", "decoder"})
    splitter = parts.get("pre_tokenizer")
    decoder = parts.get("decoder")
    cuts = _only(splitter, "pre_tokenizer", {"type", "trim_offsets", "use_regex"})
    if cuts.get("type") != "ByteLevel" or cuts.get("use_regex", True) is not True:
        raise ValueError("its pre_tokenizer is not ByteLevel as GPT-2 has it")
    # Its settings do not matter: the package is never used to decode.
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise ValueError("its decoder is not ByteLevel")
    model = _only(parts.get("model"), "model", {"type", "vocab", "merges"})
    if model.get("type") != "BPE":
        raise ValueError("its model is not BPE")
    vocabulary = _vocabulary(model.get("vocab"))
    return vocabulary, _merges(model.get("merges"), vocabulary)


def _only(part: object, name: str, known: set[str]) -> dict[str, Any]:
    """Returns a part of the format; checks that all unknown settings are off."""
    if not isinstance(part, dict):
        raise ValueError(f"its {name} is not a mapping")
    odd = sorted(key for key, value in part.items() if value and key not in known)
    if odd:
        raise ValueError(f"its {name} has {odd[0][:40]!r}, which byte-level BPE does not have")
    return part


def _vocabulary(given: object) -> list[str]:
    """Returns the tokens in order of their ids, which include all single bytes."""
    if not isinstance(given, dict) or not BYTE_VALUES <= len(given) <= _MAX_TOKENS:
        raise ValueError(f"its vocabulary does not have {BYTE_VALUES} to {_MAX_TOKENS:,} tokens")
    texts = [""] * len(given)
    for text, token in given.items():
        if type(token) is not int or not 0 <= token < len(texts) or texts[token]:
            raise ValueError(f"its tokens are not 0 to {len(texts) - 1:,}, each once")
        if not 0 < len(text) <= _MAX_TOKEN_BYTES:
            raise ValueError(f"one of its tokens does not have 1 to {_MAX_TOKEN_BYTES:,} bytes")
        texts[token] = text
    marks = _byte_marks()
    if not given.keys() >= set(marks) or not set(marks).issuperset("".join(texts)):
        raise ValueError("its tokens are not made of all bytes and of nothing else")
    return texts


def _merges(given: object, vocabulary: list[str]) -> list[tuple[str, str]]:
    """Returns the pairs that become one token; checks that both parts and the result are tokens."""
    if not isinstance(given, list) or len(given) > len(vocabulary):
        raise ValueError("its merges are not a list, or more than there are tokens")
    known = set(vocabulary)
    for pair in given:
        legal = isinstance(pair, list) and len(pair) == 2
        if not legal or not all(isinstance(part, str) and part in known for part in pair):
            raise ValueError("one of its merges is not a pair of tokens")
        if pair[0] + pair[1] not in known:
            raise ValueError("one of its merges does not make a token")
    return [(left, right) for left, right in given]


def _assemble(vocabulary: list[str], merges: list[tuple[str, str]]) -> Any:
    """Returns a tokenizer of the package with this vocabulary and no other settings.

    Raises:
        ConfigError: The package is not installed.
        ValueError: The package refuses the vocabulary or the merges.
    """
    library = _library()
    ids = {text: token for token, text in enumerate(vocabulary)}
    try:
        with _no_panics("take a vocabulary"):
            made = library.Tokenizer(library.models.BPE(ids, merges))
    except Exception as fault:  # the package raises no specific exception
        raise ValueError(f"its subwords cannot be read: {fault}") from fault
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    return made


def _no_panics(doing: str) -> AbstractContextManager[None]:
    return no_panics("tokenizers", doing)


def _parts(text: str, size: int) -> list[str]:
    """Cuts a text at places that change no token, and in stretches that are too long.

    A stretch of more than MAX_PIECE characters without a place to cut is cut into parts of that
    length, since the package's time rises faster than the length.

    Args:
        text: Any text.
        size: Approximate maximum of the characters of a part.

    Returns:
        The parts, whose concatenation is the text.
    """
    if len(text) <= MAX_PIECE:
        return [text]
    places = [0, *(match.start() for match in CUT.finditer(text)), len(text)]
    cuts = [0]
    for start, stop in pairwise(places):
        if start - cuts[-1] >= size:
            cuts.append(start)
        if stop - start > MAX_PIECE:
            cuts += range(start + MAX_PIECE, stop, MAX_PIECE)
    return [text[start:stop] for start, stop in pairwise([*cuts, len(text)])]


def _learnable(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts to learn from: all parts, but only the first unbroken ones.

    The package stores every word, and an unbroken part is a word that does not occur twice.
    """
    unbroken = 0
    for text in texts:
        for part in _whole(handle_surrogates(text, UnknownPolicy.UNKNOWN)):
            if len(part) >= MAX_PIECE and CUT.search(part) is None:
                unbroken += len(part)
                if unbroken > _MOST_UNBROKEN:
                    continue
            yield part


def _whole(text: str) -> list[str]:
    """Returns a text in parts; only stretches that are too long are cut."""
    return _parts(text, len(text))


def _byte_marks() -> list[str]:
    """Returns the printable characters that represent the bytes in the format, as in GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(BYTE_VALUES)]


def check_subwords(config: TokenizerConfig) -> None:
    """Checks that a tokenizer of subwords can be built.

    Raises:
        ConfigError: The package `tokenizers` is not installed, or the vocabulary is smaller
            than the number of bytes.
    """
    if config.max_vocabulary_size < BYTE_VALUES:
        raise ConfigError(
            f"tokenizer.max_vocabulary_size must be {BYTE_VALUES} or more for subwords, since "
            f"every byte is one, not {config.max_vocabulary_size}",
            "tokenizer.max_vocabulary_size",
        )
    # Only located, since importing the package takes long.
    if importlib.util.find_spec("tokenizers") is None:
        raise _missing()


def _library() -> Any:
    """Returns the package `tokenizers`, which takes long to import and is only needed here."""
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
