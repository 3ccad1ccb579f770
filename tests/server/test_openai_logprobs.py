"""Where tokens stand in a text, whatever a token is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treadle.server.http.openai.logprobs import TextLogprobs
from treadle.v1 import sequence_pb2 as pb

CASES: dict[str, tuple[list[str], str, list[int]]] = {
    "characters": (["a", "é", "b"], "aéb", [0, 1, 2]),
    "bytes": (["a", "", "", "b", ""], "aéb", [0, 1, 1, 2, 3]),
    "four bytes": (["", "", "", "", "b"], "😀b", [0, 0, 0, 0, 1]),
    "words": (["the", " fox", "."], "the fox.", [0, 3, 7]),
    "white space": (["the", "fox", "\n", "ran"], "the fox\nran", [0, 4, 7, 8]),
    "an end": (["a", ""], "a", [0, 1]),
    "no text": (["", ""], "", [0, 0]),
    "the same again": (["a", "a", "a"], "a a a", [0, 2, 4]),
}


def tokens(texts: list[str]) -> list[pb.Token]:
    return [
        pb.Token(id=number, text=text, log_probability=-0.1 * number)
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_token_is_where_its_text_is(case: str) -> None:
    texts, whole, expected = CASES[case]
    shown = json.loads(TextLogprobs(False).add(whole, tokens(texts)))
    assert shown["text_offset"] == expected
    assert shown["tokens"] == [text or f"<|{number}|>" for number, text in enumerate(texts)]
    assert shown["token_ids"] == [*range(len(texts))]
    assert shown["top_logprobs"] is None


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_a_text_may_come_later_than_its_tokens(behind: int) -> None:
    writer = TextLogprobs(False)
    text = "abcdefgh" * 3
    found: list[Any] = []
    for place in range(len(text)):
        part = text[place - behind : place - behind + 1] if place >= behind else ""
        found += json.loads(writer.add(part, tokens([text[place]])))["text_offset"]
    assert found == [*range(len(text))]


def test_the_likeliest_tokens_include_the_one_that_was_drawn() -> None:
    token = pb.Token(id=3, text="c", log_probability=-3)
    for number in range(2):
        token.alternatives.add(id=number, text="ab"[number], log_probability=-number)
    token.alternatives.add(id=9, log_probability=-5)
    shown = json.loads(TextLogprobs(True).add("c", [token]))
    assert shown["top_logprobs"] == [{"a": 0.0, "b": -1.0, "<|9|>": -5.0, "c": -3.0}]
    first = json.loads(TextLogprobs(True).add("c", [pb.Token(id=3, text="c")]))
    assert first["top_logprobs"] == first["token_logprobs"] == [None]
