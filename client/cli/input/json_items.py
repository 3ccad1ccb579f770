"""`json_item` takes the item out of a line of JSON, by the same rule as training.

The client and the server are held to the same examples in `tests/vectors/json_items.json`.
"""

from __future__ import annotations

import json

from treadle.client.errors import InputError

MAX_DEPTH = 100
"""The most levels of lists in a field."""


def json_item(line: str, column: str = "text") -> str | None:
    """Takes the item out of a line of JSON.

    Args:
        line: The line.
        column: The field; dots lead into objects.

    Returns:
        The item; None where the line is blank and so no record.

    Raises:
        InputError: The line is not a JSON object, or its field holds another value than a text, a
            number or a list of these. The message is a clause that begins with `it`.
    """
    if not line or line.isspace():
        return None
    try:
        # Numbers are items as they are written, of however many digits.
        value = json.loads(line, parse_int=str, parse_float=str)
    except RecursionError:
        raise InputError("it is nested too deeply to be read") from None
    except json.JSONDecodeError as fault:
        raise InputError(f"it is not JSON: {_reason(line, fault)}") from None
    item = _text(_field(value, column), column)
    if any("\ud800" <= character <= "\udfff" for character in item):
        raise InputError(
            f"it holds half of a surrogate pair in the field {column!r}, which is no character"
        )
    return item


def _reason(line: str, fault: json.JSONDecodeError) -> str:
    if "\r" in line.strip():
        return "a bare carriage return does not end a line; convert the line ends"
    reason = fault.msg.removesuffix(" at").removesuffix(" starting")
    return f"{reason} at character {fault.pos + 1:,}"


def _field(value: object, column: str) -> object:
    """Returns a field of an object, by its own name or along its dots."""
    if not isinstance(value, dict):
        raise InputError(f"it holds {_kind(value)}, and an object is needed")
    if column in value:
        return value[column]
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(repr, value)) if isinstance(value, dict) else "no fields"
            raise InputError(f"it has no field {column!r}; it has {has[:200] or 'no fields'}")
        value = value[name]
    return value


def _text(value: object, column: str, depth: int = 0) -> str:
    """Returns a field's value as an item."""
    if isinstance(value, str):  # numbers too: they were read as they are written
        return value
    if isinstance(value, list):
        if depth == MAX_DEPTH:
            raise InputError(
                f"it is nested too deeply: the field {column!r} holds lists more than {MAX_DEPTH} "
                "deep"
            )
        return " ".join([_text(part, column, depth + 1) for part in value])
    if value is None and depth == 0:
        raise InputError(f"it holds null in the field {column!r}")
    raise InputError(
        f"it holds {_kind(value)} in the field {column!r}, which must hold a text, a number or a "
        "list of these"
    )


def _kind(value: object) -> str:
    """Returns JSON's name for a value."""
    if isinstance(value, float):  # the only numbers that are not read as they are written
        return "a number that JSON does not have (NaN or an infinity)"
    words = {dict: "an object", list: "a list", bool: "true or false", str: "a text or a number"}
    return words.get(type(value), "null")
