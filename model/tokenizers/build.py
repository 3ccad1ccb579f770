"""`build_tokenizer` builds a tokenizer from a corpus, `tokenizer_from_json` from stored values.

The kinds are characters, bytes, words, subwords, events, and text between white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, LoadError
from treadle.model.field_checks import member
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.tokenizers.characters import CharacterTokenizer
from treadle.model.tokenizers.subwords import SubwordTokenizer
from treadle.model.tokenizers.surrogates import REPLACEMENT, SURROGATE
from treadle.model.tokenizers.whitespace import EventTokenizer, WhitespaceTokenizer
from treadle.model.tokenizers.words import WordTokenizer

if TYPE_CHECKING:
    from treadle.model.tokenizers.base import Tokenizer, WordListTokenizer


def build_tokenizer(
    config: TokenizerConfig,
    texts: Iterable[str] = (),
    layout: CorpusLayout = CorpusLayout.TEXT,
    newline: bool = False,
) -> Tokenizer:
    r"""Builds the tokenizer of a corpus.

    Args:
        config: How text becomes tokens.
        texts: The corpus, whole or in parts that end after a symbol. Bytes need no corpus.
        layout: The layout of the corpus. LINES adds `begin` and `end`.
        newline: Whether items may hold "\n" as a symbol; for LINES.

    Returns:
        The tokenizer.

    Raises:
        CorpusError: A text holds half of a surrogate pair.
        ConfigError: Subwords: the package `tokenizers` is not installed, or the vocabulary is
            smaller than the number of bytes.
    """
    layout = member(CorpusLayout, layout, "layout")
    if config.kind is TokenizerKind.BYTES:
        return ByteTokenizer(config, layout)
    if config.lower_case:
        texts = (text.lower() for text in texts)
    if config.kind is TokenizerKind.SUBWORDS:
        return SubwordTokenizer.build(config, layout, texts)
    without = "\n" if layout is CorpusLayout.LINES and not newline else ""
    without += REPLACEMENT if config.policy is UnknownPolicy.UNKNOWN else ""
    if config.kind is TokenizerKind.CHARACTERS:
        return CharacterTokenizer.build(config, layout, texts, without)
    return _WORD_KINDS[config.kind].build(config, layout, texts, without)


_WORD_KINDS: dict[TokenizerKind, type[WordListTokenizer]] = {
    TokenizerKind.WORDS: WordTokenizer,
    TokenizerKind.EVENTS: EventTokenizer,
    TokenizerKind.WHITESPACE: WhitespaceTokenizer,
}


def tokenizer_from_json(data: object) -> Tokenizer:
    """Builds a tokenizer from the result of `Tokenizer.to_json`.

    Returns:
        The tokenizer.

    Raises:
        LoadError: `data` has another form.
    """
    if not isinstance(data, Mapping):
        raise _damaged("it is not a mapping")
    try:
        config = TokenizerConfig.from_json(data.get("config"))
        layout = CorpusLayout(str(data.get("layout")))
    except (ConfigError, ValueError) as fault:
        raise _damaged(str(fault)) from fault
    if config.kind is TokenizerKind.BYTES:
        return ByteTokenizer(config, layout)
    if config.kind is TokenizerKind.SUBWORDS:
        try:
            return SubwordTokenizer(config, layout, str(data.get("subwords")))
        except ValueError as fault:
            raise _damaged(str(fault)) from fault
        except ConfigError as fault:  # the file is undamaged, but the package is missing
            raise LoadError(f"the stored tokenizer cannot be read: {fault}") from fault
    if config.kind in _WORD_KINDS:
        return _WORD_KINDS[config.kind](config, layout, _symbols(data.get("words"), list))
    return CharacterTokenizer(config, layout, "".join(_symbols(data.get("symbols"), str)))


def _symbols(given: object, kind: type[str] | type[list[str]]) -> list[str]:
    """Returns the vocabulary: non-empty texts, all different."""
    if not isinstance(given, kind) or not all(isinstance(symbol, str) for symbol in given):
        raise _damaged("its vocabulary is missing or of the wrong type")
    symbols = list(given)
    if len(set(symbols)) < len(symbols) or "" in symbols:
        raise _damaged("its vocabulary holds a symbol twice or an empty one")
    if any(map(SURROGATE.search, symbols)):
        raise _damaged("its vocabulary holds a lone surrogate")
    return symbols


def _damaged(reason: str) -> LoadError:
    return LoadError(f"the stored tokenizer cannot be read: {reason}; take the file again")
