"""Corpora of several files, formats and encodings, and odd ones; blocks that change nothing."""

from __future__ import annotations

import bz2
import encodings
import gzip
import itertools
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vectors import name_of, text_inputs

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data import corpus_reader, token_array
from treadle.model.data import files as corpus_files
from treadle.model.data.corpus import Corpus, CorpusFile, TokenData, read_corpus
from treadle.model.data.files import check_encoding
from treadle.model.enums import (
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    MissingPolicy,
    Split,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import ConfigError, CorpusError, EncodingError, UnknownSymbolError
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training.trainer import Trainer

TEXT, LINES = CorpusLayout
KINDS = list(TokenizerKind)
WORDS = TokenizerKind.WORDS
EVENTS = TokenizerKind.EVENTS
WHITESPACE = TokenizerKind.WHITESPACE
ODD = {
    "five characters": "hello",
    "one repeated character": "a" * 1000,
    "japanese": "すべての人間は、生れながらにして自由であり、平等である。\n" * 9,
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.\n" * 9,
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ\n" * 9,
    "emoji and controls": "👩‍👩‍👧 \x00\x01 a\u0301\r\n" * 40,
    "no line end": "x" * 500 + "y" * 500,
}


def texts_of(corpus: Corpus, data: TokenData) -> list[str]:
    """Returns the items of a part."""
    assert data.offsets is not None
    decode = corpus.tokenizer.decode
    return [decode(data.tokens[a:b]) for a, b in itertools.pairwise(data.offsets.tolist())]


def same(one: TokenData | None, other: TokenData | None) -> bool:
    if one is None or other is None:
        return one is other
    equal = one.tokens.dtype == other.tokens.dtype and np.array_equal(one.tokens, other.tokens)
    if one.offsets is None or other.offsets is None:
        return equal and one.offsets is other.offsets
    return equal and np.array_equal(one.offsets, other.offsets)


@pytest.mark.parametrize("layout", list(CorpusLayout))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(ODD))
def test_blocks_and_folders_change_nothing(
    name: str,
    kind: TokenizerKind,
    layout: CorpusLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = TokenizerConfig(kind, max_vocabulary_size=300)
    data = DataConfig(layout, 0.2, test_fraction=0.2)
    raw = ODD[name].encode()
    if layout is TEXT and len(raw.split()) == 1 and kind in (WORDS, EVENTS, WHITESPACE):
        with pytest.raises(CorpusError, match="1 token, and"):
            read_corpus(raw, tokenizer, data)
        return
    whole = read_corpus(raw, tokenizer, data, 3)
    monkeypatch.setattr(corpus_files, "BLOCK", 7)
    monkeypatch.setattr(token_array, "BLOCK", 5)
    monkeypatch.setattr(corpus_reader, "_RECORDS", 2)
    pieces = read_corpus(raw, tokenizer, data, 3, folder=tmp_path)
    assert whole.tokenizer.to_json() == pieces.tokenizer.to_json()
    for part in ("train", "valid", "test"):
        assert same(getattr(whole, part), getattr(pieces, part)), part
    assert whole.notices == pieces.notices
    assert whole.valid_characters == pieces.valid_characters
    assert not list(tmp_path.iterdir())  # the files have no names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(ODD))
def test_odd_corpora_train(name: str, kind: TokenizerKind) -> None:
    from treadle.model.config import LimitsConfig, NetworkConfig, TrainConfig

    config = TrainConfig(
        tokenizer=TokenizerConfig(kind, max_vocabulary_size=300),
        network=NetworkConfig(hidden_size=4, embedding_size=3),
        data=DataConfig(TEXT if len(ODD[name].split()) > 1 else LINES, batch_size=2, window=8),
        limits=LimitsConfig(max_steps=2),
    )
    trainer = Trainer(ODD[name].encode(), config)
    losses = [progress.train_loss for progress in trainer.run()]
    assert all(map(np.isfinite, losses))
    assert isinstance(trainer.finish().generate(seed=1, max_new_tokens=5), str)


FRAGMENTS = [
    *b'"|,|;|\t|\n|\r|\r\n|text|id|sep=;\n|{"text": "|"}|{"text": |null|[1,2]|NaN'.split(b"|"),
    *b"\xff|\xc3\xbc|\xed\xa0\x80|\xef\xbb\xbf|\xff\xfe|\0|b\xcc\x81|\xe2\x80\xa8".split(b"|"),
    *b'text,id\n|id;text\r|{"text": "a b"}\n| |+2AA-|\x1b$B|~{|\xce\xa3|\xc4\xb0'.split(b"|"),
    *b"\x1c|\xf0\x9f|\\ud800|<unk>|\x1f\x8b".split(b"|"),
]
ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "latin-1",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "utf-7",
    "shift_jis",
    "iso2022_jp",
    "hz",
    "gb18030",
    "cp1252",
    "cp037",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.lists(st.sampled_from(FRAGMENTS), max_size=24).map(b"".join) | st.binary(max_size=40),
    kind=st.sampled_from([kind for kind in TokenizerKind if kind is not TokenizerKind.SUBWORDS]),
    policy=st.sampled_from([None, *UnknownPolicy]),
    form=st.sampled_from(CorpusFormat),
    layout=st.sampled_from(CorpusLayout),
    missing=st.sampled_from(MissingPolicy),
    encoding=st.sampled_from(ENCODINGS),
    lower=st.booleans(),
    block=st.integers(1, 6),
)
def test_random_files_are_read_alike_in_blocks_or_refused_by_name(
    data: bytes,
    kind: TokenizerKind,
    policy: UnknownPolicy | None,
    form: CorpusFormat,
    layout: CorpusLayout,
    missing: MissingPolicy,
    encoding: str,
    lower: bool,
    block: int,
) -> None:
    tokenizer = TokenizerConfig(kind, 300, policy, lower_case=lower)
    config = DataConfig(layout, 0.3, format=form, missing=missing, encoding=encoding)

    def read() -> Corpus | None:
        try:
            return read_corpus([CorpusFile(data, "f")], tokenizer, config, 3)
        except (CorpusError, UnknownSymbolError):
            return None  # which of several faults comes first may depend on the blocks

    whole = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_files, "BLOCK", block)
        patch.setattr(token_array, "BLOCK", block)
        patch.setattr(corpus_reader, "_RECORDS", block)
        pieces = read()
    assert (whole is None) == (pieces is None)
    if whole is not None and pieces is not None:
        assert whole.tokenizer.to_json() == pieces.tokenizer.to_json()
        assert whole.notices == pieces.notices
        assert same(whole.train, pieces.train)
        assert same(whole.valid, pieces.valid)


def test_the_split_of_one_text_is_that_of_others() -> None:
    corpus = read_corpus(b"ab" * 557_697, data_config=DataConfig(TEXT, 0.1))
    assert corpus.train.tokens.size == 1_003_854
    assert corpus.train.tokens.dtype == np.uint8
    assert corpus.valid_split is Split.TAIL
    assert corpus.test_split is None


def test_the_test_comes_last() -> None:
    text = "".join(chr(97 + n // 40) for n in range(1000))
    corpus = read_corpus(text.encode(), data_config=DataConfig(TEXT, 0.2, test_fraction=0.1))
    decode = corpus.tokenizer.decode
    assert corpus.valid is not None
    assert corpus.test is not None
    parts = [decode(part.tokens) for part in (corpus.train, corpus.valid, corpus.test)]
    assert "".join(parts) == text
    assert [len(part) for part in parts] == [700, 200, 100]
    assert (corpus.valid_split, corpus.test_split) == (Split.TAIL, Split.TAIL)
    assert (corpus.valid_characters, corpus.test_characters) == (199, 99)


def test_items_are_in_one_part_each() -> None:
    names = [f"name{n}" for n in range(500)]
    data = DataConfig(LINES, 0.2, test_fraction=0.1)
    corpus = read_corpus("\n".join(names).encode(), data_config=data, seed=4)
    assert corpus.valid is not None
    assert corpus.test is not None
    parts = [texts_of(corpus, part) for part in (corpus.train, corpus.valid, corpus.test)]
    assert [len(part) for part in parts] == [350, 100, 50]
    assert sorted(itertools.chain(*parts)) == sorted(names)
    assert corpus.test_split is Split.ITEMS


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave nothing") as caught:
        read_corpus(b"abc" * 99, data_config=DataConfig(TEXT, 0.5, test_fraction=0.5))
    assert caught.value.field == "data.test_fraction"


def test_a_test_that_is_too_small_is_given_back() -> None:
    corpus = read_corpus(b"ab" * 300, data_config=DataConfig(TEXT, 0.2, test_fraction=0.01))
    assert corpus.test is None
    assert corpus.valid is not None
    assert corpus.train.tokens.size + corpus.valid.tokens.size == 600
    assert "nothing kept for the test" in corpus.notices[0]


def test_files_with_weights_follow_one_another() -> None:
    files = [
        CorpusFile(b"abcdefghij" * 10, "a", weight=2.5),
        CorpusFile(b"klmnopqrst" * 10, "b"),
        CorpusFile(b"0123456789" * 10, "c", weight=0.2),
    ]
    corpus = read_corpus(files, data_config=DataConfig(TEXT, 0.0))
    expected = "abcdefghij" * 25 + "klmnopqrst" * 10 + "0123456789" * 2
    assert corpus.tokenizer.decode(corpus.train.tokens) == expected


def test_a_file_is_split_before_it_is_repeated() -> None:
    file = CorpusFile(b"a" * 900 + b"b" * 100, weight=3)
    corpus = read_corpus([file], data_config=DataConfig(TEXT, 0.1))
    assert corpus.tokenizer.decode(corpus.train.tokens) == "a" * 2700
    assert corpus.valid is not None
    assert corpus.tokenizer.decode(corpus.valid.tokens) == "b" * 100


def test_lines_with_weights() -> None:
    first = [f"a{n}" for n in range(100)]
    second = [f"b{n}" for n in range(10)]
    files = [
        CorpusFile("\n".join(first).encode(), "a", weight=1.5),
        CorpusFile("\n".join(second).encode(), "b", weight=3),
    ]
    corpus = read_corpus(files, data_config=DataConfig(LINES, 0.0), seed=1)
    items = texts_of(corpus, corpus.train)
    assert items[:100] == first
    half = items[100:150]
    assert half == [name for name in first if name in set(half)]
    assert half != first[:50]
    assert items[150:] == second * 3


def test_files_of_their_own_roles() -> None:
    files = [
        CorpusFile(b"training text " * 50),
        CorpusFile(b"a text " * 5, "v", CorpusRole.VALID),
        CorpusFile(b"rain " * 5, "t", CorpusRole.TEST),
    ]
    corpus = read_corpus(files)
    assert corpus.valid is not None
    assert corpus.test is not None
    decode = corpus.tokenizer.decode
    assert decode(corpus.train.tokens) == "training text " * 50
    assert decode(corpus.valid.tokens) == "a text " * 5
    assert decode(corpus.test.tokens) == "rain " * 5
    assert (corpus.valid_split, corpus.test_split) == (Split.FILES, Split.FILES)


def test_what_validates_may_hold_what_training_has_not_seen() -> None:
    files = [CorpusFile(b"aaab" * 99), CorpusFile("b\u00e9b".encode(), "odd.txt", CorpusRole.VALID)]
    with pytest.raises(
        UnknownSymbolError, match=r"the file 'odd.txt': 'é' .*position 1 "
    ) as caught:
        read_corpus(files)
    assert caught.value.position == 1
    skipping = TokenizerConfig(unknown_policy=UnknownPolicy.SKIP)
    corpus = read_corpus(files, skipping)
    assert corpus.valid is not None
    assert corpus.tokenizer.decode(corpus.valid.tokens) == "bb"


def test_a_role_may_be_a_word() -> None:
    files = [
        CorpusFile(b"training text " * 50, role="train"),  # type: ignore[arg-type]
        CorpusFile(b"a text " * 5, "v", "valid"),  # type: ignore[arg-type]
        CorpusFile(b"rain " * 5, "t", "test"),  # type: ignore[arg-type]
    ]
    corpus = read_corpus(files)
    assert (corpus.valid_split, corpus.test_split) == (Split.FILES, Split.FILES)
    assert [file.role for file in files] == list(CorpusRole)


@pytest.mark.parametrize("role", ["validation", "", None, 1, True, b"valid", UnknownPolicy.SKIP])
def test_what_is_no_role_is_refused(role: Any) -> None:
    with pytest.raises(ConfigError, match="role must be one of 'train', 'valid', 'test'"):
        CorpusFile(b"abc", role=role)


def test_words_do_for_every_setting_that_is_one_of_several() -> None:
    words = TokenizerConfig("words", unknown_policy="skip")  # type: ignore[arg-type]
    data = DataConfig("lines", 0.0, format="jsonl", missing="skip")  # type: ignore[arg-type]
    first = read_corpus(b'{"text": " b \\ud800a"}\n{}\n', words, data)
    assert texts_of(first, first.train) == [" b a"]
    again = read_corpus(
        b'{"text": " b \\ud800a c"}\n',
        data_config=data,
        fixed=first.tokenizer,
        unknown_policy="skip",  # type: ignore[arg-type]
    )
    assert texts_of(again, again.train) == [" b a"]
    for wrong in ("skipp", None, 2):
        with pytest.raises(ConfigError, match=r"data.missing must be one of"):
            DataConfig(missing=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown_policy must be one of"):
        read_corpus(b"abc", fixed=first.tokenizer, unknown_policy="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown_policy must be one of"):
        first.tokenizer.encode("a", "none")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_a_layout_may_be_a_word(kind: TokenizerKind) -> None:
    config = TokenizerConfig(kind)
    assert build_tokenizer(config, ["a\nb"], "lines").begin is not None  # type: ignore[arg-type]
    assert build_tokenizer(config, ["a\nb"], "text").begin is None  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layout must be one of 'text', 'lines'"):
        build_tokenizer(config, ["a\nb"], "line")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", ["text", ["text"], [b"text"], [CorpusFile(b"text"), Path("text")], [None]]
)
def test_what_is_no_corpus_is_refused(data: Any) -> None:
    with pytest.raises(CorpusError, match="a list of CorpusFile"):
        read_corpus(data)


@pytest.mark.parametrize("data", ["text", None, 7, bytearray(b"text")])
def test_what_is_no_file_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="bytes or a path"):
        CorpusFile(data)


@pytest.mark.parametrize("weight", [0, "1", None, True, -1.0, 101, float("nan"), float("inf")])
def test_weights_that_cannot_be(weight: Any) -> None:
    with pytest.raises(ConfigError, match="weight"):
        CorpusFile(b"x", weight=weight)


def test_nothing_to_train_on() -> None:
    with pytest.raises(CorpusError, match="role train"):
        read_corpus([CorpusFile(b"abc", role=CorpusRole.TEST)])
    with pytest.raises(CorpusError, match="empty"):
        read_corpus([CorpusFile(b""), CorpusFile(b"", "b")])


def jsonl(*values: object) -> bytes:
    return "\n".join(json.dumps(value) for value in values).encode()


def test_json_lines() -> None:
    data = jsonl(
        {"text": "first", "n": 1}, {"text": "two\nlines"}, {"text": ""}, {"text": "ünïcode\u2028x"}
    )
    config = DataConfig(TEXT, 0.0, format=CorpusFormat.JSONL)
    for kind in KINDS:
        tokenizer = TokenizerConfig(kind, max_vocabulary_size=300)
        corpus = read_corpus(data + b"\n\n", tokenizer, config)
        assert corpus.layout is LINES
        expected = ["first", "two\nlines", "ünïcode\u2028x"]
        if kind is EVENTS:
            expected = [" ".join(text.split()) for text in expected]
        if kind is WHITESPACE:
            expected[2] = " ".join(expected[2].split())  # U+2028 is white space, and ends no line
        assert texts_of(corpus, corpus.train) == expected
        assert corpus.notices == ("1 line left out: empty",)


def test_fields_of_objects_and_lists() -> None:
    data = jsonl(
        {"a": {"b": [1, 2, "x y"]}}, {"a": {"b": 7.5}}, {"a.b": "literal"}, {"a": {"b": [22, 5]}}
    )
    tokenizer = TokenizerConfig(TokenizerKind.EVENTS)
    config = DataConfig(LINES, 0.0, format=CorpusFormat.JSONL, column="a.b")
    corpus = read_corpus(data, tokenizer, config)
    assert texts_of(corpus, corpus.train) == ["1 2 x y", "7.5", "literal", "22 5"]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_comma_separated_values(separator: str) -> None:
    rows = ["id,text", '1,"a, ""quoted"" one\nover lines"', "2,plain", "3,", "", "4,ünï"]
    data = "\r\n".join(rows).replace(",", separator).encode()
    config = DataConfig(LINES, 0.0, format=CorpusFormat.CSV)
    corpus = read_corpus(data, data_config=config)
    first = 'a, "quoted" one\nover lines'.replace(",", separator)
    assert texts_of(corpus, corpus.train) == [first, "plain", "ünï"]


def test_encodings() -> None:
    text = "Im Anfang schuf Gott Himmel und Erde. Und die Erde war wüst und öde. " * 9
    with pytest.raises(EncodingError, match=r"looks like Latin-1.*set data.encoding to 'latin-1'"):
        read_corpus(text.encode("latin-1"))
    for encoding in ("latin-1", "utf-16", "cp1252", "UTF-8"):
        data = DataConfig(TEXT, 0.0, encoding=encoding)
        corpus = read_corpus(text.encode(encoding), data_config=data)
        assert corpus.tokenizer.decode(corpus.train.tokens) == text
    as_bytes = read_corpus(text.encode("latin-1"), TokenizerConfig(TokenizerKind.BYTES))
    assert as_bytes.train.tokens.dtype == np.uint8


@pytest.mark.parametrize(
    "encoding",
    [
        "nothing",
        "base64",
        "hex",
        "zlib",
        "rot13",
        "\0",
        "idna",
        "punycode",
        "undefined",
        "unicode_escape",
        "raw-unicode-escape",
        "mbcs",
        "..",
        "aliases",
    ],
)
def test_what_is_no_encoding(encoding: str) -> None:
    with pytest.raises(ConfigError, match="text encoding") as caught:
        read_corpus(b"abc", data_config=DataConfig(TEXT, encoding=encoding))
    assert caught.value.field == "data.encoding"


def test_names_of_encodings_are_not_remembered() -> None:
    """Python keeps every name that was looked up: a caller could fill the memory with them."""
    check_encoding("latin-1")
    before = len(encodings._cache)
    for number in range(50):
        for name in (f"x{number}", "y" * 10_000 + str(number)):
            with pytest.raises(ConfigError):
                check_encoding(name)
        check_encoding("latin" + "-" * (number + 1) + "1")
    assert len(encodings._cache) == before


def test_bad_bytes_far_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_files, "BLOCK", 10)
    data = "é".encode() * 37 + b"\xff" + b"abc" * 10
    with pytest.raises(EncodingError) as caught:
        read_corpus(data)
    assert caught.value.offset == 74
    data = "é".encode() * 37 + b"\xc3"
    with pytest.raises(EncodingError) as caught:
        read_corpus(data)
    assert caught.value.offset == 74


def test_the_tokenizer_of_a_model_reads_another_corpus() -> None:
    first = read_corpus(b"abc" * 50)
    corpus = read_corpus(b"cab" * 50, fixed=first.tokenizer)
    assert corpus.tokenizer is first.tokenizer
    assert corpus.train.tokens[:3].tolist() == [2, 0, 1]
    with pytest.raises(UnknownSymbolError, match="'d'"):
        read_corpus(b"abcd" * 50, fixed=first.tokenizer)
    policy = UnknownPolicy.SKIP
    skipped = read_corpus(b"abcd" * 50, fixed=first.tokenizer, unknown_policy=policy)
    assert skipped.tokenizer.decode(skipped.train.tokens).startswith("abcabc")
    jsonl_data = DataConfig(format=CorpusFormat.JSONL)
    with pytest.raises(ConfigError, match="reads text, not items"):
        read_corpus(jsonl({"text": "a"}), data_config=jsonl_data, fixed=first.tokenizer)


def test_tokens_take_the_least_room() -> None:
    def kind(symbols: int) -> object:
        text = "".join(chr(0x4E00 + n) for n in range(symbols))
        return read_corpus(text.encode()).train.tokens.dtype

    assert [kind(n) for n in (200, 256, 257)] == [np.uint8, np.uint8, np.uint16]


_PEAK = """
import resource, sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from treadle.model.config import CorpusLayout, DataConfig, TokenizerConfig
from treadle.model.data.corpus import read_corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = DataConfig(CorpusLayout(sys.argv[2]))
corpus = read_corpus(Path(sys.argv[1]), TokenizerConfig(), data, folder=Path(sys.argv[3]))
assert corpus.train.predicted > 1000
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.jit
@pytest.mark.parametrize("layout", ["text", "lines"])
def test_a_corpus_takes_less_memory_than_twice_its_size(layout: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    line = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ,.", k=79)) + "\n"
    path = tmp_path / "corpus"
    size = 32_000_000
    path.write_text(line * (size // len(line)))
    command = [sys.executable, "-c", _PEAK, str(path), layout, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 2 * size


def test_a_part_knows_its_items() -> None:
    corpus = read_corpus(b"emma\nolivia\nava\n", data_config=DataConfig(LINES, 0.0))
    encode = corpus.tokenizer.encode
    for item, there in (
        ("emma", True),
        ("ava", True),
        ("emm", False),
        ("amme", False),
        ("", False),
    ):
        assert corpus.train.has_item(encode(item, UnknownPolicy.SKIP).tolist()) == there
    text = read_corpus(b"emma " * 20)
    assert not text.train.has_item([0])


@pytest.mark.parametrize("case", text_inputs(), ids=name_of)
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_text_is_what_the_vectors_say(
    case: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "BLOCK", block)
    file = CorpusFile(case["bytes"], "notes.txt")
    encoding = case["encoding"]

    def text(policy: UnknownPolicy) -> str:
        blocks = corpus_files.text_blocks(file, encoding, policy, corpus_files.cut_anywhere)
        return "".join(blocks)

    refused = case.get("refused_at_every_policy", case.get("error") in ("utf16", "utf32"))
    for policy in UnknownPolicy:
        if refused or ("error" in case and policy is UnknownPolicy.ERROR):
            with pytest.raises(
                EncodingError, match=r"'notes.txt' is not .*set data.encoding to"
            ) as hit:
                text(policy)
            if case["error"] != "not_encoding":
                assert f"'{case['error'][:3]}-{case['error'][3:]}'" in str(hit.value)
        else:
            assert text(policy) == case.get(f"text_at_{policy}", case.get("text"))
    if "items" in case:
        blocks = corpus_files.line_blocks(file, encoding, UnknownPolicy.ERROR)
        assert list(filter(None, "".join(blocks).split("\n"))) == case["items"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["hello world\nhello again\n", "a, b\n" * 99])
def test_text_of_two_or_four_bytes_a_letter_is_noticed(encoding: str, text: str) -> None:
    file = CorpusFile(text.encode(encoding), "notes.txt")
    for layout in CorpusLayout:
        (notice,) = read_corpus([file], data_config=DataConfig(layout, 0.0)).notices
        assert f"the file 'notes.txt' looks like {encoding.upper()[:6]}" in notice
        assert f"set data.encoding to '{encoding}'" in notice
        right = read_corpus([file], data_config=DataConfig(layout, 0.0, encoding=encoding))
        assert right.notices == ()
    as_bytes = TokenizerConfig(TokenizerKind.BYTES)
    assert read_corpus([file], as_bytes, DataConfig(TEXT, 0.0)).notices == ()


@pytest.mark.parametrize(
    "data", [b"a\0b\0\0c\n" * 9, b"hello \0 world\n" * 9, b"\0" * 90, "æøå\n".encode() * 9]
)
def test_some_zeros_are_no_wide_encoding(data: bytes) -> None:
    assert read_corpus(data, data_config=DataConfig(TEXT, 0.0)).notices == ()


def test_lines_that_end_in_bare_carriage_returns_are_noticed() -> None:
    for kind in (TokenizerKind.CHARACTERS, WORDS):
        config = TokenizerConfig(kind)
        (notice,) = read_corpus(b"emma\rava\rmia\r", config, DataConfig(LINES, 0.0)).notices
        assert "carriage return does not end a line" in notice
    assert read_corpus(b"emma\rava\rmia\r", data_config=DataConfig(TEXT, 0.0)).notices == ()
    assert read_corpus(b"emma\r\nava\r\n", data_config=DataConfig(LINES, 0.0)).notices == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["text", "lines", "jsonl", "csv", "surrogate"])
@pytest.mark.parametrize("given", [None, *UnknownPolicy])
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_bytes_that_are_not_text_follow_the_policy_with_every_tokenizer(
    kind: TokenizerKind, form: str, given: UnknownPolicy | None, fine_tuned: bool
) -> None:
    data, layout, corpus_format = {
        "text": (b"ab \xff ab\n", TEXT, CorpusFormat.PLAIN),
        "lines": (b"ab \xff ab\n", LINES, CorpusFormat.PLAIN),
        "jsonl": (b'{"text": "ab \xff ab"}\n', LINES, CorpusFormat.JSONL),
        "csv": (b"text\nab \xff ab\n", LINES, CorpusFormat.CSV),
        "surrogate": (b'{"text": "ab \\udc80 ab"}\n', LINES, CorpusFormat.JSONL),
    }[form]
    settings = DataConfig(layout, 0.0, format=corpus_format)

    def read() -> Corpus:
        if not fine_tuned:
            config = TokenizerConfig(kind, max_vocabulary_size=300, unknown_policy=given)
            return read_corpus(data, config, settings)
        # A model that is trained on: its tokenizer has the kind's own policy, or an unknown token.
        own = UnknownPolicy.UNKNOWN if given is UnknownPolicy.UNKNOWN else None
        config = TokenizerConfig(kind, max_vocabulary_size=300, unknown_policy=own)
        fixed = build_tokenizer(config, ["ab  ab\n"], layout)
        return read_corpus(data, data_config=settings, fixed=fixed, unknown_policy=given)

    raw = kind is TokenizerKind.BYTES and given is None and corpus_format is CorpusFormat.PLAIN
    policy = TokenizerConfig(kind).policy if given is None else given
    if policy is UnknownPolicy.ERROR and not raw:
        with pytest.raises(CorpusError, match=r"unknown_policy to 'skip'"):
            read()
        return
    corpus = read()
    shown = corpus.tokenizer.decode(corpus.train.tokens).rstrip("\n")
    expected = "ab  ab" if policy is UnknownPolicy.SKIP and not raw else "ab \ufffd ab"
    if kind is WORDS:
        expected = expected.replace(" \ufffd", "\ufffd")  # the blank before it is part of a word
    if kind in (EVENTS, WHITESPACE):
        expected = " ".join(expected.split())
    assert shown == expected
    if raw:
        assert corpus.train.tokens.tolist()[:4] == [97, 98, 32, 0xFF]


@pytest.mark.parametrize("packer", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_named(packer: Callable[[bytes], bytes]) -> None:
    data = packer(b"hello world\n" * 99)
    name = {"gzip": "gzip", "bz2": "bzip2", "lzma": "xz"}[packer.__module__.removeprefix("_")]
    with pytest.raises(EncodingError, match=rf"looks like a {name} file\).*; unpack it, or"):
        read_corpus(data)
    corpus = read_corpus(data, TokenizerConfig(unknown_policy=UnknownPolicy.SKIP))
    assert f"the corpus looks like a {name} file: unpack it first" in corpus.notices
    assert read_corpus(b"BZh is no word\n" * 9, data_config=DataConfig(TEXT, 0.0)).notices == ()


def test_events_that_lose_the_ends_of_lines_are_noticed() -> None:
    events = TokenizerConfig(EVENTS)
    data = DataConfig(TEXT, 0.0)
    (notice,) = read_corpus(b"1 2\n3 4\n", events, data).notices
    assert "the kind 'events' drops line ends" in notice
    assert read_corpus(b"1 2 3 4\n", events, data).notices == ()
    assert read_corpus(b"1 2\n3 4\n", events, DataConfig(LINES, 0.0)).notices == ()
    assert read_corpus(b"1 2\n3 4\n", TokenizerConfig(WHITESPACE), data).notices == ()


def test_utf16_that_is_none() -> None:
    with pytest.raises(EncodingError, match="is not utf-16"):
        read_corpus("すべて".encode() * 20, data_config=DataConfig(TEXT, encoding="utf-16"))
