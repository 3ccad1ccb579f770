"""Text from bytes and items from JSON: the vectors that training passes as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from vectors import json_items, name_of, text_inputs

from treadle.client import InputError, read_lines, read_text
from treadle.client.cli.input.json_items import json_item
from treadle.client.files.decoding import (
    MAX_LINE,
    Errors,
    TextSource,
    cut_lines,
    decode_text,
)
from treadle.client.files.paths import display_path

POLICIES = {"strict": "error", "ignore": "skip", "replace": "unknown"}

FAULTS = {
    "not_json": "it is not JSON",
    "too_deep": "it is nested too deeply",
    "not_object": "it holds .*, and an object is needed",
    "missing": "it has no field|it holds null",
    "type": "it holds .*, which must hold a text",
    "not_text": "it holds half of a surrogate pair",
}


def is_refused(case: dict[str, Any], errors: str) -> bool:
    always = case.get("refused_at_every_policy", case.get("error") in ("utf16", "utf32"))
    return always or ("error" in case and errors == "strict")


@pytest.mark.parametrize("case", text_inputs(), ids=name_of)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_text_is_what_the_vectors_say(case: dict[str, Any], size: int) -> None:
    data = case["bytes"]
    encoding = case["encoding"]
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    for errors in get_args(Errors):
        source = TextSource("notes.txt", encoding, errors)
        policy = POLICIES[errors]
        if is_refused(case, errors):
            with pytest.raises(
                InputError, match=r"notes.txt is not .*; give encoding=|: give "
            ) as hit:
                decode_text(data, source)
            if case["error"] != "not_encoding":
                assert f"encoding={case['error'][:3]}-{case['error'][3:]}" in str(hit.value)
            continue
        text = case.get(f"text_at_{policy}", case.get("text"))
        assert decode_text(data, source) == text
        decoder = source.decoder(mark=True)
        pieces = [decoder.decode(block) for block in blocks]
        assert "".join([*pieces, decoder.decode(b"", final=True)]) == text
        lines = list(cut_lines(blocks, source))
        assert "".join(line.text + line.end for line in lines) == text
        assert not any(line.fault for line in lines)
        if "items" in case and errors == "strict":
            assert [line.text for line in lines if line.text] == case["items"]


@pytest.mark.parametrize("case", text_inputs(), ids=name_of)
def test_files_are_read_as_the_vectors_say(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(case["bytes"])
    if "error" in case:
        with pytest.raises(InputError, match=r"notes\.txt"):
            read_text(path, case["encoding"])
        with pytest.raises(InputError, match=r"notes\.txt"):
            list(read_lines(path, case["encoding"]))
        return
    assert read_text(path, case["encoding"]) == case["text"]
    if "items" in case:
        assert list(read_lines(path, case["encoding"])) == case["items"]


@pytest.mark.parametrize("case", json_items(), ids=name_of)
def test_an_item_of_a_line_is_what_the_vectors_say(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(InputError, match=FAULTS[case["error"]]):
            json_item(case["line"], case["column"])
    else:
        expected = None if case.get("blank") else case["item"]
        assert json_item(case["line"], case["column"]) == expected


def test_only_the_line_is_refused_whose_bytes_are_not_text() -> None:
    blocks = [b"\xef\xbb\xbfgood\nw\xfcst t", b"ext\n\xc3\xbc\nhalf \xe2\x82\n", b"\xe2\x82"]
    found = list(cut_lines(blocks, TextSource("log", flag="--encoding ")))
    assert [(line.text, bool(line.fault)) for line in found] == [
        ("good", False),
        ("w\ufffdst text", True),
        ("\u00fc", False),
        ("half \ufffd\ufffd", True),
        ("\ufffd\ufffd", True),
    ]
    assert found[1].fault == (
        "it is not UTF-8 (it looks like Latin-1): byte 0xFC at offset 1 of the line; "
        "give --encoding latin-1"
    )
    assert "byte 0xE2 at offset 5 of the line; give --encoding NAME" in found[3].fault
    wide = "ab\ncd\n".encode("utf-16") + b"\x00\xd8" + "e\nf".encode("utf-16-le")
    lines = list(cut_lines([wide], TextSource("log", "utf-16")))
    assert [bool(line.fault) for line in lines] == [False, False, True, False]
    assert "it is not utf-16: byte 0x00 at offset 0 of the line" in lines[2].fault


def test_a_line_that_never_ends_is_not_kept() -> None:
    blocks = (b"x" * (1 << 20) for _ in range(MAX_LINE // (1 << 20) + 3))
    first, second = cut_lines((part for part in [*blocks, b"y\nnext\n"]), TextSource("log"))
    assert "too long" in first.fault
    assert len(first.text) == 1000
    assert second.text == "next"


@pytest.mark.parametrize(
    "encoding",
    [
        "nothing",
        "base64",
        "hex",
        "zlib",
        "rot13",
        "idna",
        "punycode",
        "undefined",
        "unicode_escape",
        "raw-unicode-escape",
        "mbcs",
        "..",
        "aliases",
        "",
    ],
)
def test_what_is_no_text_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"a")
    with pytest.raises(InputError, match=f"encoding={encoding!r} is not a text encoding"):
        read_text(path, encoding)


def test_a_name_that_is_not_utf_8_is_shown_by_escapes() -> None:
    assert display_path("caf\udce9.txt") == "caf\\xe9.txt"
    assert display_path(Path("café.txt")) == "café.txt"
