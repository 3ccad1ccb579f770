"""`fields` and the others read protobuf messages for which the client has no generated class.

Error details (google.rpc) and health replies (grpc.health.v1) come from packages that the
client does not depend on, and it needs four fields of them. protobuf's own decoder keeps the
fields that a message class does not know; parsing into `Empty`, which knows none, keeps all.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet


class Field(NamedTuple):
    """One field of a serialized message."""

    number: int
    """The field's number in its `.proto`."""
    value: int | bytes
    """An integer for varint and fixed-width fields, bytes for strings and messages."""


def fields(message: bytes) -> list[Field]:
    """Splits a serialized message into its fields, in the order they were written.

    Args:
        message: Any serialized protobuf message.

    Returns:
        Its fields; a repeated field appears once for each element.

    Raises:
        google.protobuf.message.DecodeError: The bytes are not a protobuf message.
    """
    unknown = Empty()
    unknown.ParseFromString(message)
    found = UnknownFieldSet(unknown)
    return [Field(found[i].field_number, found[i].data) for i in range(len(found))]


def submessages(message: bytes, number: int) -> list[bytes]:
    """Returns every string or message that a serialized message holds in one field."""
    return [f.value for f in fields(message) if f.number == number and isinstance(f.value, bytes)]


def integer(message: bytes, number: int) -> int:
    """Returns the integer in one field, 0 where it is not set."""
    values = [f.value for f in fields(message) if f.number == number and isinstance(f.value, int)]
    return values[-1] if values else 0
