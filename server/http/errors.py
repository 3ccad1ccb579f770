"""`error_response` answers a request with a status as JSON, as the Connect protocol defines it.

The same object stands in the last message of a stream. Parts of the HTTP address with a form of
their own for errors take the HTTP status and the time of a retry from here.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from starlette.responses import JSONResponse

from treadle.server.errors import StatusError

_Code = grpc.StatusCode

_STATUSES = {
    _Code.CANCELLED: 499,
    _Code.UNKNOWN: 500,
    _Code.INVALID_ARGUMENT: 400,
    _Code.DEADLINE_EXCEEDED: 504,
    _Code.NOT_FOUND: 404,
    _Code.ALREADY_EXISTS: 409,
    _Code.PERMISSION_DENIED: 403,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.FAILED_PRECONDITION: 400,
    _Code.ABORTED: 409,
    _Code.OUT_OF_RANGE: 400,
    _Code.UNIMPLEMENTED: 501,
    _Code.INTERNAL: 500,
    _Code.UNAVAILABLE: 503,
    _Code.DATA_LOSS: 500,
    _Code.UNAUTHENTICATED: 401,
}
"""The HTTP status of each status of gRPC, as the Connect protocol maps them."""

_WORDS = {_Code.CANCELLED: "canceled"}
"""Names that the Connect protocol spells in another way than gRPC."""


class HttpError(StatusError):
    """Ends a request with an HTTP status that its status of gRPC alone does not have.

    Args:
        http_status: The HTTP status.
        code: The status of gRPC.
        message: One sentence for people.
        headers: Headers of the response.
    """

    def __init__(
        self, http_status: int, code: grpc.StatusCode, message: str, **headers: str
    ) -> None:
        super().__init__(code, message)
        self.http_status = http_status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def http_status(error: StatusError) -> int:
    """Returns the HTTP status of an error."""
    return error.http_status if isinstance(error, HttpError) else _STATUSES[error.code]


def http_message(error: StatusError) -> str:
    """Returns the message of an error: what is metadata in gRPC is a header here."""
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        return error.message.replace("the metadata 'authorization", "the header 'Authorization")
    return error.message


def error_headers(error: StatusError) -> dict[str, str]:
    """Returns the headers that a response with an error has: when to retry, or how to log in."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    for detail in error.details:
        retry = _unpacked(detail, error_details_pb2.RetryInfo)
        if retry is not None:
            seconds = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
            headers["retry-after"] = str(math.ceil(seconds))
    return headers


def error_object(error: StatusError) -> dict[str, Any]:
    """Returns an error as the Connect protocol writes it.

    Args:
        error: The error.
    """
    word = _WORDS.get(error.code, error.code.name.lower())
    shown: dict[str, Any] = {"code": word, "message": http_message(error)}
    details = [_detail(detail) for detail in error.details]
    if details:
        shown["details"] = details
    return shown


def too_large(most_bytes: int) -> StatusError:
    """Returns the error of a body or message that is too large.

    Args:
        most_bytes: Bytes of the largest one.
    """
    text = f"the request has more than {most_bytes:,} bytes, the most that the server accepts"
    return HttpError(413, _Code.RESOURCE_EXHAUSTED, text)


def error_response(error: StatusError) -> JSONResponse:
    """Returns the response to a request that ended with an error."""
    return JSONResponse(error_object(error), http_status(error), error_headers(error))


def _detail(detail: Any) -> dict[str, Any]:
    packed = detail
    if not isinstance(detail, any_pb2.Any):
        packed = any_pb2.Any()
        packed.Pack(detail)
    shown = {
        "type": packed.TypeName(),
        "value": base64.b64encode(packed.value).decode().rstrip("="),
    }
    kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2], None)
    if kind is not None:
        shown["debug"] = MessageToDict(kind.FromString(packed.value))
    return shown


def _unpacked(detail: Any, kind: Any) -> Any:
    """Returns a detail as a message of a kind; None where it is of another one."""
    if isinstance(detail, kind):
        return detail
    if isinstance(detail, any_pb2.Any) and detail.Is(kind.DESCRIPTOR):
        return kind.FromString(detail.value)
    return None
