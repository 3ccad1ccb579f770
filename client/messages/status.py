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
from treadle.client.errors import (
    ERRORS,
    InternalError,
    QuotaExceededError,
    QuotaViolation,
    ServerError,
    Violation,
)
from treadle.client.messages.connection_faults import Peer, connection_sentence
from treadle.client.messages.raw_protobuf import integer, submessages

if TYPE_CHECKING:
    import grpc


DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that holds a serialized google.rpc.Status."""

_BREAK = re.compile(
    r"rst_stream|socket closed|connection reset|broken pipe|goaway|stream removed|transport",
    re.IGNORECASE,
)
"""gRPC's messages about a stream whose connection broke, with any status."""


_UNSENT = re.compile(
    r"failed to connect|backends failing|lookup|name resolution|resolver|errors resolving",
    re.IGNORECASE,
)
"""gRPC's messages about a call for which there was no connection."""


def from_rpc_error(error: grpc.RpcError, peer: Peer | str, request_id: str = "") -> ServerError:
    """Returns the client's error for an error of gRPC.

    Args:
        error: The error that a call raised.
        peer: The server, or its address, for the sentence.
        request_id: The id of the call.

    Returns:
        The error to raise instead.
    """
    call = cast("grpc.Call", error)
    code = call.code().name
    details = call.details() or ""
    status = _status_details(call)
    violations, retry_delay_s = read_status(status)
    quotas = read_quotas(status) if code == "RESOURCE_EXHAUSTED" else ()
    at_fault = [argument_of(violation.field) for violation in violations]
    server = Peer(peer) if isinstance(peer, str) else peer
    kind = QuotaExceededError if quotas else ERRORS.get(code, InternalError)
    is_shown = request_id and issubclass(kind, InternalError) and request_id not in details
    suffix = f" (request id {request_id})" if is_shown else ""

    def say(interface: ArgumentNames) -> str:
        sentence = _sentence(code, details, server, interface)
        return rename_fields(sentence, interface, at_fault) + suffix

    found = kind(
        say(PYTHON),
        code=code,
        violations=violations,
        retry_delay_s=retry_delay_s,
        broken=_is_break(code, details),
        unsent=code == "UNAVAILABLE" and _UNSENT.search(details) is not None,
        request_id=request_id,
        say=say,
    )
    if isinstance(found, QuotaExceededError):
        found.quotas = quotas
    return found


def _token_sentence(details: str, peer: Peer) -> str:
    """Returns a sentence about a token that the server refuses, with the file that has it."""
    file = f" in {peer.token_file!r}" if peer.token_file else ""
    if _NO_TOKEN in details:
        return (
            f"the token{file} is not one of the server at {peer.address}, which `treadle-server "
            "token create` prints; perhaps it was cut"
        )
    return f"{details} (the token is the one{file})" if file else details


_NO_TOKEN = "is not 'Bearer TOKEN' with a token of this server"
"""The part of a server's message about the form of a token: it names metadata, not a file."""

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


def _sentence(code: str, details: str, peer: Peer, interface: ArgumentNames) -> str:
    """Returns a sentence for gRPC's own messages; the server's are sentences already."""
    address = peer.address
    if code == "UNAVAILABLE":
        return connection_sentence(details, peer, interface)
    if code == "UNAUTHENTICATED" and not (peer.has_token or peer.has_certificate):
        by_flag = interface.has_flags_to_connect
        remedy = "--token-file, or set TREADLE_TOKEN" if by_flag else "token"
        return f"the server at {address} serves known callers only: give {remedy}"
    if code == "UNAUTHENTICATED" and peer.has_token and details:
        return _token_sentence(details, peer)
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


def _status_details(call: grpc.Call) -> bytes:
    """Returns the serialized google.rpc.Status in a call's trailing metadata, if there is one."""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return b""


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


def read_quotas(status: bytes) -> tuple[QuotaViolation, ...]:
    """Reads the violations of the google.rpc.QuotaFailure in a serialized google.rpc.Status.

    Args:
        status: The message's bytes.

    Returns:
        The quotas that are used up; none where there are no such details, or unreadable ones.
    """
    quotas: list[QuotaViolation] = []
    try:
        for detail in submessages(status, 3):
            kind = b"".join(submessages(detail, 1)).rpartition(b"/")[2]
            if kind == b"google.rpc.QuotaFailure":
                body = b"".join(submessages(detail, 2))
                quotas += [_read_quota(each) for each in submessages(body, 1)]
    except DecodeError:
        pass
    return tuple(quotas)


def _read_quota(message: bytes) -> QuotaViolation:
    """Reads a google.rpc.QuotaFailure.Violation: its subject, description, metric and id."""
    subject, description, metric, quota = (_text(message, number) for number in (1, 2, 4, 5))
    return QuotaViolation(quota or metric or subject, description)


def _read_violation(message: bytes) -> Violation:
    """Reads a google.rpc.BadRequest.FieldViolation: the field's path and the reason."""
    return Violation(_text(message, 1), _text(message, 2))


def _text(message: bytes, number: int) -> str:
    """Returns the text in one field of a message, empty where it is not set."""
    return b"".join(submessages(message, number)).decode("utf-8", "replace")
