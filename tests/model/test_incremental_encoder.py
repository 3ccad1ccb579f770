from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, UnknownSymbolError
from treadle.model.tokenizers import incremental_encoder, subwords, words
from treadle.model.tokenizers.base import MAX_PIECE, Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.tokenizers.incremental_encoder import (
    MAX_HELD,
    IncrementalEncoder,
    encode_in_steps,
)
from treadle.model.tokenizers.subwords import SubwordTokenizer
from treadle.model.tokenizers.token_ids import TokenIds

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

CORPUS = (
    "the cat's hat_box isn't new: it's 12 years old!! \tand\n\nOΣΑΣ ΣΑΣ. İstanbul é €\n"
    "naïve  two   blanks हिन्दी में 'Σ' e5 e22 e5\r\n\u2028x\u00a0y \x1c z"
)
LETTERS = "abe'. _\n\t!ΣΑσİ\u0307\u0301é€हि\u00ad:12\ud800\u2028\x1cǅʰ\U0001f600"
TEXTS = st.one_of(
    st.text(st.sampled_from(LETTERS), max_size=40),
    st.text(max_size=20),
    st.lists(st.sampled_from(["the", " cat's", " ", "  ", "_", "Σ", "!!", "\n", " e5"])).map(
        "".join
    ),
)


def build(kind: TokenizerKind, lower_case: bool) -> Tokenizer:
    size = 300 if kind is TokenizerKind.SUBWORDS else 10_000
    known = kind not in (TokenizerKind.BYTES, TokenizerKind.SUBWORDS)
    policy = UnknownPolicy.UNKNOWN if known else None
    config = TokenizerConfig(
        kind, lower_case=lower_case, max_vocabulary_size=size, unknown_policy=policy
    )
    return build_tokenizer(config, [CORPUS], CorpusLayout.TEXT)


TOKENIZERS = {
    (kind, lower): build(kind, lower) for kind in TokenizerKind for lower in (False, True)
}


def read(reader: IncrementalEncoder, pieces: list[str]) -> list[int]:
    found = [*map(reader.push, pieces), reader.end()]
    assert all(tokens.dtype == np.int32 for tokens in found)
    return [int(token) for tokens in found for token in tokens]


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("case", TOKENIZERS, ids=str)
@settings(max_examples=120, deadline=None)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 60), max_size=8),
    policy=st.sampled_from([UnknownPolicy.SKIP, UnknownPolicy.UNKNOWN]),
)
@example("aΣ''b", [2, 3, 4], UnknownPolicy.SKIP)
@example("aΣ''", [2, 3, 4], UnknownPolicy.SKIP)
@example("ΑΣΣ Σ.Σ", [1, 2, 3, 4, 5, 6], UnknownPolicy.SKIP)
@example("x\ud800 y", [1, 2, 3], UnknownPolicy.SKIP)
@example("isn't  it 's", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], UnknownPolicy.SKIP)
def test_however_a_text_is_cut_its_tokens_are_those_of_the_whole(
    case: tuple[TokenizerKind, bool], text: str, cuts: list[int], policy: UnknownPolicy
) -> None:
    tokenizer = TOKENIZERS[case]
    reader = IncrementalEncoder(tokenizer, policy)
    expected = tokenizer.encode(text, policy).tolist()
    assert read(reader, list(text)) == expected
    assert read(reader, cut(text, cuts)) == expected  # the same reader takes another text


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Words and subwords longer than this are cut."""
    most = 4
    for module in (incremental_encoder, subwords, words):
        monkeypatch.setattr(module, "MAX_PIECE", most)
    monkeypatch.setattr(words, "_WINDOW", 2 * most)
    monkeypatch.setattr(subwords, "_PART", 2)
    return most


CUT_KINDS = [
    case for case in TOKENIZERS if case[0] in (TokenizerKind.WORDS, TokenizerKind.SUBWORDS)
]


@pytest.mark.parametrize("case", CUT_KINDS, ids=str)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=8))
@example("aaaaaaaa    a", [5])
@example("aa\u0301\u0301\u0301\u0301a", [5])
@example("     a     \n", [5])
def test_pieces_that_are_too_long_are_cut_alike_however_a_text_comes(
    short_pieces: int, case: tuple[TokenizerKind, bool], text: str, cuts: list[int]
) -> None:
    tokenizer = TOKENIZERS[case]
    policy = UnknownPolicy.SKIP
    reader = IncrementalEncoder(tokenizer, policy, max_held=5 * short_pieces)
    expected = tokenizer.encode(text, policy).tolist()
    assert read(reader, list(text)) == expected  # no more than a few pieces are held back
    assert read(IncrementalEncoder(tokenizer, policy, None), cut(text, cuts)) == expected
    if case == (TokenizerKind.SUBWORDS, False) and not re.search("[\ud800-\udfff]", text):
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize("kind", [TokenizerKind.WORDS, TokenizerKind.SUBWORDS])
@pytest.mark.parametrize(
    "text",
    [
        "x" * 9000,
        "x! " * 3000,
        "!" * 9000,
        "a\u0301" * 4500,
        " " * 9000,
        "a\tb\u00a0" * 3000,
        "a\x1cb " * 3000,
        "a\x1c" * 4500,
    ],
)
def test_no_text_is_looked_up_in_long_pieces(
    kind: TokenizerKind, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A look-up lets no other thread run: its time must not rise with what somebody sends.
    tokenizer = TOKENIZERS[kind, False]
    seen = []
    library: Any = tokenizer._learned if isinstance(tokenizer, SubwordTokenizer) else None

    class Watched:
        def encode(self, part: str, **options: bool) -> object:
            seen.append(len(part))
            return library.encode(part, **options)

        def findall(self, text: str, start: int, stop: int) -> list[str]:
            seen.append(stop - start)
            return PIECES.findall(text, start, stop)

    if library is not None:
        monkeypatch.setattr(tokenizer, "_learned", Watched())
    else:
        monkeypatch.setattr(words, "pieces_pattern", Watched)
    in_steps(tokenizer, text, UnknownPolicy.SKIP)
    assert 0 < max(seen) <= 4 * MAX_PIECE
    seen.clear()
    tokenizer.encode(text, UnknownPolicy.SKIP)  # what looks for novelty does so
    assert 0 < max(seen) <= 8 * MAX_PIECE


PIECES = words.pieces_pattern()


@pytest.mark.parametrize("case", TOKENIZERS, ids=str)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_what_is_unknown_is_named_as_in_the_whole_text(
    case: tuple[TokenizerKind, bool], text: str, cuts: list[int]
) -> None:
    tokenizer = TOKENIZERS[case]
    reader = IncrementalEncoder(tokenizer, UnknownPolicy.ERROR)
    expected = outcome(lambda: tokenizer.encode(text, UnknownPolicy.ERROR).tolist())
    assert outcome(lambda: read(reader, cut(text, cuts))) == expected


def outcome(encode: Callable[[], list[int]]) -> object:
    """What encoding gives, or everything that its error says."""
    try:
        return encode()
    except UnknownSymbolError as error:
        return str(error), error.symbol, error.position


def in_steps(tokenizer: Tokenizer, text: str, policy: UnknownPolicy) -> tuple[int, TokenIds]:
    """How many steps a text took, and its tokens."""
    encoding = encode_in_steps(tokenizer, text, policy)
    steps = 0
    while True:
        try:
            next(encoding)
        except StopIteration as stop:
            return steps, stop.value
        steps += 1


@pytest.mark.parametrize("case", TOKENIZERS, ids=str)
def test_a_long_text_is_encoded_in_short_steps(case: tuple[TokenizerKind, bool]) -> None:
    tokenizer = TOKENIZERS[case]
    policy = UnknownPolicy.SKIP
    for text in ("", CORPUS, CORPUS * 100, "x" * (MAX_HELD + 9), "Σ" + "'" * MAX_HELD):
        steps, tokens = in_steps(tokenizer, text, policy)
        lowered = tokenizer.config.lowers and "Σ" in text
        assert steps == (-(-len(text) // 2048) + lowered if len(text) > 2048 else 0)
        assert np.asarray(tokens).tobytes() == tokenizer.encode(text, policy).tobytes()


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.SUBWORDS])
def test_a_sigma_makes_no_step_long(kind: TokenizerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is a final one may stand at the far end of the text."""
    tokenizer = TOKENIZERS[kind, True]
    sizes: list[int] = []
    encode = tokenizer.encode

    def counted(text: str, policy: UnknownPolicy | None = None) -> TokenIds:
        sizes.append(len(text))
        return encode(text, policy)

    text = "aΣ" + "\u0301" * 50_000 + "a"
    expected = tokenizer.encode(text, UnknownPolicy.SKIP)
    monkeypatch.setattr(tokenizer, "encode", counted)
    _, tokens = in_steps(tokenizer, text, UnknownPolicy.SKIP)
    assert np.asarray(tokens).tobytes() == np.asarray(expected).tobytes()
    assert max(sizes) <= 3 * MAX_PIECE


@pytest.mark.parametrize("before", [0, 5000])
def test_what_is_unknown_to_a_long_text_is_named_by_its_place(before: int) -> None:
    tokenizer = TOKENIZERS[TokenizerKind.WORDS, False]
    with pytest.raises(UnknownSymbolError) as caught:
        in_steps(tokenizer, "\t" * before + "strange", UnknownPolicy.ERROR)
    assert (caught.value.symbol, caught.value.position) == ("strange", before)
    assert f"at position {before} " in str(caught.value)


def test_tokens_come_as_soon_as_they_are_certain() -> None:
    def given_at_once(kind: TokenizerKind, text: str) -> list[str]:
        tokenizer = TOKENIZERS[kind, False]
        tokens = IncrementalEncoder(tokenizer).push(text)
        return [tokenizer.token_text(token) for token in tokens.tolist()]

    assert given_at_once(TokenizerKind.CHARACTERS, "ca") == ["c", "a"]
    assert given_at_once(TokenizerKind.WORDS, "the cat") == ["the"]
    assert given_at_once(TokenizerKind.WORDS, "the cat\n") == ["the", " cat", "\n"]
    assert given_at_once(TokenizerKind.EVENTS, "e5 e22") == ["e5"]
    assert given_at_once(TokenizerKind.EVENTS, "e5 e22 ") == ["e5", "e22"]
    assert "".join(given_at_once(TokenizerKind.SUBWORDS, "the cat is new")) == "the cat is"


def test_a_reader_holds_so_much_and_no_more() -> None:
    reader = IncrementalEncoder(TOKENIZERS[TokenizerKind.EVENTS, False], UnknownPolicy.SKIP)
    assert reader.push("x" * MAX_HELD).size == 0
    with pytest.raises(ConfigError, match=r"65,536 characters .* events"):
        reader.push("x")


def test_a_sigma_waits_so_long_and_no_longer() -> None:
    reader = IncrementalEncoder(TOKENIZERS[TokenizerKind.CHARACTERS, True], UnknownPolicy.SKIP)
    reader.push("Σ" + "'" * (MAX_HELD - 1))
    assert reader.push("a").size == MAX_HELD + 1
    reader.push("Σ" + "'" * (MAX_HELD - 1))
    with pytest.raises(ConfigError, match="65,536 characters"):
        reader.push("'")


def test_a_policy_that_the_tokenizer_lacks_is_refused_at_once() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"])
    with pytest.raises(ConfigError, match="no unknown token"):
        IncrementalEncoder(tokenizer, UnknownPolicy.UNKNOWN)


def test_lower_case_is_final() -> None:
    """The reader lowers a text, and the tokenizer lowers it once more."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert every.lower().lower() == every.lower()
    assert re.sub("\u03a3", "", every).lower() == "".join(
        character.lower() for character in every if character != "\u03a3"
    )


def test_bytes_are_never_in_lower_case() -> None:
    tokenizer = TOKENIZERS[TokenizerKind.BYTES, True]
    assert tokenizer.encode("AΣ").tolist() == list("AΣ".encode())
    assert read(IncrementalEncoder(tokenizer), ["A", "Σ"]) == list("AΣ".encode())
    assert tokenizer.encode_items("AB\n")[0].tolist() == list(b"AB")
