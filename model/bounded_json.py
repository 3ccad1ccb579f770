"""`read_json` reads JSON of bounded size, in which no object has a name twice.

A byte of JSON may become seventy bytes of memory: `[],[],[]` is a list for every three characters.
So the values of a long text are counted before they are made.
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST_VALUES = 8_000_000
"""Most values, with the names in objects: a vocabulary of a million subwords has five million."""

_SHORT = 1 << 20
"""Characters of a text that is read without counting."""

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def read_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The text.

    Raises:
        ValueError: It is not JSON, has too many values, or has a name twice in one object.
        RecursionError: It is nested too deeply.
    """
    if len(text) > _SHORT:
        bare = _STRING.sub("", text)
        if sum(map(bare.count, ",:[{")) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set[str]()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {double[:40]!r} stands twice in one object")
    return made
