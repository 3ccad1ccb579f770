"""How callers name tokens."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.client import END, Client, InputError
from treadle.client.cli.options.token_values import bias, token
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeService

REFERENCES = [
    v1.TokenReference(id=0),
    v1.TokenReference(text="e"),
    v1.TokenReference(end=True),
]


def test_tokens_are_numbers_texts_or_the_end(client: Client, service: FakeService) -> None:
    client.generate_text(
        "m",
        banned_tokens=[0, "e", END],
        forced_tokens="ab",
        token_biases={0: 1, "e": -2.5, END: 100},
    )
    (request,) = service.requests
    assert list(request.banned_tokens) == REFERENCES
    assert list(request.forced_tokens) == [v1.TokenReference(text="ab")]
    assert [each.token for each in request.token_biases] == REFERENCES
    assert [each.bias for each in request.token_biases] == [1, -2.5, 100]


@pytest.mark.parametrize(
    "options",
    [
        {"banned_tokens": [1.5]},
        {"banned_tokens": [-1]},
        {"banned_tokens": [True]},
        {"banned_tokens": ["\udcff"]},
        {"forced_tokens": None},
        {"token_biases": {"e": "much"}},
        {"token_biases": ["e"]},
    ],
    ids=str,
)
def test_what_is_no_token_is_not_sent(
    client: Client, service: FakeService, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        client.generate("m", **options)
    assert service.requests == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e", "e"),
        ("12", "12"),
        ("id:12", 12),
        ("id:end", END),
        ("text:id:12", "id:12"),
        (":", ":"),
        ("no:e", "no:e"),
    ],
)
def test_tokens_of_the_command_line(text: str, expected: Any) -> None:
    assert token(text) == expected


def test_biases_of_the_command_line() -> None:
    assert bias("e=-1.5") == ("e", -1.5)
    assert bias("==2") == ("=", 2)
    assert bias("id:end=1e1") == (END, 10)
