from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data.corpus import Corpus, TokenData, read_corpus
from treadle.model.data.files import CorpusFile
from treadle.model.data.shuffle import Purpose, permutation
from treadle.model.data.splits import MIN_HELD_OUT_TOKENS
from treadle.model.enums import CorpusLayout, CorpusRole, TokenizerKind, UnknownPolicy
from treadle.model.errors import CorpusError, EncodingError, UnknownSymbolError

CHARACTERS = TokenizerKind.CHARACTERS
BYTES = TokenizerKind.BYTES
WORDS = TokenizerKind.WORDS
KINDS = (CHARACTERS, BYTES, WORDS)
TEXT, LINES = CorpusLayout
JAPANESE = "すべての人間は、生れながらにして自由であり、\n" * 8
any_kind = pytest.mark.parametrize("kind", KINDS)


def read(
    data: bytes,
    kind: TokenizerKind = CHARACTERS,
    layout: CorpusLayout = TEXT,
    policy: UnknownPolicy | None = None,
    fraction: float = 0.0,
    seed: int = 0,
) -> Corpus:
    tokenizer = TokenizerConfig(kind, unknown_policy=policy)
    return read_corpus(data, tokenizer, DataConfig(layout, fraction), seed)


def items_of(corpus: Corpus, data: TokenData) -> list[str]:
    assert data.offsets is not None
    edges = data.offsets.tolist()
    decode = corpus.tokenizer.decode
    return [decode(data.tokens[a:b]) for a, b in itertools.pairwise(edges)]


def test_hello() -> None:
    corpus = read_corpus(b"hello")
    assert corpus.train.tokens.tolist() == [1, 0, 2, 2, 3]
    assert corpus.train.offsets is None
    assert corpus.valid is None
    assert "nothing kept for validation" in corpus.notices[0]


@any_kind
def test_a_path_is_read(kind: TokenizerKind, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(JAPANESE.encode())
    config = TokenizerConfig(kind)
    from_path = read_corpus(path, config)
    from_bytes = read_corpus(JAPANESE.encode(), config)
    assert from_path.train.tokens.tolist() == from_bytes.train.tokens.tolist()
    with pytest.raises(FileNotFoundError):
        read_corpus(tmp_path / "none", config)


@any_kind
def test_a_text_is_split_in_order(kind: TokenizerKind) -> None:
    corpus = read(JAPANESE.encode(), kind, fraction=0.5)
    assert corpus.valid is not None or kind is WORDS
    if corpus.valid is not None:
        decode = corpus.tokenizer.decode
        assert decode(corpus.train.tokens) + decode(corpus.valid.tokens) == JAPANESE
        assert corpus.notices == ()


def test_the_share_is_that_of_code_points() -> None:
    text = "ab" * 500
    corpus = read(text.encode(), fraction=0.1)
    assert corpus.valid is not None
    assert (corpus.train.tokens.size, corpus.valid.tokens.size) == (900, 100)


def test_no_word_is_cut_in_two() -> None:
    text = "an extraordinary sentence " * 40
    corpus = read(text.encode(), WORDS, policy=UnknownPolicy.ERROR, fraction=0.47)
    assert corpus.valid is not None
    decode = corpus.tokenizer.decode
    assert decode(corpus.train.tokens) + decode(corpus.valid.tokens) == text
    assert decode(corpus.valid.tokens).startswith(" ")


def test_the_vocabulary_is_that_of_the_whole() -> None:
    corpus = read(b"a" * 500 + b"z" * 500, fraction=0.1)
    assert corpus.tokenizer.vocabulary_size == 2


@pytest.mark.parametrize(("size", "kept"), [(10 * MIN_HELD_OUT_TOKENS, False), (1000, True)])
def test_a_small_validation_part_is_not_worth_it(size: int, kept: bool) -> None:
    corpus = read(b"ab" * (size // 2), fraction=0.1)
    assert (corpus.valid is not None) == kept
    assert bool(corpus.notices) != kept
    total = corpus.train.tokens.size + (corpus.valid.tokens.size if corpus.valid else 0)
    assert total == size


def test_validation_may_not_take_everything() -> None:
    corpus = read(b"ab" * 50, fraction=0.999)
    assert corpus.valid is None
    assert corpus.train.tokens.size == 100


@any_kind
def test_nothing_asked_nothing_kept(kind: TokenizerKind) -> None:
    corpus = read(JAPANESE.encode(), kind)
    assert corpus.valid is None
    assert corpus.notices == ()


@any_kind
@pytest.mark.parametrize(
    ("layout", "data"),
    [(TEXT, b""), (TEXT, b"a"), (LINES, b""), (LINES, b"\n"), (LINES, b"\r\n\r")],
)
def test_corpora_without_one_step(kind: TokenizerKind, layout: CorpusLayout, data: bytes) -> None:
    with pytest.raises(CorpusError, match="give it"):
        read(data, kind, layout)


@pytest.mark.parametrize("layout", list(CorpusLayout))
@pytest.mark.parametrize("kind", [CHARACTERS, WORDS])
def test_a_byte_order_mark_alone_is_nothing(kind: TokenizerKind, layout: CorpusLayout) -> None:
    with pytest.raises(CorpusError, match="give it"):
        read(b"\xef\xbb\xbf", kind, layout)


@any_kind
def test_the_smallest_corpora(kind: TokenizerKind) -> None:
    assert read(b"a", kind, LINES).train.predicted == 2
    assert read(b"\n\n", kind, TEXT).train.predicted == 1


def test_the_byte_order_mark_is_dropped() -> None:
    corpus = read(b"\xef\xbb\xbfab")
    assert corpus.tokenizer.decode(corpus.train.tokens) == "ab"
    raw = read(b"\xef\xbb\xbfab", BYTES)
    assert raw.train.tokens.size == 5


@pytest.mark.parametrize("kind", [CHARACTERS, WORDS])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8(kind: TokenizerKind, bom: bytes) -> None:
    data = bom + "é Gef".encode() + b"\xe4\xdf und" + "世".encode()[:2]
    with pytest.raises(EncodingError, match="0xE4") as caught:
        read(data, kind, policy=UnknownPolicy.ERROR)
    assert caught.value.offset == len(bom) + 6
    for remedy in ("'bytes'", "'skip'", str(caught.value.offset)):
        assert remedy in str(caught.value)
    skipped = read(data, kind, policy=UnknownPolicy.SKIP)
    assert skipped.tokenizer.decode(skipped.train.tokens) == "é Gef und"


def test_bad_bytes_as_unknown_tokens() -> None:
    corpus = read(b"Gef\xe4\xdf", policy=UnknownPolicy.UNKNOWN)
    unknown = corpus.tokenizer.unknown
    assert corpus.train.tokens.tolist()[3:] == [unknown, unknown]
    assert corpus.tokenizer.decode(corpus.train.tokens) == "Gef\ufffd\ufffd"
    assert corpus.tokenizer.vocabulary_size == 4


def test_utf16_is_guessed() -> None:
    with pytest.raises(EncodingError, match="UTF-16"):
        read("hello".encode("utf-16"))


def test_a_vocabulary_too_small_for_the_corpus() -> None:
    tokenizer = TokenizerConfig(WORDS, 2, UnknownPolicy.ERROR)
    with pytest.raises(UnknownSymbolError) as caught:
        read_corpus(b"one one one two two three", tokenizer)
    assert (caught.value.symbol, caught.value.position) == ("one", 0)


@any_kind
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n", "\r"])
def test_lines(kind: TokenizerKind, end: str, last: str) -> None:
    lines = ["emma", "", " олівія", "", "", "a\rb"]
    corpus = read((end.join(lines) + last).encode(), kind, LINES)
    assert items_of(corpus, corpus.train) == ["emma", " олівія", "a\rb"]
    assert corpus.notices == ("3 lines left out: empty",)
    assert corpus.layout is LINES
    assert corpus.tokenizer.begin is not None
    assert corpus.train.predicted == corpus.train.tokens.size + 3


@any_kind
def test_text_keeps_its_line_ends(kind: TokenizerKind) -> None:
    corpus = read(b"a\r\n\r\nb\r\n", kind)
    assert corpus.tokenizer.decode(corpus.train.tokens) == "a\r\n\r\nb\r\n"


@any_kind
def test_validation_items_are_drawn_by_the_seed(kind: TokenizerKind) -> None:
    lines = [f"item {n}" for n in range(200)]
    data = "\n".join(lines).encode()
    draws = []
    for seed in (1, 1, 2):
        corpus = read(data, kind, LINES, UnknownPolicy.ERROR, 0.25, seed)
        assert corpus.valid is not None
        train = items_of(corpus, corpus.train)
        valid = items_of(corpus, corpus.valid)
        assert (len(train), len(valid)) == (150, 50)
        assert sorted(train + valid) == sorted(lines)
        assert [line for line in lines if line in set(valid)] == valid
        draws.append(valid)
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != lines[150:]


def test_unknown_tokens_are_counted_and_said() -> None:
    """Without them no figure in bits per character: they stand for any number of characters."""
    text = b"the cat sat " * 50 + b"".join(b"w%d " % n for n in range(50))
    policy = UnknownPolicy.UNKNOWN
    rare = TokenizerConfig(WORDS, unknown_policy=policy, min_frequency=3)
    files = [CorpusFile(text), CorpusFile(b"the dog sat on the cat " * 20, role=CorpusRole.VALID)]
    corpus = read_corpus(files, rare)
    assert corpus.valid is not None
    said = [notice for notice in corpus.notices if "unknown" in notice]
    for notice, part in zip(said, (corpus.train, corpus.valid), strict=True):
        size = part.tokens.size
        count = int((part.tokens == corpus.tokenizer.unknown).sum())
        assert 0.1 * size < count < 0.5 * size
        assert notice.startswith(f"{100 * count / size:.3g} % of the tokens to ")
        assert f"{count:,} of {size:,}" in notice
    assert corpus.valid_characters == 0
    known = read_corpus([files[0], CorpusFile(text[:239], role=CorpusRole.VALID)], rare)
    assert known.valid_characters > 0


def test_lines_of_skipped_words_only_are_left_out() -> None:
    tokenizer = TokenizerConfig(WORDS, 1, UnknownPolicy.SKIP)
    corpus = read_corpus(b"a\nb\na b\n", tokenizer, DataConfig(LINES, 0.0))
    assert items_of(corpus, corpus.train) == ["a", "a"]
    assert corpus.notices == ("1 line left out: empty or of unknown symbols only",)


@any_kind
@settings(deadline=None)
@given(text=st.text(alphabet="ab é\n\r世"))
def test_items_agree_with_a_plain_split(kind: TokenizerKind, text: str) -> None:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        with pytest.raises(CorpusError):
            read(text.encode(), kind, LINES)
        return
    corpus = read(text.encode(), kind, LINES)
    assert items_of(corpus, corpus.train) == lines


def test_orders_do_not_change_between_versions() -> None:
    # Written down once: an order that changes breaks every resumed run.
    assert permutation(6, 7, Purpose.TRAINING_ITEMS, 3).tolist() == [2, 3, 1, 0, 4, 5]
    other = [
        permutation(50, 7, Purpose.TRAINING_ITEMS, 4),
        permutation(50, 8, Purpose.TRAINING_ITEMS, 3),
        permutation(50, 7, Purpose.TRAINING_GROUPS, 3),
        permutation(50, 2**64 - 1, Purpose.TRAINING_GROUPS, 2**32),
    ]
    first = permutation(50, 7, Purpose.TRAINING_ITEMS, 3)
    assert np.array_equal(np.sort(first), np.arange(50))
    assert not any(np.array_equal(first, order) for order in other)
