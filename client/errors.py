"""`TreadleError` and its kinds: everything that can fail between a caller and a Treadle server.

    TreadleError
    ├── InputError                   the caller's own arguments or files; nothing was sent
    └── ServerError                  a call failed; `.code` is the gRPC status
        ├── InvalidArgumentError     the request is at fault; `.violations` names the fields
        ├── NotFoundError            no such model, version or job
        ├── FailedPreconditionError  not in this state, or something changed meanwhile
        ├── PermissionDeniedError    the caller may not do this
        │   └── UnauthenticatedError     the server does not know the caller, or not any more
        ├── ResourceExhaustedError   full or too large; see `.retry_delay_s`
        │   └── QuotaExceededError       a quota of the caller is used up; `.quota` names it
        ├── DeadlineExceededError    it took longer than `timeout_s` or the server's limit
        ├── CancelledError           the call, or the job that it followed, was cancelled
        ├── UnimplementedError       the server does not offer this call
        ├── InternalError            the server failed
        └── UnavailableError         there is no server at the address, or the connection broke

`str(error)` is a sentence for the user.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

from treadle.client.argument_names import ArgumentNames, argument_of, rename_fields


class Violation(NamedTuple):
    """A field of a request that is at fault."""

    field: str
    """The field's path, such as `spec.network.hidden_size`."""
    description: str
    """The reason, in a sentence."""


class QuotaViolation(NamedTuple):
    """A quota of the caller that is used up."""

    quota: str
    """The quota, such as `tokens_per_minute`."""
    description: str
    """The limit and the use, in a sentence."""


class TreadleError(Exception):
    """The base of every error that this client raises."""

    exit_code: ClassVar[int] = 1
    """The exit code of the command line."""

    def in_names_of(self, interface: ArgumentNames) -> str:
        """Returns the sentence with the names of an interface; `str` has those of Python."""
        return rename_fields(str(self), interface)


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

    def in_names_of(self, interface: ArgumentNames) -> str:
        """Returns the sentence with the names of an interface."""
        return rename_fields(str(self), interface, [self.argument])


class ServerError(TreadleError):
    """A call failed.

    Args:
        message: A sentence for the user.
        code: The gRPC status' name, such as `NOT_FOUND`.
        violations: The request's fields at fault, where the server named them.
        retry_delay_s: Seconds to wait before another try, where the server named them.
        broken: Whether the connection failed, not the request.
        unsent: Whether there was no connection, so that the request has reached no server.
        request_id: The id that the client sent with the call, which is in the logs of the server.
        say: Returns the sentence for an interface. Default: from the message.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        violations: tuple[Violation, ...] = (),
        retry_delay_s: float | None = None,
        broken: bool = False,
        unsent: bool = False,
        request_id: str = "",
        say: Callable[[ArgumentNames], str] | None = None,
    ) -> None:
        super().__init__(message)
        self._say = say
        self.code = code
        self.violations = violations
        self.retry_delay_s = retry_delay_s
        self.broken = broken
        self.unsent = unsent
        self.request_id = request_id

    def in_names_of(self, interface: ArgumentNames) -> str:
        """Returns the sentence with the names of an interface."""
        if self._say is not None:
            return self._say(interface)
        return rename_fields(str(self), interface, self.arguments)

    def placed(self, where: str) -> Self:
        """Returns the same error with its place before the sentence, such as "line 7"."""
        placed = copy.copy(self)
        placed.args = (f"{where}: {self}",)
        placed._say = lambda interface: f"{where}: {self.in_names_of(interface)}"
        return placed

    def followed(self, remedy: str) -> Self:
        """Returns the same error with a clause after the sentence, such as "begin a new one"."""
        longer = copy.copy(self)
        longer.args = (f"{self}; {remedy}",)
        longer._say = lambda interface: f"{self.in_names_of(interface)}; {remedy}"
        return longer

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


class UnauthenticatedError(PermissionDeniedError):
    """The server requires a token or a certificate, or does not accept the one it got."""


class ResourceExhaustedError(ServerError):
    """The server is full, or the message too large; see `retry_delay_s`."""


class QuotaExceededError(ResourceExhaustedError):
    """A quota of the caller is used up; see `quota` and `retry_delay_s`."""

    quotas: tuple[QuotaViolation, ...] = ()
    """The quotas that are used up."""

    @property
    def quota(self) -> str:
        """The quota that is used up, the first one of several."""
        return self.quotas[0].quota if self.quotas else ""


class DeadlineExceededError(ServerError):
    """The call took longer than its timeout or the server's limit."""


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
    "UNAUTHENTICATED": UnauthenticatedError,
    "UNAVAILABLE": UnavailableError,
    "UNIMPLEMENTED": UnimplementedError,
    "UNKNOWN": InternalError,
}
"""Every gRPC status but OK, by name, so that this module loads without gRPC."""


def text_at_fault(error: InvalidArgumentError) -> int | None:
    """Returns the index of the text at fault in a request; None where no text is."""
    for violation in error.violations:
        if found := re.match(r"texts\[(\d+)\]", violation.field):
            return int(found[1])
    return None
