"""`JsonFields` reads the fields of a JSON object, each with the type that it must have.

A field that is null counts as one that is missing, as in OpenAI's API. A field that nobody reads is
one that the interface does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from treadle.server.http.openai.openai_error import OpenAIError, invalid

MAX_UINT64 = 2**64 - 1

_SHOWN = 40
"""Characters of a value that a message shows."""


class JsonFields:
    """The fields of one JSON object.

    Args:
        values: The object.
        prefix: What comes before the names of its fields in messages, such as `stream_options.`.
    """

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._read: set[str] = set()

    def place(self, name: str) -> str:
        """Returns a field as messages name it."""
        return self._prefix + name

    def any(self, name: str) -> Any:
        """Returns a field of any type; None where it is missing."""
        self._read.add(name)
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """Returns a text; None where it is missing."""
        value = self.any(name)
        if value is None:
            return None
        return self.as_text(value, self._prefix + name)

    def flag(self, name: str) -> bool:
        """Returns whether a field is true; it is not where it is missing."""
        value = self.any(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._fault(name, f"must be true or false, not {shown(value)}")

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Returns a whole number between two bounds; None where it is missing."""
        value = self.any(name)
        if value is None:
            return None
        if is_whole(value) and low <= value <= high:
            return int(value)
        raise self._fault(
            name, f"must be a whole number from {low:,} to {high:,}, not {shown(value)}"
        )

    def number(self, name: str, low: float, high: float) -> float | None:
        """Returns a number between two bounds; None where it is missing."""
        value = self.any(name)
        if value is None:
            return None
        if is_number(value) and low <= value <= high:
            return float(value)
        raise self._fault(name, f"must be a number from {low:g} to {high:g}, not {shown(value)}")

    def fields(self, name: str) -> JsonFields | None:
        """Returns the fields of an object; None where it is missing."""
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._fault(name, f"must be an object, not {shown(value)}")
        return JsonFields(value, f"{self._prefix}{name}.")

    def word(self, name: str, words: Sequence[str]) -> str | None:
        """Returns one of some words; None where it is missing."""
        value = self.any(name)
        if value is None or (isinstance(value, str) and value in words):
            return value
        listed = " or ".join(map(repr, words))
        raise self._fault(name, f"must be {listed}, not {shown(value)}")

    def unserved(self, name: str, why: str, *allowed: object) -> None:
        """Refuses a field that is set to something else than some values."""
        value = self.any(name)
        if value is not None and not any(value is item or value == item for item in allowed):
            raise self._fault(name, f"cannot be served: {why}")

    def end(self) -> None:
        """Refuses the fields that nobody has read."""
        unknown = [name for name in self._values if name not in self._read]
        if unknown:
            param = self._prefix + unknown[0][:_SHOWN]
            raise OpenAIError(
                400,
                f"unrecognized request argument: {printable(param)}; leave it out",
                param=printable(param),
                code="unknown_parameter",
            )

    def as_text(self, value: object, place: str) -> str:
        """Returns a value that must be a text of whole characters."""
        if not isinstance(value, str):
            raise invalid(place, f"{place} must be a string, not {shown(value)}")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise invalid(place, f"{place} has half of a surrogate pair, which is not text")
        return value

    def _fault(self, name: str, why: str) -> OpenAIError:
        return invalid(self._prefix + name, f"{self._prefix}{name} {why}")


def read_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object that a body is.

    Raises:
        OpenAIError: 400: it is something else.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise OpenAIError(400, f"the body is not JSON: {reason[:200]}") from None
    if not isinstance(value, dict):
        raise OpenAIError(400, f"the body must be a JSON object, not {shown(value)}")
    return value


def is_whole(value: object) -> bool:
    """Returns whether a value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_whole(value)


def shown(value: object) -> str:
    """Returns a value as a message shows it, cut to some characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_UINT64:
        return "a number of many digits"
    kinds = {dict: "an object", list: "an array", type(None): "null"}
    if type(value) in kinds:
        return kinds[type(value)]
    text = json.dumps(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= 2 * _SHOWN else text[: 2 * _SHOWN] + "…"


def printable(text: str) -> str:
    """Returns a text that a message may hold."""
    return text.encode(errors="replace").decode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
