"""Messages read without their classes, against the classes that the client does without."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from treadle.client.connection import SERVING
from treadle.client.messages.raw_protobuf import Field, fields, integer, submessages


@given(st.integers(0, 2**31 - 1), st.text())
def test_fields_are_what_the_class_wrote(code: int, message: str) -> None:
    data = status_pb2.Status(code=code, message=message).SerializeToString()
    assert integer(data, 1) == code
    assert b"".join(submessages(data, 2)).decode() == message


def test_repeated_fields_come_in_order() -> None:
    assert fields(b"\x12\x01a\x08\x05\x12\x01b") == [Field(2, b"a"), Field(1, 5), Field(2, b"b")]
    assert submessages(b"\x12\x01a\x08\x05\x12\x01b", 2) == [b"a", b"b"]
    assert integer(b"", 1) == 0


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(DecodeError):
        fields(b"\xff")


def test_serving_is_what_health_says() -> None:
    reply = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert integer(reply.SerializeToString(), 1) == SERVING
