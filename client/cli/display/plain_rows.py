"""`plain_row` and `plain_fields` write messages as text with tabs, for `--output plain`.

Values and names are those of the JSON output: numbers without separators of thousands, enums as
words, times in RFC 3339. A missing value is empty. Line breaks, tabs and control characters within
a text are shown as escapes, so that a row is always one line of as many columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from treadle.client.cli.display.console import one_line
from treadle.client.cli.display.json_lines import as_json

TAB = "\t"


def plain_row(message: Message, paths: Sequence[str]) -> str:
    """Writes fields of a message as one row.

    Args:
        message: The message.
        paths: Names of fields, those of messages within with a dot: `network.cell`.

    Returns:
        The values, with tabs between them.
    """
    values = dict(_leaves("", as_json(message)))
    return TAB.join(values.get(path, "") for path in paths)


def plain_fields(message: Message) -> list[str]:
    """Writes every field of a message as a line: its path, a tab and its value.

    Elements of lists are numbered: `versions.0`.

    Returns:
        The lines.
    """
    return [f"{path}{TAB}{value}" for path, value in _leaves("", as_json(message))]


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each value within a value."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(number), each) for number, each in enumerate(value)]
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield prefix.removesuffix("."), one_line(text)
        return
    for name, each in items:
        yield from _leaves(f"{prefix}{name}.", each)
