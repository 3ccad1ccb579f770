"""`to_line` writes a protobuf message as one line of JSON.

Names are those of `sequence.proto`. Unlike protobuf's own JSON, 64-bit integers are numbers
and enums are the words that the command line takes ("lstm", not "CELL_LSTM"); both are what
`jq` and a reader expect. Numbers that JSON lacks are strings, and bytes are base64, as in
protobuf's JSON.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.client.messages.enums import enum_word


def to_line(value: Message | dict[str, Any]) -> str:
    """Writes a message, or a dict of parts of messages, on one line."""
    data = as_json(value) if isinstance(value, Message) else value
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def as_json(message: Message) -> dict[str, Any]:
    """Turns a message into a dict for `json.dumps`.

    Args:
        message: Any message.

    Returns:
        Its fields by name. Absent are optional and message fields that are not set, and
        repeated fields and maps with no element; every other field is there, 0 or not.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                if len(value):
                    values[field.name] = dict(value)
            elif len(value):
                values[field.name] = [_plain(field, each) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            values[field.name] = _plain(field, value)
    return values


def _plain(field: Any, value: Any) -> Any:
    """Turns one value of a field into plain Python."""
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return value.ToJsonString()
        return as_json(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return _shortest(value) if field.type == FieldDescriptor.TYPE_FLOAT else value


def _shortest(value: float) -> float:
    """Returns the number with the fewest digits that is the same in 32 bits."""
    exact = struct.pack("f", value)
    for digits in range(6, 9):
        rounded = float(f"{value:.{digits}g}")
        if struct.pack("f", rounded) == exact:
            return rounded
    return float(f"{value:.9g}")
