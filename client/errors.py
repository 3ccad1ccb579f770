"""What can go wrong between a caller and a Treadle server.

    TreadleError
    ├── InputError                   the caller's own arguments or files; nothing was sent
    └── ServerError                  a call failed; `.code` is the gRPC status
        ├── InvalidArgumentError     the request is at fault; `.violations` names the fields
        ├── NotFoundError            no such model, version or job
        ├── FailedPreconditionError  not in this state, or something changed meanwhile
        ├── PermissionDeniedError    whatever stands before the server refused the caller
        ├── ResourceExhaustedError   full or too large; `.retry_delay_s` says when to come back
        ├── DeadlineExceededError    it took longer than `timeout_s`, or than the server lets it
        ├── CancelledError           the call, or the job that it followed, was cancelled
        ├── UnimplementedError       the server does not offer this call
        ├── InternalError            the server failed
        └── UnavailableError         there is no server at the address, or it went away

`str(error)` is a sentence that can be shown to a user.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, cast

from treadle.client.wording import PYTHON, Words, argument_of, reword

if TYPE_CHECKING:
    import grpc

DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that holds a serialized google.rpc.Status."""


class Violation(NamedTuple):
    """One field of a request that the server found fault with."""

    field: str
    """The field's path, such as `spec.network.hidden_size`."""
    description: str
    """What is wrong with it, in a sentence."""


class TreadleError(Exception):
    """Anything that this client raises by intent."""

    exit_code: ClassVar[int] = 1
    """What the command line exits with."""

    def worded(self, words: Words) -> str:
        """Returns the sentence in the words of an interface; `str` is that for Python."""
        return reword(str(self), words)


class InputError(TreadleError):
    """The caller's arguments or files cannot be used; nothing reached the server.

    Args:
        message: A sentence for the user.
        argument: The argument at fault, where the sentence names one.
    """

    exit_code = 2

    def __init__(self, message: str, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument

    def worded(self, words: Words) -> str:
        """See `TreadleError.worded`."""
        return reword(str(self), words, [self.argument])


class ServerError(TreadleError):
    """A call failed.

    Args:
        message: A sentence for the user.
        code: The gRPC status' name, such as `NOT_FOUND`.
        violations: The request's fields at fault, where the server named them.
        retry_delay_s: Seconds to wait before another try, where the server said so.
        broken: Whether the connection failed rather than what was asked for.
        say: Makes the sentence for an interface; None: from the message.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        violations: tuple[Violation, ...] = (),
        retry_delay_s: float | None = None,
        broken: bool = False,
        say: Callable[[Words], str] | None = None,
    ) -> None:
        super().__init__(message)
        self._say = say
        self.code = code
        self.violations = violations
        self.retry_delay_s = retry_delay_s
        self.broken = broken

    def worded(self, words: Words) -> str:
        """See `TreadleError.worded`."""
        if self._say is not None:
            return self._say(words)
        return reword(str(self), words, self.arguments)

    def placed(self, where: str) -> Self:
        """Returns the same error with what it is about in front of its sentence."""
        return type(self)(
            f"{where}: {self}",
            code=self.code,
            violations=self.violations,
            retry_delay_s=self.retry_delay_s,
            broken=self.broken,
            say=lambda words: f"{where}: {self.worded(words)}",
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that the fields at fault come from."""
        return tuple(argument_of(violation.field) for violation in self.violations)


class InvalidArgumentError(ServerError):
    """The request is at fault; `violations` names its fields."""


class NotFoundError(ServerError):
    """There is no such model, version or job."""


class FailedPreconditionError(ServerError):
    """The server's state does not allow it, or changed meanwhile."""


class PermissionDeniedError(ServerError):
    """The caller may not do this."""


class ResourceExhaustedError(ServerError):
    """The server is full, or the message too large; see `retry_delay_s`."""


class DeadlineExceededError(ServerError):
    """The call took longer than its timeout, or than the server lets it."""


class CancelledError(ServerError):
    """The call was cancelled, here or by the server, or its job was."""


class UnimplementedError(ServerError):
    """The server does not offer this call."""


class InternalError(ServerError):
    """The server failed."""


class UnavailableError(ServerError):
    """There is no server at the address, or the connection broke."""

    exit_code = 3


ERRORS: dict[str, type[ServerError]] = {
    "ABORTED": FailedPreconditionError,
    "ALREADY_EXISTS": FailedPreconditionError,
    "CANCELLED": CancelledError,
    "DATA_LOSS": InternalError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "FAILED_PRECONDITION": FailedPreconditionError,
    "INTERNAL": InternalError,
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "OUT_OF_RANGE": InvalidArgumentError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAUTHENTICATED": PermissionDeniedError,
    "UNAVAILABLE": UnavailableError,
    "UNIMPLEMENTED": UnimplementedError,
    "UNKNOWN": InternalError,
}
"""Every gRPC status but OK, by name, so that this module loads without gRPC."""

# What gRPC itself says about a connection, and what that means. The order matters: the first
# match wins, and "failed to connect" frames most of the others.
_CONNECTION_TROUBLE = (
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
"""What gRPC says of a stream whose connection broke, under whatever status."""


def from_rpc_error(error: grpc.RpcError, address: str) -> ServerError:
    """Turns gRPC's error into this module's.

    Args:
        error: What a call raised.
        address: The server's address, for the sentence.

    Returns:
        The error to raise in its place.
    """
    call = cast("grpc.Call", error)
    code = call.code().name
    details = call.details() or ""
    violations, retry_delay_s = _read_details(call)
    at_fault = [argument_of(violation.field) for violation in violations]

    def say(words: Words) -> str:
        return reword(_sentence(code, details, address, words), words, at_fault)

    return ERRORS.get(code, InternalError)(
        say(PYTHON),
        code=code,
        violations=violations,
        retry_delay_s=retry_delay_s,
        broken=_is_break(code, details),
        say=say,
    )


def text_at_fault(error: InvalidArgumentError) -> int | None:
    """Tells which of a request's texts is at fault, from 0; None where none of them is."""
    for violation in error.violations:
        if found := re.match(r"texts\[(\d+)\]", violation.field):
            return int(found[1])
    return None


_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)", re.IGNORECASE)
"""What gRPC says of a message that one side does not send or take."""


def _is_break(code: str, details: str) -> bool:
    """Tells a broken connection from an answer.

    A server that goes away ends what it streams as UNAVAILABLE or, saying nothing, as CANCELLED.
    """
    if code == "UNAVAILABLE" or (code == "CANCELLED" and details in ("", "CANCELLED")):
        return True
    by_grpc = code in ("ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN")
    return by_grpc and _BREAK.search(details) is not None


def _sentence(code: str, details: str, address: str, words: Words) -> str:
    """Puts gRPC's own messages into words; the server's are sentences already."""
    if code == "UNAVAILABLE":
        return _connection_sentence(details, address, words)
    if code == "RESOURCE_EXHAUSTED" and (sizes := _TOO_LARGE.search(details)):
        size, most = (int(number) for number in sizes.groups())
        stream = "`treadle score-stream`" if words.are_flags else "`score_stream`"
        return (
            f"what was to be sent takes {size:,} bytes, and a message at most {most:,}: send less "
            f"at once; {stream} scores a text of any length"
        )
    if code == "DEADLINE_EXCEEDED" and (not details or "Deadline Exceeded" in details):
        return f"the server at {address} took longer than the timeout allows"
    if code == "CANCELLED" and details in ("", "Locally cancelled by application!", "CANCELLED"):
        return "the call was cancelled"
    if code == "UNIMPLEMENTED":
        return f"the server at {address} does not offer this call: is it a Treadle of this version?"
    return details or f"the server at {address} failed with {code} and no explanation"


def _connection_sentence(details: str, address: str, words: Words) -> str:
    """Says why there is no connection, or what the server says about itself."""
    if re.search(r"connection refused", details, re.IGNORECASE):
        another = "name another with --server" if words.are_flags else "give another address"
        return f"nothing listens at {address}: start treadle-server, or {another}"
    for pattern, meaning in _CONNECTION_TROUBLE:
        if re.search(pattern, details, re.IGNORECASE):
            return f"cannot reach a Treadle server at {address}: {meaning}"
    return details or f"cannot reach a Treadle server at {address}"


def _read_details(call: grpc.Call) -> tuple[tuple[Violation, ...], float | None]:
    """Finds BadRequest and RetryInfo in a call's trailing metadata."""
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
        google.rpc.RetryInfo. What is missing or unreadable is left out: the status' code and
        message stand without it.
    """
    from google.protobuf.message import DecodeError

    from treadle.client.wire import integer, submessages

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
    """Reads a google.rpc.BadRequest.FieldViolation: the field's path, then what is wrong."""
    from treadle.client.wire import submessages

    field, description = (
        b"".join(submessages(message, number)).decode("utf-8", "replace") for number in (1, 2)
    )
    return Violation(field, description)
