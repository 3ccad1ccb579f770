"""How many values a JSON text has, before it is parsed."""

from __future__ import annotations

import json

import pytest

from treadle.server.http.json_size import has_more_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1, 2, 3]", 3),
        ('{"a": [[], {}], "b": 2}', 6),
        (json.dumps({"a": ",,,,[[[{{{"}), 1),
        (json.dumps({'a"[[[[': '\\",,,,', "b": "\\\\"}), 2),
        ('["an open string, [', 1),
        ('[1, "the last \\', 2),
        ("", 0),
    ],
)
def test_what_strings_hold_is_no_value(text: str, values: int) -> None:
    assert has_more_values(text.encode(), values - 1)
    assert not has_more_values(text.encode(), values)


def test_an_open_string_takes_linear_time() -> None:
    # Tried from each of its quotation marks, this would take hours.
    assert has_more_values(b"," * 10 + b'"' + b'\\"' * 2_000_000 + b",", 9)
