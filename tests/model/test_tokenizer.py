from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, CorpusError, LoadError, UnknownSymbolError
from treadle.model.tokenizers import characters
from treadle.model.tokenizers import words as tokenizer_words
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer, tokenizer_from_json
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.tokenizers.characters import CharacterTokenizer
from treadle.model.tokenizers.words import WordTokenizer

CHARACTERS = TokenizerKind.CHARACTERS
BYTES = TokenizerKind.BYTES
WORDS = TokenizerKind.WORDS
KINDS = (CHARACTERS, BYTES, WORDS)
TEXT, LINES = CorpusLayout
ERROR, SKIP, UNKNOWN = UnknownPolicy

SAMPLES = [
    "",
    "hello",
    "すべての人間は、生れながらにして自由であり、\nかつ、尊厳と権利とについて平等である。",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में",
    "👩‍👩‍👧 e\u0301 snake_case __init__  two  blanks\t\r\nnaïve – don't!! \u3000\x00\u2028",
]
texts = st.one_of(
    st.sampled_from(SAMPLES),
    st.text(),
    st.text(alphabet=" \n\t_aB9é\u0301\u0939\u093f\u200d😀!?.世"),
)
any_kind = pytest.mark.parametrize("kind", KINDS)
any_layout = pytest.mark.parametrize("layout", list(CorpusLayout))


def build(
    kind: TokenizerKind,
    text: str,
    policy: UnknownPolicy | None = None,
    layout: CorpusLayout = TEXT,
    **options: Any,
) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind, unknown_policy=policy, **options), [text], layout)


@any_kind
@settings(deadline=None)
@given(text=texts, data=st.data())
def test_nothing_is_lost(kind: TokenizerKind, text: str, data: st.DataObject) -> None:
    policy = data.draw(st.sampled_from(UnknownPolicy))
    tokenizer = build(kind, text, policy)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    expected = text
    if kind is WORDS and policy is UNKNOWN and "\ufffd" in text:
        pieces = tokenizer_words.pieces_pattern().findall(text)
        expected = "".join("\ufffd" if "\ufffd" in piece else piece for piece in pieces)
    assert tokenizer.decode(tokens) == expected
    assert tokenizer.characters(tokens) == len(expected)


@any_kind
@settings(deadline=None)
@given(text=texts, data=st.data())
def test_a_stream_gives_what_decode_gives(
    kind: TokenizerKind, text: str, data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from(CorpusLayout))
    tokenizer = build(kind, text, UNKNOWN, layout)
    ids = st.integers(0, tokenizer.vocabulary_size - 1)
    tokens = data.draw(st.one_of(st.just(tokenizer.encode(text).tolist()), st.lists(ids)))
    cuts = data.draw(st.lists(st.integers(0, len(tokens))).map(sorted))
    stream = tokenizer.stream()
    edges = [0, *cuts, len(tokens)]
    pieces = [stream.push(tokens[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(tokens)


@settings(deadline=None)
@given(text=texts)
def test_a_byte_stream_never_shows_half_a_character(text: str) -> None:
    tokenizer = build(BYTES, "")
    stream = tokenizer.stream()
    shown = ""
    for token in tokenizer.encode(text):
        shown += stream.push([int(token)])
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def test_a_byte_stream_flushes_half_a_character_once() -> None:
    stream = build(BYTES, "").stream()
    assert stream.push([0xE3, 0x81]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push([0x41]) == "A"


@any_kind
@any_layout
@pytest.mark.parametrize("policy", list(UnknownPolicy))
def test_json_round_trip(kind: TokenizerKind, layout: CorpusLayout, policy: UnknownPolicy) -> None:
    tokenizer = build(kind, "".join(SAMPLES), policy, layout)
    stored = json.loads(json.dumps(tokenizer.to_json()))
    again = tokenizer_from_json(stored)
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert again.vocabulary_size == tokenizer.vocabulary_size
    assert (again.begin, again.end, again.unknown) == (
        tokenizer.begin,
        tokenizer.end,
        tokenizer.unknown,
    )
    text = "すべて don't"
    assert again.encode(text, SKIP).tolist() == tokenizer.encode(text, SKIP).tolist()


def test_special_tokens_come_last_and_only_where_needed() -> None:
    plain = build(CHARACTERS, "ba")
    assert (plain.begin, plain.end, plain.unknown, plain.vocabulary_size) == (None, None, None, 2)
    full = build(CHARACTERS, "ba\n", UNKNOWN, LINES)
    assert (full.begin, full.end, full.unknown, full.vocabulary_size) == (2, 3, 4, 5)
    words = build(WORDS, "ba")
    assert (words.begin, words.end, words.unknown, words.vocabulary_size) == (None, None, 1, 2)
    raw = build(BYTES, "", UNKNOWN, LINES)
    assert (raw.begin, raw.end, raw.unknown, raw.vocabulary_size) == (256, 257, None, 258)


def test_the_vocabulary_of_characters_is_in_code_point_order() -> None:
    tokenizer = build(CHARACTERS, "zé😀a世")
    assert isinstance(tokenizer, CharacterTokenizer)
    assert tokenizer.symbols == "azé世😀"
    assert tokenizer.encode("a世z").tolist() == [0, 3, 1]


def test_the_vocabulary_of_words_is_the_most_frequent() -> None:
    tokenizer = build(WORDS, "b a a c b\nd", max_vocabulary_size=3)
    assert isinstance(tokenizer, WordTokenizer)
    # " a" stands twice; of those that stand once, code point order takes "\n" and " b".
    assert tokenizer.words == (" a", "\n", " b")
    assert tokenizer.vocabulary_size == 4
    assert tokenizer.decode(tokenizer.encode("b a c b")) == "\ufffd a\ufffd b"


def test_pieces() -> None:
    pieces = tokenizer_words.pieces_pattern().findall
    assert pieces("Hi, you_2  x\n\n y") == [
        "Hi",
        ",",
        " you",
        "_",
        "2",
        " ",
        " x",
        "\n",
        "\n",
        " y",
    ]
    assert pieces("सभी मनुष्यों को") == ["सभी", " मनुष्यों", " को"]
    assert pieces("e\u0301a !!") == ["e\u0301a", " !!"]


@any_kind
def test_blocks_change_nothing(kind: TokenizerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(SAMPLES)
    whole = build(kind, text, ERROR)
    expected = whole.encode(text).tolist()
    monkeypatch.setattr(characters, "BLOCK", 3)
    monkeypatch.setattr(tokenizer_words, "_WINDOW", 30)
    blocked = build(kind, text, ERROR)
    assert blocked.to_json() == whole.to_json()
    assert blocked.encode(text).tolist() == expected
    if kind is not BYTES:
        with pytest.raises(UnknownSymbolError) as caught:
            blocked.encode(text + "\nπ")
        assert (caught.value.symbol, caught.value.position) == ("π", len(text) + 1)


def test_building_from_parts_is_building_from_the_whole() -> None:
    config = TokenizerConfig(WORDS, max_vocabulary_size=5)
    parts = ["a b", " a\n", " c d e f a"]
    assert (
        build_tokenizer(config, parts).to_json()
        == build(WORDS, "".join(parts), max_vocabulary_size=5).to_json()
    )


@pytest.mark.parametrize(
    ("kind", "text", "symbol", "position"),
    [(CHARACTERS, "世hé!", "é", 2), (WORDS, "世界 hello there", " there", 8)],
)
def test_policy_error_names_the_symbol(
    kind: TokenizerKind, text: str, symbol: str, position: int
) -> None:
    tokenizer = build(kind, "世界 h! hello", ERROR)
    with pytest.raises(UnknownSymbolError, match="skip") as caught:
        tokenizer.encode(text)
    assert (caught.value.symbol, caught.value.position) == (symbol, position)
    assert repr(symbol) in str(caught.value)
    assert f"position {position}" in str(caught.value)
    assert "'unknown'" not in str(caught.value)


def test_policies_of_a_request() -> None:
    plain = build(CHARACTERS, "abc")
    assert plain.encode("a!b", SKIP).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="no unknown token") as caught:
        plain.encode("abc", UNKNOWN)
    assert caught.value.field == "unknown_policy"
    lenient = build(CHARACTERS, "abc", UNKNOWN)
    assert lenient.encode("a!\ufffdb").tolist() == [0, 3, 3, 1]
    assert lenient.encode("a!b", SKIP).tolist() == [0, 1]
    with pytest.raises(UnknownSymbolError, match="'unknown'"):
        lenient.encode("a!b", ERROR)
    words = build(WORDS, "one two", SKIP)
    assert words.unknown is None
    assert words.decode(words.encode("one three two")) == "one two"


def test_bytes_know_everything() -> None:
    tokenizer = build(BYTES, "")
    for policy in UnknownPolicy:
        assert tokenizer.encode("é", policy).tolist() == [0xC3, 0xA9]


@pytest.mark.parametrize("text", ["a\ud800b"])
def test_lone_surrogates(text: str) -> None:
    raw = build(BYTES, "")
    with pytest.raises(UnknownSymbolError) as caught:
        raw.encode(text)
    assert caught.value.position == 1
    assert raw.decode(raw.encode(text, SKIP)) == "ab"
    assert raw.decode(raw.encode(text, UNKNOWN)) == "a\ufffdb"
    with pytest.raises(UnknownSymbolError, match=r"U\+D800"):
        build(CHARACTERS, "ab").encode(text)
    for kind in (CHARACTERS, WORDS):
        with pytest.raises(CorpusError, match="surrogate"):
            build(kind, text)


@any_kind
def test_items(kind: TokenizerKind) -> None:
    text = "emma ann\n\nアンナ\n"
    tokenizer = build(kind, text, ERROR, LINES)
    tokens, offsets = tokenizer.encode_items(text)
    assert tokens.dtype == np.int32
    assert offsets.dtype == np.int64
    edges = offsets.tolist()
    items = [tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(edges)]
    assert items == ["emma ann", "", "アンナ"]
    assert tokens.tolist() == [t for item in items for t in tokenizer.encode(item).tolist()]
    if kind is not BYTES:
        with pytest.raises(UnknownSymbolError):
            tokenizer.encode("\n")


@pytest.mark.parametrize(
    ("policy", "items"), [(SKIP, ["a", "", "a"]), (UNKNOWN, ["a\ufffd", "\ufffd", "a\ufffd"])]
)
def test_items_and_policies(policy: UnknownPolicy, items: list[str]) -> None:
    tokenizer = build(WORDS, "a\na\n", policy, LINES, max_vocabulary_size=1)
    tokens, offsets = tokenizer.encode_items("a b\nc\na d\n")
    pairs = itertools.pairwise(offsets.tolist())
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in pairs] == items


@any_kind
@any_layout
def test_the_text_of_a_token(kind: TokenizerKind, layout: CorpusLayout) -> None:
    tokenizer = build(kind, "aé b", UNKNOWN, layout)
    for token in range(tokenizer.ordinary):
        text = tokenizer.token_text(token)
        assert text == tokenizer.decode([token]) or (kind is BYTES and token > 127 and not text)
    for special in (tokenizer.begin, tokenizer.end, tokenizer.unknown):
        if special is not None:
            assert tokenizer.token_text(special) == ""
            visible = special == tokenizer.unknown
            assert tokenizer.decode([special]) == "\ufffd" * visible
            assert tokenizer.characters([special]) == int(visible)


@any_kind
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_ids_outside_the_vocabulary(kind: TokenizerKind, bad: int) -> None:
    tokenizer = build(kind, "abc")
    with pytest.raises(ValueError, match="not in 0 to"):
        tokenizer.decode([0, bad])


@settings(deadline=None)
@given(text=st.text(min_size=1), other=st.text())
@example(text="a", other="\U0010ffff")
def test_encoding_agrees_with_a_plain_loop(text: str, other: str) -> None:
    tokenizer = build(CHARACTERS, text, UNKNOWN)
    ids = {symbol: token for token, symbol in enumerate(sorted(set(text) - {"\ufffd"}))}
    assert tokenizer.encode(other).tolist() == [ids.get(c, len(ids)) for c in other]


@settings(deadline=None)
@given(text=texts, most=st.integers(1, 5))
def test_frequent_words_agree_with_a_plain_count(text: str, most: int) -> None:
    tokenizer = build(WORDS, text, ERROR, max_vocabulary_size=most)
    assert isinstance(tokenizer, WordTokenizer)
    counts = Counter(tokenizer_words.pieces_pattern().findall(text))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(tokenizer.words) == [word for word, _ in ranked[:most]]


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {"kind": "runes"}},
        {"layout": "verse"},
        {"symbols": None},
        {"symbols": 3},
        {"symbols": "aa"},
        {"symbols": "\ud800"},
        {"config": {"kind": "words"}},
        {"config": {"kind": "words"}, "words": [1]},
        {"config": {"kind": "words"}, "words": [""]},
        {"config": {"kind": "words"}, "words": "ab"},
    ],
)
def test_damaged_json(change: dict[str, Any]) -> None:
    good = build(CHARACTERS, "abc").to_json()
    with pytest.raises(LoadError, match="tokenizer cannot be read"):
        tokenizer_from_json(good | change)
    with pytest.raises(LoadError):
        tokenizer_from_json([good])


def test_a_vocabulary_of_ones_own_keeps_its_order() -> None:
    tokenizer = CharacterTokenizer(TokenizerConfig(), TEXT, "zyx")
    assert tokenizer.encode("xyz").tolist() == [2, 1, 0]
    assert tokenizer_from_json(tokenizer.to_json()).encode("xyz").tolist() == [2, 1, 0]


def test_bytes_need_no_text() -> None:
    assert isinstance(build_tokenizer(TokenizerConfig(BYTES)), ByteTokenizer)
    assert build(BYTES, "").characters([0xE3, 0x81, 0x82, 0x41]) == 2
