"""`JSON` and `PROTO` turn the bytes of requests into messages, and messages into bytes of replies.

JSON is the mapping of proto3: names in lowerCamelCase, or as in the `.proto`; integers of 64 bits
as strings; bytes in base64. A field that does not exist is an error that names it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import StatusError, invalid
from treadle.server.http.connect.json_faults import json_faults
from treadle.server.http.json_size import has_more_values
from treadle.server.messages import repeated_limits
from treadle.server.resources import thread_pools

_SMALL_JSON_BYTES = 1 << 12
_SMALL_PROTO_BYTES = 1 << 16
"""Messages up to these sizes are parsed and serialized in the event loop, in a few milliseconds."""

_MOST_VALUES = 1 << 16
"""Values of one JSON text, twice the fields that a message of gRPC may have."""

_AT_ONCE = 512
"""Entries of a list that are written as JSON in one piece, so that others can run in between."""

_MOST_FAULTS = 20
_SHOWN = 60


@dataclass(frozen=True)
class Codec:
    """A form of messages.

    Args:
        name: What the content type calls it.
        parse_now: Returns the message of a kind in bytes; raises StatusError.
        serialize_now: Returns a message as bytes.
        small_bytes: Messages up to this size are parsed and serialized in the event loop.
    """

    name: str
    parse_now: Callable[[bytes, Descriptor], Message]
    serialize_now: Callable[[Message], bytes]
    small_bytes: int

    async def parse(self, data: bytes, kind: Descriptor) -> Message:
        """Returns a message; a large one is parsed in a thread.

        Args:
            data: Its bytes.
            kind: Its descriptor.

        Raises:
            StatusError: INVALID_ARGUMENT: it is malformed, or has a field that does not exist.
        """
        if len(data) <= self.small_bytes:
            return self.parse_now(data, kind)
        return await thread_pools.JSON.run(self.parse_now, data, kind)

    async def serialize(self, message: Message) -> bytes:
        """Returns the bytes of a message; a large one is serialized in a thread."""
        if message.ByteSize() <= self.small_bytes:
            return self.serialize_now(message)
        return await thread_pools.JSON.run(self.serialize_now, message)


def _parse_json(data: bytes, kind: Descriptor) -> Message:
    if not data.strip():
        raise _malformed("the request has no body: send a JSON object, {} for an empty request")
    if has_more_values(data, _MOST_VALUES):
        text = f"the JSON of the request has more than {_MOST_VALUES:,} values"
        raise _malformed(f"{text}: send fewer, or protobuf (application/proto)")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"the request is not UTF-8 at byte {error.start}") from None
    try:
        fields = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise _malformed("the JSON of the request is nested too deeply") from None
    except ValueError as error:
        raise _malformed(
            f"the request is not JSON: {str(error)[0].lower()}{str(error)[1:]}"
        ) from None
    if not isinstance(fields, dict):
        raise _malformed("the request is not a JSON object, as in {}")
    faults = [*islice(json_faults(fields, kind), _MOST_FAULTS)]
    if faults:
        raise invalid(faults)
    message = GetMessageClass(kind)()
    try:
        json_format.ParseDict(fields, message)
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        raise _malformed(f"the request is not a {kind.name} in JSON: {error}") from None
    return message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
        ValueError: It has a member twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name, _ = counts.most_common(1)[0]
        raise ValueError(f"the member {name[:_SHOWN]!r} appears twice in one object")
    return found


def _malformed(text: str) -> StatusError:
    code = grpc.StatusCode.INVALID_ARGUMENT
    return StatusError(code, text, error_details_pb2.BadRequest())


def _serialize_json(message: Message) -> bytes:
    value = json_format.MessageToDict(message)
    if message.ByteSize() <= _SMALL_JSON_BYTES:
        return _dumps(value).encode()
    return "".join(_pieces(value)).encode()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _pieces(value: Any) -> Iterator[str]:
    """Yields a value as JSON in pieces, each of which takes little time."""
    if isinstance(value, dict):
        for number, (name, entry) in enumerate(value.items()):
            yield f"{',' if number else '{'}{_dumps(name)}:"
            yield from _pieces(entry)
        yield "}" if value else "{}"
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for number, entry in enumerate(value):
            yield "," if number else "["
            yield from _pieces(entry)
        yield "]"
    elif isinstance(value, list) and len(value) > _AT_ONCE:
        for start in range(0, len(value), _AT_ONCE):
            yield "," if start else "["
            yield _dumps(value[start : start + _AT_ONCE])[1:-1]
        yield "]"
    else:
        yield _dumps(value)


def _parse_proto(data: bytes, kind: Descriptor) -> Message:
    repeated_limits.check_bytes(data, kind)
    try:
        return GetMessageClass(kind).FromString(data)
    except DecodeError:
        text = f"the request is not a {kind.name}, or has text that is not UTF-8"
        raise _malformed(text) from None


JSON = Codec("json", _parse_json, _serialize_json, _SMALL_JSON_BYTES)
"""JSON as proto3 maps it."""

PROTO = Codec(
    "proto", _parse_proto, lambda message: message.SerializeToString(), _SMALL_PROTO_BYTES
)
"""The messages of gRPC."""

CODECS = {codec.name: codec for codec in (JSON, PROTO)}
"""Each form by its name."""
