"""`from_rpc_error` turns a failed gRPC call into one of the client's errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError

from treadle.client.argument_names import (
    PYTHON,
    ArgumentNames,
    argument_of,
    rename_fields,
)
from treadle.client.errors import ERRORS, InternalError, ServerError, Violation
from treadle.client.messages.raw_protobuf import integer, submessages

if TYPE_CHECKING:
    import grpc


DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that holds a serialized google.rpc.Status."""

# gRPC's messages about a connection, and their meaning. The first match counts, and "failed to
# connect" is part of most of the others.
_CONNECTION_FAULTS = (
    (r"dns|name resolution|address lookup|getaddrinfo|resolver", "the name does not resolve"),
    (r"no route to host|network is unreachable", "there is no route to it"),
    (r"no such file or directory", "there is no such socket"),
    (
        r"http1\.x|http/1|http2 settings|wrong_version_number",
        "what listens there is no gRPC server",
    ),
    (r"connect.* timed out|settings frame|deadline", "it does not answer"),
    (r"socket closed|connection reset|broken pipe|goaway|stream removed", "the connection broke"),
    (r"failed to connect|connections to all backends failing", "the connection failed"),
)

_BREAK = re.compile(
    r"rst_stream|socket closed|connection reset|broken pipe|goaway|stream removed|transport",
    re.IGNORECASE,
)
"""gRPC's messages about a stream whose connection broke, with any status."""


def from_rpc_error(error: grpc.RpcError, address: str) -> ServerError:
    """Returns the client's error for an error of gRPC.

    Args:
        error: The error that a call raised.
        address: The server's address, for the sentence.

    Returns:
        The error to raise instead.
    """
    call = cast("grpc.Call", error)
    code = call.code().name
    details = call.details() or ""
    violations, retry_delay_s = _read_details(call)
    at_fault = [argument_of(violation.field) for violation in violations]

    def say(interface: ArgumentNames) -> str:
        return rename_fields(_sentence(code, details, address, interface), interface, at_fault)

    return ERRORS.get(code, InternalError)(
        say(PYTHON),
        code=code,
        violations=violations,
        retry_delay_s=retry_delay_s,
        broken=_is_break(code, details),
        say=say,
    )


_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)", re.IGNORECASE)
"""gRPC's message about a message that is too large for one side."""


def _is_break(code: str, details: str) -> bool:
    """Returns whether the connection broke, in contrast to an answer of the server.

    A server that shuts down ends its streams as UNAVAILABLE or, without details, as CANCELLED.
    """
    if code == "UNAVAILABLE" or (code == "CANCELLED" and details in ("", "CANCELLED")):
        return True
    by_grpc = code in ("ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN")
    return by_grpc and _BREAK.search(details) is not None


def _sentence(code: str, details: str, address: str, interface: ArgumentNames) -> str:
    """Returns a sentence for gRPC's own messages; the server's are sentences already."""
    if code == "UNAVAILABLE":
        return _connection_sentence(details, address, interface)
    if code == "RESOURCE_EXHAUSTED" and (sizes := _TOO_LARGE.search(details)):
        size, most = (int(number) for number in sizes.groups())
        stream = "`treadle score-stream`" if interface.are_flags else "`score_stream`"
        return (
            f"the message to send has {size:,} bytes, and at most {most:,} are allowed: send less "
            f"at once; {stream} scores a text of any length"
        )
    if code == "DEADLINE_EXCEEDED" and (not details or "Deadline Exceeded" in details):
        return f"the server at {address} took longer than the timeout allows"
    if code == "CANCELLED" and details in ("", "Locally cancelled by application!", "CANCELLED"):
        return "the call was cancelled"
    if code == "UNIMPLEMENTED":
        return f"the server at {address} does not offer this call: is it a Treadle of this version?"
    return details or f"the server at {address} failed with {code} and no explanation"


def _connection_sentence(details: str, address: str, interface: ArgumentNames) -> str:
    """Returns why there is no connection, or the server's own sentence."""
    if re.search(r"connection refused", details, re.IGNORECASE):
        another = "name another with --server" if interface.are_flags else "give another address"
        return f"nothing listens at {address}: start treadle-server, or {another}"
    for pattern, meaning in _CONNECTION_FAULTS:
        if re.search(pattern, details, re.IGNORECASE):
            return f"cannot reach a Treadle server at {address}: {meaning}"
    return details or f"cannot reach a Treadle server at {address}"


def _read_details(call: grpc.Call) -> tuple[tuple[Violation, ...], float | None]:
    """Returns BadRequest and RetryInfo from a call's trailing metadata."""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return read_status(value)
    return (), None


def read_status(status: bytes) -> tuple[tuple[Violation, ...], float | None]:
    """Reads the details of a serialized google.rpc.Status.

    Args:
        status: The message's bytes.

    Returns:
        The field violations of its google.rpc.BadRequest and the seconds of its
        google.rpc.RetryInfo. Missing and unreadable details are left out: the code and the
        message of the status stay.
    """
    violations: list[Violation] = []
    retry_delay_s = None
    try:
        for detail in submessages(status, 3):  # Status.details, each a google.protobuf.Any
            kind = b"".join(submessages(detail, 1)).rpartition(b"/")[2]
            body = b"".join(submessages(detail, 2))
            if kind == b"google.rpc.BadRequest":
                violations += [_read_violation(each) for each in submessages(body, 1)]
            elif kind == b"google.rpc.RetryInfo":
                delay = b"".join(submessages(body, 1))  # a google.protobuf.Duration
                retry_delay_s = integer(delay, 1) + integer(delay, 2) / 1e9
    except DecodeError:
        pass
    return tuple(violations), retry_delay_s


def _read_violation(message: bytes) -> Violation:
    """Reads a google.rpc.BadRequest.FieldViolation: the field's path and the reason."""
    field, description = (
        b"".join(submessages(message, number)).decode("utf-8", "replace") for number in (1, 2)
    )
    return Violation(field, description)
