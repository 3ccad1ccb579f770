"""Lists in requests are counted before they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from treadle.server.errors import StatusError
from treadle.server.messages import repeated_limits
from treadle.v1 import sequence_pb2 as pb

REQUESTS = {
    method.input_type.name: method.input_type
    for method in pb.DESCRIPTOR.services_by_name["SequenceService"].methods
}


def repeated_fields(kind: Descriptor, above: tuple[str, ...] = ()) -> Iterator[FieldDescriptor]:
    """Yields every repeated field of a message and of those in it."""
    assert kind.full_name not in above, "a message within itself"
    for field in kind.fields:
        if field.is_repeated:
            yield field
        if field.message_type is not None:
            yield from repeated_fields(field.message_type, (*above, kind.full_name))


def owner(field: FieldDescriptor) -> str:
    """Returns the name of the message that has a field."""
    assert field.containing_type is not None
    return field.containing_type.name


def name_of(field: FieldDescriptor) -> str:
    return f"{owner(field)}.{field.name}"


FIELDS = {name_of(field): field for kind in REQUESTS.values() for field in repeated_fields(kind)}
FLAT = [field for field in FIELDS.values() if owner(field) in REQUESTS]


def test_every_repeated_field_of_a_request_has_a_limit() -> None:
    assert set(repeated_limits.MOST) == set(FIELDS)


def filled(field: FieldDescriptor, count: int) -> Any:
    """Returns a request with so many entries in a field."""
    message: Any = getattr(pb, owner(field))()
    entries = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries.update({f"k{number}": "" for number in range(count)})
    elif field.message_type is not None:
        for _ in range(count):
            entries.add()
    else:
        entries.extend(["a" * 20 if field.type == FieldDescriptor.TYPE_STRING else 1] * count)
    return message


@pytest.mark.parametrize("field", FLAT, ids=name_of)
def test_a_list_may_be_as_long_as_its_limit_and_no_longer(
    field: FieldDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_limits, "_SMALL_BYTES", 0)
    most = repeated_limits.MOST[name_of(field)]
    legal = filled(field, most)
    long = filled(field, most + 1)
    repeated_limits.check(legal)
    repeated_limits.check_bytes(legal.SerializeToString(), legal.DESCRIPTOR)
    data = long.SerializeToString()
    with pytest.raises(StatusError) as parsed:
        repeated_limits.check(long)
    with pytest.raises(StatusError) as counted:
        repeated_limits.check_bytes(data, long.DESCRIPTOR)
    for caught in (parsed, counted):
        [violation] = caught.value.details[0].field_violations  # type: ignore[attr-defined]
        assert violation.field == field.name
        assert f"{most:,}" in violation.description


def test_numbers_are_counted_packed_or_not() -> None:
    kind = pb.ListJobsRequest.DESCRIPTOR
    long_varints = b"\x1a\xe0\xa8\x01" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 2150
    with pytest.raises(StatusError, match="not 2,150"):
        repeated_limits.check_bytes(long_varints, kind)
    with pytest.raises(StatusError, match="at most 100 entries"):
        repeated_limits.check_bytes(b"\x18\x01" * 10_000, kind)


@pytest.mark.parametrize(
    "data",
    [
        b"\xf8\x3f\x00" * 100_000,  # fields that are not known
        b"\x0a\x00" * 100_000,  # one field again and again
        b"\x0a\xa0\x9c\x01" + b"\x12\x00" * 10_000 + b"\x12\x00" * 30_000,  # the same, within it
    ],
)
def test_a_request_of_too_many_fields_is_refused_before_it_is_parsed(data: bytes) -> None:
    with pytest.raises(StatusError, match="more than 32,768 fields"):
        repeated_limits.check_bytes(data, pb.TrainRequest.DESCRIPTOR)


@pytest.mark.parametrize("data", [b"\xff" * 100_000, b"\x0a\xff\xff\xff\xff\x0f" * 9, b"\x0b" * 20])
def test_what_is_malformed_is_left_to_the_parser(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_limits, "_SMALL_BYTES", 0)
    repeated_limits.check_bytes(data, pb.TrainRequest.DESCRIPTOR)


def test_a_large_request_within_the_limits_is_taken() -> None:
    request = pb.ScoreRequest(texts=["x" * 400] * 10_000, context="y" * 4000)
    repeated_limits.check_bytes(request.SerializeToString(), request.DESCRIPTOR)
    repeated_limits.check(request)
