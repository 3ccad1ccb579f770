"""The test vectors that every reader of one kind of input passes, in `tests/vectors/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "vectors"


def json_items() -> list[dict[str, Any]]:
    """Returns the cases of `json_items.json`, `line` and `item` put together."""
    cases = _cases("json_items")
    for case in cases:
        case["line"] = _joined(case["line"])
        case.setdefault("column", "text")
        if "item" in case:
            case["item"] = _joined(case["item"])
    return cases


def text_inputs() -> list[dict[str, Any]]:
    """Returns the cases of `text_input.json`, `bytes` as bytes."""
    cases = _cases("text_input")
    for case in cases:
        case["bytes"] = case["bytes"].encode("latin-1")
        case.setdefault("encoding", "utf-8")
    return cases


def name_of(case: dict[str, Any]) -> str:
    """Returns what a case is called."""
    return str(case["name"])


def _cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((_FOLDER / f"{name}.json").read_text("utf-8"))["cases"]
    return cases


def _joined(text: str | list[tuple[str, int]]) -> str:
    return text if isinstance(text, str) else "".join(part * count for part, count in text)
