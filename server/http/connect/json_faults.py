"""`json_faults` says what is wrong with the fields of a request in JSON, in words of the request.

The library that makes messages from JSON stops at the first fault, describes it in words of Python,
and accepts some that are surely mistakes: a list for a message, or text that is not base64.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from treadle.server.errors import Violation, shorten

_Kind = FieldDescriptor

_RANGES = {
    _Kind.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _Kind.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _Kind.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    _Kind.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (_Kind.CPPTYPE_FLOAT, _Kind.CPPTYPE_DOUBLE)

_MOST_SHOWN = 40
_MOST_DEPTH = 50


def json_faults(fields: dict[str, Any], kind: Descriptor, path: str = "") -> Iterator[Violation]:
    """Yields every fault, with the path of its field as the request writes it.

    Args:
        fields: The object.
        kind: The descriptor of the message that it should be.
        path: The path of the object.
    """
    chosen: dict[str, str] = {}
    for name, value in fields.items():
        place = f"{path}.{name}" if path else name
        field = _field(kind, name)
        if field is None:
            yield place, _unknown(place, name, kind)
            continue
        if value is None:  # as if it were left out
            continue
        group = field.containing_oneof
        if group is not None:
            other = chosen.setdefault(group.name, name)
            if other != name:
                yield place, f"{place} and {other} cannot be given together"
        yield from _field_faults(value, field, place)


def _field_faults(value: Any, field: FieldDescriptor, place: str) -> Iterator[Violation]:
    if not field.is_repeated:
        yield from _value_faults(value, field, place)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from _map_faults(value, field, place)
    elif not isinstance(value, list):
        yield place, f"{place} must be a list, not {_shown(value)}"
    else:
        for number, entry in enumerate(value):
            yield from _value_faults(entry, field, f"{place}[{number}]")


def _map_faults(value: Any, field: FieldDescriptor, place: str) -> Iterator[Violation]:
    """Yields the faults of a map from texts, which JSON writes as an object."""
    assert field.message_type is not None
    entry = field.message_type.fields_by_name["value"]
    if not isinstance(value, dict):
        yield place, f"{place} must be an object, not {_shown(value)}"
        return
    for key, each in value.items():
        if each is None or not _is_unicode(key):  # unlike a field, an entry cannot be left out
            yield place, f"{place} must map texts to values, not {_shown({key: each})}"
        else:
            yield from _value_faults(each, entry, f"{place}[{_shown(key)}]")


def _value_faults(value: Any, field: FieldDescriptor, place: str) -> Iterator[Violation]:
    kind = field.message_type
    if kind is not None:
        if kind.full_name.startswith("google.protobuf."):  # these are texts, and the library knows
            return
        if not isinstance(value, dict):
            yield place, f"{place} must be an object, not {_shown(value)}"
        elif place.count(".") > _MOST_DEPTH:
            yield place, f"{place} is nested too deeply"
        else:
            yield from json_faults(value, kind, place)
        return
    fault = _scalar_fault(value, field)
    if fault:
        yield place, f"{place} must be {fault}, not {_shown(value)}"


def _scalar_fault(value: Any, field: FieldDescriptor) -> str:
    """Returns what a value must be; '' where it is that."""
    kind = field.cpp_type
    if kind == _Kind.CPPTYPE_BOOL:
        return "" if isinstance(value, bool) else "true or false"
    if field.type == _Kind.TYPE_BYTES:
        return "" if _is_base64(value) else "bytes in base64"
    if kind == _Kind.CPPTYPE_STRING:
        return "" if isinstance(value, str) and _is_unicode(value) else "a text"
    if kind == _Kind.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum_fault(value, field.enum_type)
    if kind in _FLOATS:
        return "" if _number(value) is not None else "a number"
    least, most = _RANGES[kind]
    number = _number(value)
    if number is None or not math.isfinite(number) or number != int(number):
        return "a whole number"
    return "" if least <= int(number) <= most else f"{least} to {most}"


def _enum_fault(value: Any, kind: EnumDescriptor) -> str:
    is_known = value in kind.values_by_name if isinstance(value, str) else False
    if is_known or (isinstance(value, int) and not isinstance(value, bool)):
        return ""  # a number that has no name is a matter of the request
    names = [name for name in kind.values_by_name if not name.endswith("_UNSPECIFIED")]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _number(value: Any) -> float | int | None:
    """Returns a number, which may stand in a text; None where it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if value != value.strip() or "_" in value:
            return None
        try:
            return int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def _is_base64(value: Any) -> bool:
    """Returns whether a value is base64, of either alphabet, padded or not."""
    if not isinstance(value, str):
        return False
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_unicode(text: str) -> bool:
    """Returns whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field(kind: Descriptor, name: str) -> FieldDescriptor | None:
    found: FieldDescriptor | None = kind.fields_by_camelcase_name.get(name)
    return found or kind.fields_by_name.get(name)


def _unknown(place: str, name: str, kind: Descriptor) -> str:
    names = [field.camelcase_name for field in kind.fields]
    close = get_close_matches(name[:_MOST_SHOWN], [*names, *kind.fields_by_name], 1)
    what = f"there is no field {shorten(place, 2 * _MOST_SHOWN)} in {kind.name}"
    return f"{what}; is {close[0]} meant?" if close else f"{what}; it has {', '.join(names)}"


def _shown(value: Any) -> str:
    """Returns a value as a message shows it."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{shorten(value, _MOST_SHOWN)}"'
    return shorten(str(value), _MOST_SHOWN)
