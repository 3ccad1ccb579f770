"""Items from JSON lines and CSV: the shared vectors, odd tables, rows without text."""

from __future__ import annotations

import csv
import itertools
import threading
from typing import Any

import pytest
from vectors import json_items, name_of

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data import corpus_reader, record_reader
from treadle.model.data import files as corpus_files
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.data.record_reader import RecordReader
from treadle.model.enums import (
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    MissingPolicy,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import CorpusError, UnknownSymbolError

JSONL = CorpusFormat.JSONL
CSV = CorpusFormat.CSV
ERROR = UnknownPolicy.ERROR
SKIP = UnknownPolicy.SKIP
UNKNOWN = UnknownPolicy.UNKNOWN

COMPLAINTS = {
    "not_json": "line 2: it is not JSON",
    "too_deep": "line 2: nested too deeply",
    "not_object": "line 2: it holds .*, and an object is needed",
    "missing": "line 2: .*, or set data.missing to 'skip'",
    "type": "line 2: the field .* holds .*, and must hold a text",
    "not_text": r"line 2: .* half of a surrogate pair .*set unknown_policy to 'skip'",
}


def items(
    data: bytes,
    kind: CorpusFormat,
    column: str = "text",
    policy: UnknownPolicy = ERROR,
    missing: MissingPolicy = MissingPolicy.ERROR,
) -> list[str]:
    config = DataConfig(format=kind, column=column, missing=missing)
    return list(RecordReader(config, policy).items(CorpusFile(data, "table")))


def first_line(column: str) -> bytes:
    """Returns a legal line with that field."""
    return b'{"%s": "first"}\n' % column.encode()


@pytest.mark.parametrize("case", json_items(), ids=name_of)
def test_an_item_of_a_line_is_what_the_vectors_say(case: dict[str, Any]) -> None:
    column = case["column"]
    data = first_line(column) + case["line"].encode() + b"\n" + first_line(column)
    if "error" not in case:
        middle = [] if case.get("blank") else [case["item"]]
        assert items(data, JSONL, column) == ["first", *middle, "first"]
        return
    with pytest.raises(CorpusError, match=COMPLAINTS[case["error"]]) as caught:
        items(data, JSONL, column)
    assert "'table'" in str(caught.value)
    if case["error"] == "not_text":
        assert items(data, JSONL, column, SKIP)[1] == case["item_at_skip"]
        assert items(data, JSONL, column, UNKNOWN)[1] == case["item_at_unknown"]
    else:
        with pytest.raises(CorpusError):
            items(data, JSONL, column, SKIP)


@pytest.mark.parametrize("case", [case for case in json_items() if "error" in case], ids=name_of)
def test_only_rows_without_text_are_left_out(case: dict[str, Any]) -> None:
    data = first_line(case["column"]) + case["line"].encode()
    if case["error"] == "missing":
        assert items(data, JSONL, case["column"], missing=MissingPolicy.SKIP) == ["first"]
    else:
        with pytest.raises(CorpusError, match=COMPLAINTS[case["error"]]):
            items(data, JSONL, case["column"], missing=MissingPolicy.SKIP)


def test_rows_left_out_are_counted_over_all_files() -> None:
    files = [
        CorpusFile(b'{"text": "a"}\n{"text": null}\n{"text": ""}\n{}\n', "one"),
        CorpusFile(b'{"text": null}\n{"text": "b"}\n', "two"),
    ]
    data = DataConfig(validation_fraction=0, format=JSONL, missing=MissingPolicy.SKIP)
    corpus = read_corpus(files, data_config=data)
    assert corpus.train.items == 2
    assert corpus.notices == ("3 rows left out: no text in 'text'", "1 line left out: empty")


def test_a_corpus_of_rows_without_text_is_too_small() -> None:
    data = DataConfig(format=JSONL, missing=MissingPolicy.SKIP)
    with pytest.raises(CorpusError, match="0 lines with text"):
        read_corpus(b'{"text": null}\n', data_config=data)


def test_records_that_end_before_the_column() -> None:
    data = b"id,text\n1,one\n2\n3,three\n"
    with pytest.raises(
        CorpusError, match=r"line 3: it has 1 column, and 'text' is number 2.*missing to 'skip'"
    ):
        items(data, CSV)
    assert items(data, CSV, missing=MissingPolicy.SKIP) == ["one", "three"]
    assert items(b"id,text\n1,\n", CSV) == [""]  # an empty text, as an empty line is


@pytest.mark.parametrize(
    ("data", "has"),
    [
        (
            b"text\nab\nhello, you\n",
            "it has 2 columns, and the header 1: quote fields that hold ','",
        ),
        (b"id;text\n1;ab\n2;hello; you\n", "it has 3 columns, and the header 2: quote .* ';'"),
    ],
)
def test_texts_that_a_separator_cuts_are_not_cut_silently(data: bytes, has: str) -> None:
    for missing in MissingPolicy:
        with pytest.raises(CorpusError, match=f"line 3: {has}"):
            items(data, CSV, missing=missing)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_tables_of_every_line_end_and_separator(
    end: str, last: bool, separator: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "BLOCK", block)
    rows = ["id,text,more", '1,"a ""b"", c",', "2,,x", "", "  ", '3,"two', 'lines",y', "4,ü,z"]
    data = end.join(rows).replace(",", separator) + end * last
    inner = "\n" if end == "\r\n" else end
    expected = [f'a "b"{separator} c', "", f"two{inner}lines", "ü"]
    assert items(data.encode(), CSV) == expected
    assert items(b"\xef\xbb\xbf" + data.encode(), CSV) == expected


@pytest.mark.parametrize(
    ("data", "column", "expected"),
    [
        (b'id,"long\nname"\n111,x\n222,y\n', "id", ["111", "222"]),
        (b'id,"long\nname"\n111,x\n222,y\n', "long\nname", ["x", "y"]),
        (b'id,"long\r\nname"\r\n111,x\r\n', "long\nname", ["x"]),
        (b"id\ttext\tlast,first\n1\thello\ta\n", "text", ["hello"]),
        (b"id;text;1,5\n1;hello;a\n", "text", ["hello"]),
        (b"id;text|id\n1;hello|a\n", "text|id", ["hello|a"]),
        (b'a;"b\nc";text\n1;2;x\n', "text", ["x"]),
        (b'a"b\ttext\nx"y\tz\n', "text", ["z"]),
        (b"sep=;\r\nid;text\r\n1;hello\r\n", "text", ["hello"]),
        (b"sep=\t\nid\ttext,x\n1\thello\n", "text,x", ["hello"]),
        (b'"sep=:"\nid:text\n1:hello\n', "text", ["hello"]),
        (b"text,id\nhello,1, ,\n", "text", ["hello"]),
        (b"text,text\na,b\n", "text", ["a"]),
        (b"text\n", "text", []),
    ],
)
def test_the_header_is_the_first_record(data: bytes, column: str, expected: list[str]) -> None:
    assert items(data, CSV, column) == expected


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"id,message\n1,x\n", "has no column 'text'; it has 'id', 'message': set data.column"),
        (b"id;message,x;y\n1;x\n", "has no column 'text'; it has 'id', 'message,x', 'y'"),
        (b"sep=;\nid,text\n", "has no column 'text'; it has 'id,text'"),
        (b"\n", "has no column 'text'; it has no header"),
        (b"", "has no column 'text'; it has no header"),
        (b'id,text\n1,"open\n', "line 2: the quotation that opens here is not closed"),
        (b'id,text\n1,"open', "line 2: the quotation that opens here is not closed"),
        (b'id,text\n1,"a\nb"\n2,"a\nb","open\n\n\n', "line 5: the quotation"),
        (b'sep=,\r\nid,text\r\n1,"a\r\n2,b\r\n', "line 3: the quotation"),
        (b'id,text\r1,"a\r2,b\r', "line 2: the quotation"),
        (b'id,"text\n1,a\n', "line 1: the quotation"),
        (b'id,text\n1,"a\nb"c\n', "line 3: a quotation is followed by something else than ','"),
        (b"id,text\n1,a\n2\n", "line 3: it has 1 column"),
        (b'id,text\n1,"a\nb"\n"2\n"\n', "line 4: it has 1 column"),
    ],
)
def test_tables_that_are_none(data: bytes, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint):
        items(data, CSV)


def test_fields_of_any_length_in_header_and_records(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 200_000
    assert items(f"{long},text\n1,{long}\n".encode(), CSV) == [long]
    monkeypatch.setattr(record_reader, "MAX_FIELD", 300_000)
    before = csv.field_size_limit(300_000)
    try:
        with pytest.raises(CorpusError, match="line 2: a field has more than 300,000 characters"):
            items(f'id,text\n1,"{long}\n{long}\n'.encode(), CSV)
    finally:
        csv.field_size_limit(before)


def test_tables_are_read_at_once_without_a_limit_that_another_lowers() -> None:
    long = "y" * 140_000
    data = f"text\n{long}\na\n".encode()
    found: list[int] = []

    def read() -> None:
        found.extend(len(items(data, CSV)) for _ in range(5))

    csv.field_size_limit(131_072)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 20


def test_bare_carriage_returns_between_json_lines_are_named() -> None:
    with pytest.raises(CorpusError, match=r"line 1: .*a bare carriage return does not end a line"):
        items(b'{"text": "a"}\r{"text": "b"}\r', JSONL)


def test_an_unknown_symbol_names_its_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_reader, "_RECORDS", 2)
    files = [
        CorpusFile(b'{"text": "ab"}\n' * 9, "a"),
        CorpusFile(b'{"text": "ab"}\n\n{"text": "a"}\n{"text": "bxa"}\n', "b", CorpusRole.VALID),
    ]
    with pytest.raises(
        UnknownSymbolError, match=r"the file 'b', item 3: 'x' \(U\+0078\) at position 1 "
    ):
        read_corpus(files, data_config=DataConfig(format=JSONL))


@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_numbers_train_as_they_are_written(kind: TokenizerKind) -> None:
    config = TokenizerConfig(kind, max_vocabulary_size=300)
    data = DataConfig(CorpusLayout.LINES, 0, format=JSONL)
    corpus = read_corpus(b'{"text": 1.50}\n{"text": [1e3, 7]}\n', config, data)
    assert texts_of(corpus) == ["1.50", "1e3 7"]


def texts_of(corpus: Corpus) -> list[str]:
    offsets = corpus.train.offsets
    assert offsets is not None
    decode = corpus.tokenizer.decode
    return [decode(corpus.train.tokens[a:b]) for a, b in itertools.pairwise(offsets.tolist())]
