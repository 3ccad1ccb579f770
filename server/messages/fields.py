"""`to_json` and `fill` convert between messages of the contract and JSON values.

Field names are the same in the contract and in settings, so messages are walked by their
descriptors instead of being copied field by field.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.server.messages.enums import number_of, word_of

_ENUM = FieldDescriptor.TYPE_ENUM
_MESSAGE = FieldDescriptor.TYPE_MESSAGE


def to_json(message: Message, only: Container[str] | None = None) -> dict[str, Any]:
    """Returns the fields of a message that are set, as JSON values.

    Enum numbers become words. A number that the contract does not know stays a number, which the
    config then refuses.

    Args:
        message: The message.
        only: The fields to convert; None: all of them. On the event loop it must leave out lists
            that a caller sends, which may have millions of entries.
    """
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if (field.type == _ENUM and value == 0) or (only is not None and field.name not in only):
            continue
        if field.is_repeated:
            values[field.name] = dict(value) if _is_map(field) else list(value)
        elif field.type == _MESSAGE:
            values[field.name] = to_json(value)
        elif field.type == _ENUM:
            values[field.name] = word_of(field.enum_type, value)
        else:
            values[field.name] = value
    return values


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def fill(message: Message, values: Mapping[str, Any]) -> None:
    """Sets the fields of a message from JSON values; the opposite of `to_json`.

    Args:
        message: The message to fill.
        values: Values by field name. None leaves a field unset; names that the message does not
            have are ignored.
    """
    for field in message.DESCRIPTOR.fields:
        value = values.get(field.name)
        if value is None:
            continue
        if field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.type == _MESSAGE:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), value)
        elif field.type == _ENUM:
            setattr(message, field.name, number_of(field.enum_type, value))
        else:
            setattr(message, field.name, value)
