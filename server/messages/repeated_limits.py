"""`check` and `check_bytes` limit the entries of the repeated fields of requests.

A message of 4 MiB may hold two million entries. Parsing alone would block the event loop for a
tenth of a second and more, so that the entries of a large message are counted in its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from treadle.server.errors import Violation, invalid

MOST = {
    "EmbedRequest.tokens": 100_000,
    "EmbedRequest.texts": 1_000,
    "GenerateRequest.banned_tokens": 1_024,
    "GenerateRequest.forced_tokens": 1_024,
    "GenerateRequest.prompt_tokens": 100_000,
    "GenerateRequest.resume": 256,
    "GenerateRequest.stop_sequences": 16,
    "GenerateRequest.token_biases": 1_024,
    "ListJobsRequest.states": 100,
    "ListJobsRequest.tags": 64,
    "NetworkSpec.softmax_clusters": 4_096,
    "ScoreRequest.texts": 10_000,
    "TrainSpec.tags": 64,
    "VocabularyPart.tokens": 10_000,
}
"""The most entries of every repeated field of the requests."""

_SMALL_BYTES = 1 << 14
"""A message of at most so many bytes is parsed at once, which takes no longer than counting."""

_MOST_FIELDS = 32_768
"""Fields of one message, including unknown and repeated ones."""

_PACKED = FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE
"""Kinds of fields whose entries are never packed."""

_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a varint that are not its last."""


def check(message: Message) -> None:
    """Checks the repeated fields of a request and of the messages in it.

    Raises:
        StatusError: INVALID_ARGUMENT with every field that has too many entries.
    """
    found = [*_violations(message, "")]
    if found:
        raise invalid(found)


def check_bytes(data: bytes, kind: Descriptor) -> None:
    """Checks the repeated fields of a serialized request, before it is parsed.

    It reads at most as many fields as a request may have, and leaves malformed data to the parser.

    Args:
        data: The request.
        kind: The descriptor of the request.

    Raises:
        StatusError: INVALID_ARGUMENT with the first field that has too many entries.
    """
    if len(data) > _SMALL_BYTES:
        _Scan(data).message(kind, 0, len(data), "")


def _violations(message: Message, prefix: str) -> Iterator[Violation]:
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            count = len(getattr(message, field.name))
            if count > most(field):
                yield _violation(field, prefix, count)
        elif field.message_type is not None and message.HasField(field.name):
            yield from _violations(getattr(message, field.name), f"{prefix}{field.name}.")


def most(field: Any) -> int:
    """Returns how many entries a repeated field of a request may have."""
    return MOST[f"{field.containing_type.name}.{field.name}"]


def _violation(field: Any, prefix: str, count: int) -> Violation:
    name = prefix + field.name
    return name, f"{name} must hold at most {most(field):,} entries, not {count:,}"


class _Scan:
    """Walks over the fields of a serialized message, as protobuf's documentation defines them.

    Args:
        data: The serialized message.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = 0

    def message(self, kind: Descriptor, start: int, stop: int, prefix: str) -> None:
        """Counts the entries of the message between two offsets.

        Raises:
            StatusError: There are too many.
        """
        known = kind.fields_by_number
        counts: dict[int, int] = {}
        while start < stop:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                text = f"the request has more than {_MOST_FIELDS:,} fields and entries"
                raise invalid([(prefix.rstrip("."), text)])
            tag, start = self._number(start, stop)
            number = tag >> 3
            wire_type = tag & 7
            size = 0
            if wire_type == 0:
                _, start = self._number(start, stop)
            elif wire_type == 2:
                size, start = self._number(start, stop)
            elif wire_type in (1, 5):
                start += 8 if wire_type == 1 else 4
            field = known.get(number)
            if field is not None and field.is_repeated:
                packed = wire_type == 2 and field.cpp_type not in _PACKED
                added = self._packed(field, start, min(start + size, stop)) if packed else 1
                counts[number] = counts.get(number, 0) + added
                if counts[number] > most(field):
                    raise invalid([_violation(field, prefix, counts[number])])
            elif field is not None and field.message_type is not None and wire_type == 2:
                inner = f"{prefix}{field.name}."
                self.message(field.message_type, start, min(start + size, stop), inner)
            start += size

    def _packed(self, field: Any, start: int, stop: int) -> int:
        """Returns how many entries a packed field has."""
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            size = 8 if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE else 4
            return (stop - start) // size
        return len(self._data[start:stop].translate(None, _CONTINUED))

    def _number(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the varint at an offset, and the offset after it."""
        number = shift = 0
        while start < stop:
            byte = self._data[start]
            number |= (byte & 0x7F) << shift
            start += 1
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:  # malformed
                break
        return number, start
