"""Events, learned subwords, rare symbols, lower case, and items that hold line ends."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import (
    ConfigError,
    CorpusError,
    LoadError,
    PackageError,
    UnknownSymbolError,
)
from treadle.model.network.trained_network import default_context
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer, tokenizer_from_json
from treadle.model.tokenizers.subwords import SubwordTokenizer
from treadle.model.tokenizers.whitespace import EventTokenizer, WhitespaceTokenizer

CHARACTERS, BYTES, WORDS, SUBWORDS, EVENTS, WHITESPACE = TokenizerKind
TEXT, LINES = CorpusLayout
ERROR, SKIP, UNKNOWN = UnknownPolicy
SAMPLE = "すべての人間は、 سلام عليكم \x00 สวัสดี 👩‍👩‍👧 naïve\n the the quick quick quick\r\n"


def build(
    kind: TokenizerKind,
    text: str,
    layout: CorpusLayout = TEXT,
    *,
    newline: bool = False,
    policy: UnknownPolicy | None = None,
    size: int = 400,
    least: int = 1,
    lower: bool = False,
) -> Tokenizer:
    config = TokenizerConfig(kind, size, policy, least, lower)
    return build_tokenizer(config, [text], layout, newline)


@pytest.mark.parametrize("layout", list(CorpusLayout))
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("newline", [False, True])
@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_every_kind_survives_its_file(
    kind: TokenizerKind, newline: bool, lower: bool, layout: CorpusLayout
) -> None:
    tokenizer = build(kind, SAMPLE, layout, newline=newline, policy=SKIP, lower=lower)
    stored = json.loads(json.dumps(tokenizer.to_json()))
    again = tokenizer_from_json(stored)
    assert again.to_json() == tokenizer.to_json()
    for text in (SAMPLE, SAMPLE.upper(), "", "\n", "the quick"):
        assert again.encode(text).tobytes() == tokenizer.encode(text).tobytes()
    every = list(range(tokenizer.vocabulary_size))
    assert again.decode(every) == tokenizer.decode(every)
    assert 0 <= default_context(again, 0) < again.vocabulary_size


# Events


def test_events_are_runs_of_anything_but_white_space() -> None:
    tokenizer = build(EVENTS, "22 5 5 5\t11  disk-full\n5 22")
    assert isinstance(tokenizer, EventTokenizer)
    assert tokenizer.words == ("5", "22", "11", "disk-full")
    tokens = tokenizer.encode("22 5  11\n")
    assert tokens.tolist() == [1, 0, 2]
    assert tokenizer.decode(tokens) == "22 5 11"
    assert tokenizer.characters(tokens) == len("22 5 11")
    assert tokenizer.token_text(3) == "disk-full"


def test_an_unknown_event_has_a_token_of_its_own() -> None:
    tokenizer = build(EVENTS, "1 2 2", LINES)
    unknown = tokenizer.unknown
    assert unknown == 4
    assert tokenizer.encode("2 99 1").tolist() == [0, unknown, 1]
    assert tokenizer.decode([0, unknown, 1, tokenizer.end or 0]) == "2 \ufffd 1"
    with pytest.raises(UnknownSymbolError, match="'99' at position 2") as caught:
        tokenizer.encode("2 99 1", ERROR)
    assert caught.value.position == 2


def test_sessions_are_lines() -> None:
    tokenizer = build(EVENTS, "5 22\n11\n", LINES)
    tokens, offsets = tokenizer.encode_items("5 22 5\n\n11\n")
    assert offsets.tolist() == [0, 3, 3, 4]
    assert tokenizer.decode(tokens[:3]) == "5 22 5"


@pytest.mark.parametrize("kind", [EVENTS, WHITESPACE])
@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 4)), seed=st.integers(0, 100))
def test_pieces_join_to_the_whole(kind: TokenizerKind, sizes: list[int], seed: int) -> None:
    tokenizer = build(kind, "a bb\nccc", LINES, newline=True)
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, tokenizer.vocabulary_size, sum(sizes)).tolist()
    stream = tokenizer.stream()
    text = ""
    first = 0
    for size in sizes:
        text += stream.push(tokens[first : first + size])
        first += size
    assert text + stream.flush() == tokenizer.decode(tokens)


# What stands between white space

TREEBANK = """ no it was n't black monday\x20
 but while the new york stock exchange did n't fall apart friday as the <unk> <unk> plunged N
 some circuit\tbreakers \r

 <unk> <unk>
"""


def test_tokens_of_white_space_are_words_and_ends_of_lines() -> None:
    tokenizer = build(WHITESPACE, TREEBANK)
    assert isinstance(tokenizer, WhitespaceTokenizer)
    tokens = tokenizer.encode(TREEBANK)
    lines = TREEBANK.split("\n")[:-1]
    assert tokens.size == sum(len(line.split()) for line in lines) + len(lines)
    assert tokenizer.token_text(int(tokens[-2])) == "<unk>"
    assert tokenizer.token_text(int(tokens[-1])) == "\n"
    shown = "".join(" ".join(line.split()) + "\n" for line in lines)
    assert tokenizer.decode(tokens) == shown
    assert tokenizer.characters(tokens) == len(shown)
    assert tokenizer.encode(shown).tolist() == tokens.tolist()
    assert tokenizer.decode(tokenizer.encode("friday\n\nplunged N")) == "friday\n\nplunged N"


def test_words_cut_what_white_space_keeps_whole() -> None:
    text = "the <unk> plunged\n"
    assert build(WHITESPACE, text).encode(text).size == 4
    assert build(WORDS, text).encode(text).size == 6
    assert build(EVENTS, text).encode(text).size == 3


def test_a_vocabulary_of_white_space_holds_the_end_of_a_line() -> None:
    assert build(WHITESPACE, "a b\na\n", policy=ERROR).vocabulary_size == 3
    assert build(WHITESPACE, "a b\na\n").vocabulary_size == 4  # and the unknown token
    tokenizer = build(WHITESPACE, "a b\na\n", LINES)
    assert "\n" not in tokenizer.to_json()["words"]
    tokens, offsets = tokenizer.encode_items("a b\n\nb\n")
    assert offsets.tolist() == [0, 2, 2, 3]
    assert tokenizer.decode(tokens[:2]) == "a b"
    with pytest.raises(UnknownSymbolError, match=r"'c' .* at position 5 ") as caught:
        tokenizer.encode_items("a b\n\tc\n", ERROR)
    assert caught.value.position == 5
    text = build(WHITESPACE, "a b\n", policy=ERROR)
    with pytest.raises(UnknownSymbolError, match=r"'c' .* at position 4 "):
        text.encode("a b\nc")


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet="ab \n\t\r\u2028\u00a0<>"))
def test_white_space_reads_what_it_shows(text: str) -> None:
    tokenizer = build(WHITESPACE, text + "\na", policy=ERROR)
    tokens = tokenizer.encode(text)
    lines = text.split("\n")
    assert tokens.size == sum(len(line.split()) for line in lines) + len(lines) - 1
    shown = "\n".join(" ".join(line.split()) for line in lines)
    assert tokenizer.decode(tokens) == shown
    assert tokenizer.characters(tokens) == len(shown)
    assert tokenizer.encode(shown).tolist() == tokens.tolist()
    held = b""
    pieces = []
    for (
        token
    ) in tokens.tolist():  # each in a stream of its own, as generation continues from states
        stream = tokenizer.stream(held)
        pieces.append(stream.push([token]) + stream.flush())
        held = stream.held
    assert "".join(pieces) == shown


# Subwords


def test_subwords_are_learned_and_lossless() -> None:
    corpus = "the quick brown fox, the quicker foxes. " * 50
    tokenizer = build(SUBWORDS, corpus, size=300)
    assert isinstance(tokenizer, SubwordTokenizer)
    assert 256 < tokenizer.vocabulary_size <= 300
    assert tokenizer.encode(corpus).size < len(corpus) / 2
    for text in (corpus, SAMPLE, "", " ", "\n\n  x", "𐍈"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.characters(tokenizer.encode(text)) == len(text)


def test_the_same_text_teaches_the_same_subwords() -> None:
    corpus = "".join(chr(97 + n * n % 26) + " " * (n % 5 == 0) for n in range(20_000))
    first, second = (build(SUBWORDS, corpus, size=350).to_json() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


@settings(deadline=None, max_examples=50)
@given(text=st.text(), cut=st.integers(1, 4))
def test_a_stream_of_subwords_never_cuts_a_character(text: str, cut: int) -> None:
    tokenizer = build(SUBWORDS, SAMPLE, size=270)
    tokens = tokenizer.encode(text).tolist()
    stream = tokenizer.stream()
    parts = [stream.push(tokens[n : n + cut]) for n in range(0, len(tokens), cut)]
    assert "".join(parts) + stream.flush() == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_too_few_subwords_are_refused() -> None:
    with pytest.raises(ConfigError, match="256 or more") as caught:
        build(SUBWORDS, "abc", size=255)
    assert caught.value.field == "tokenizer.max_vocabulary_size"
    assert build(SUBWORDS, "abc", size=256).vocabulary_size == 256


def test_without_the_package_subwords_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = build(SUBWORDS, "abc").to_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[bpe\]'") as caught:
        build(SUBWORDS, "abc")
    assert caught.value.field == "tokenizer.kind"
    with pytest.raises(
        LoadError, match=r"be read: .* pip install '.\[bpe\]' in a checkout of Treadle$"
    ):
        tokenizer_from_json(stored)


@pytest.mark.parametrize("damage", [None, "", "{}", '{"model": 1}'])
def test_damaged_subwords_are_reported(damage: object) -> None:
    stored = build(SUBWORDS, "abc").to_json() | {"subwords": damage}
    with pytest.raises(LoadError, match="cannot be read"):
        tokenizer_from_json(stored)


def stored_subwords() -> dict[str, Any]:
    """What a tokenizer of subwords stores, in the format of the package."""
    stored = build(SUBWORDS, "the other then " * 20, size=262).to_json()
    return cast("dict[str, Any]", json.loads(stored["subwords"]))


def read_subwords(content: dict[str, Any]) -> Tokenizer:
    stored = build(SUBWORDS, "abc").to_json()
    return tokenizer_from_json(stored | {"subwords": json.dumps(content)})


PADDING = {
    "strategy": {"Fixed": 1000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 1_000_000,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
}
TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
ADDED = {
    "id": 1_000_000,
    "content": "the",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("padding", PADDING),
        ("truncation", TRUNCATION),
        ("added_tokens", [ADDED]),
        ("normalizer", {"type": "Lowercase"}),
        ("post_processor", {"type": "ByteLevel"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": False}),
        ("decoder", None),
        ("decoder", {"type": "Fuse"}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        ("something_new", {"a": 1}),
    ],
)
def test_a_subword_tokenizer_that_does_more_than_byte_level_bpe_is_refused(
    part: str, value: object
) -> None:
    content = stored_subwords()
    assert read_subwords(content).vocabulary_size == 262
    with pytest.raises(LoadError, match="cannot be read: its"):
        read_subwords(content | {part: value})


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.5},
        {"unk_token": "a"},
        {"continuing_subword_prefix": "a"},
        {"end_of_word_suffix": "a"},
        {"fuse_unk": True},
        {"byte_fallback": True},
        {"ignore_merges": True},
        {"type": "Unigram"},
        {"vocab": None},
        {"merges": None},
        {"merges": ["t h"]},
        {"merges": [["t", "h", "e"]]},
        {"merges": [["t", 1]]},
        {"merges": [["t", "zz"]]},
        {"merges": [["t", "z"]]},
        {"merges": [["t", "h"]] * 300},
    ],
)
def test_a_subword_model_with_other_settings_is_refused(change: dict[str, object]) -> None:
    content = stored_subwords()
    content["model"] |= change
    with pytest.raises(LoadError, match="cannot be read"):
        read_subwords(content)


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("the", 1_000_000),
        ("the", 2**40),
        ("the", -1),
        ("the", 0),
        ("the", 1.0),
        ("the", True),
        ("the", None),
        ("the", "261"),
        ("not a mark", 262),
        ("x" * 70_000, 262),
        ("", 262),
        ("a", 262),
    ],
)
def test_a_subword_vocabulary_with_other_ids_or_texts_is_refused(text: str, token: object) -> None:
    content = stored_subwords()
    content["model"]["vocab"][text] = token
    with pytest.raises(LoadError, match="cannot be read"):
        read_subwords(content)


def test_what_is_left_out_of_a_subword_vocabulary_is_noticed() -> None:
    content = stored_subwords()
    del content["model"]["vocab"]["a"]
    with pytest.raises(LoadError, match="cannot be read"):
        read_subwords(content)


def test_a_panic_of_the_package_is_an_error_like_others() -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = build(SUBWORDS, "abc")
    assert isinstance(tokenizer, SubwordTokenizer)
    content = json.loads(tokenizer.to_json()["subwords"]) | {"truncation": TRUNCATION}
    tokenizer._learned = library.Tokenizer.from_str(json.dumps(content))
    with pytest.raises(PackageError, match=r"package tokenizers failed to read a text: .stride"):
        tokenizer.encode("abc abc abc")
    with pytest.raises(PackageError, match="failed to read texts"):
        tokenizer.encode_records(["abc abc abc"])


@pytest.mark.parametrize("kind", [SUBWORDS, BYTES])
def test_lone_surrogates_follow_the_policy(kind: TokenizerKind) -> None:
    tokenizer = build(kind, "abc")
    with pytest.raises(UnknownSymbolError, match=r"U\+D800.* at position 1 "):
        tokenizer.encode("a\ud800b", ERROR)
    assert tokenizer.decode(tokenizer.encode("a\ud800b", SKIP)) == "ab"
    assert tokenizer.decode(tokenizer.encode("a\ud800b", UNKNOWN)) == "a\ufffdb"


# Rare symbols and lower case


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [
        (CHARACTERS, "aaabbc", "ab"),
        (WORDS, " one one two", " one"),
        (EVENTS, "7 7 8 8 9", "7 8"),
        (WHITESPACE, "7 7\n8 8\n9", "\n7 8"),
    ],
)
def test_rare_symbols_are_unknown(kind: TokenizerKind, text: str, kept: str) -> None:
    tokenizer = build(kind, text, policy=UNKNOWN, least=2)
    assert tokenizer.decode(range(tokenizer.ordinary)) == kept
    assert tokenizer.unknown in tokenizer.encode(text).tolist()
    strict = build(kind, text, policy=ERROR, least=2)
    with pytest.raises(UnknownSymbolError, match="or lower min_frequency"):
        strict.encode(text)


@pytest.mark.parametrize("kind", [CHARACTERS, WORDS, SUBWORDS, EVENTS, WHITESPACE])
def test_lower_case(kind: TokenizerKind) -> None:
    text = "The Straße İstanbul ΑΣ, the END"
    tokenizer = build(kind, text, lower=True, policy=SKIP)
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower()
    assert tokenizer.encode(text.upper()[:7]).tolist() == tokenizer.encode("the str").tolist()
    tokens, _ = tokenizer.encode_records([text, text.lower()])
    half = tokens.size // 2
    assert tokens[:half].tolist() == tokens[half:].tolist()


# Items one by one


@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_records_are_items_given_one_by_one(kind: TokenizerKind) -> None:
    texts = ["one two", "", "three\nfour", "one"]
    joined = "\n".join(texts)
    tokenizer = build(kind, joined, LINES, newline=True)
    tokens, offsets = tokenizer.encode_records(texts)
    assert offsets.size == len(texts) + 1
    for text, first, last in zip(texts, offsets, offsets[1:], strict=False):
        assert tokens[first:last].tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.encode_records([])[1].tolist() == [0]
    if kind is not EVENTS:
        assert tokenizer.decode(tokenizer.encode("three\nfour")) == "three\nfour"
    plain = [text for text in texts if "\n" not in text]
    tokens, offsets = tokenizer.encode_items("".join(text + "\n" for text in plain))
    same_tokens, same_offsets = tokenizer.encode_records(plain)
    assert np.array_equal(tokens, same_tokens)
    assert np.array_equal(offsets, same_offsets)


def test_a_surrogate_in_a_corpus_of_events_is_refused() -> None:
    with pytest.raises(CorpusError, match="lone surrogate"):
        build(EVENTS, "a \ud800 b")
