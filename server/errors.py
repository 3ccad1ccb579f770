"""`StatusError` ends an RPC with a status; `from_exception` maps every exception to one.

::

    StatusError                     the status that it holds
    any ModelError                  see `CODES`
    a failure of the machine        see `_FAILURES`: no space, too many open files, a database or
                                    blobs that are damaged or cannot be reached, too little memory
    anything else                   INTERNAL with an id that the log contains; never a traceback

Statuses carry details of google.rpc: INVALID_ARGUMENT carries BadRequest. NOT_FOUND,
ALREADY_EXISTS and DATA_LOSS carry ResourceInfo. RESOURCE_EXHAUSTED and UNAVAILABLE carry RetryInfo;
QuotaFailure as well where it is a quota of the caller.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import (  # type: ignore[import-untyped]
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from treadle.model.errors import (
    ConfigError,
    CorpusError,
    EffortError,
    EncodingError,
    ForeignStateError,
    LayerError,
    LoadError,
    ModelError,
    PackageError,
    StateError,
    TokenError,
    TrainingError,
    UnknownSymbolError,
)
from treadle.server.failures import (
    BlobsUnavailableError,
    DamagedBlobError,
    DamagedDatabaseError,
    DatabaseUnavailableError,
    LostLeaseError,
    NoSpaceError,
    is_full,
    is_out_of_files,
)

logger = logging.getLogger(__name__)

CODES: dict[type[ModelError], grpc.StatusCode] = {
    # A request that is legal but does not fit this model, for instance a policy that it lacks.
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    EffortError: grpc.StatusCode.INVALID_ARGUMENT,
    CorpusError: grpc.StatusCode.INVALID_ARGUMENT,
    EncodingError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownSymbolError: grpc.StatusCode.INVALID_ARGUMENT,
    LoadError: grpc.StatusCode.DATA_LOSS,
    # Raised for callers of `treadle.model.network.layer`, which no request reaches.
    LayerError: grpc.StatusCode.FAILED_PRECONDITION,
    # The same spec would fail again, but it is not malformed.
    TrainingError: grpc.StatusCode.FAILED_PRECONDITION,
    StateError: grpc.StatusCode.INVALID_ARGUMENT,
    ForeignStateError: grpc.StatusCode.FAILED_PRECONDITION,
    # Neither the request nor the server is at fault, and the same call would fail again.
    TokenError: grpc.StatusCode.FAILED_PRECONDITION,
    PackageError: grpc.StatusCode.FAILED_PRECONDITION,
}
"""The status code of every error of the model package."""

JOB_RESOURCE = "treadle.v1.Job"
FILE_RESOURCE = "treadle.v1.File"
CORPUS_RESOURCE = "treadle.v1.CorpusFile"
MODEL_RESOURCE = "treadle.v1.Model"
"""The type of resource that ResourceInfo names."""

# Clients accept 8 KiB of metadata. It contains the message twice, once with three bytes for each
# byte beyond ASCII, and the details in base64.
_MAX_MESSAGE_BYTES = 700
_MAX_FIELD_BYTES = 100
_MAX_TEXT_BYTES = 300
_MAX_VIOLATIONS_BYTES = 3000

Violation = tuple[str, str]
"""The dotted path of a request's field, and what is wrong with it."""


class StatusError(Exception):
    """Ends an RPC with a status.

    Args:
        code: The status code.
        message: One sentence for people.
        details: Messages of google.rpc that say the same to programs.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        super().__init__(message)
        self.code = code
        self.message = shorten(message, _MAX_MESSAGE_BYTES)
        self.details = details

    def packed(self) -> bytes:
        """Returns the google.rpc.Status for the `grpc-status-details-bin` trailer."""
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            if isinstance(detail, any_pb2.Any):
                packed.CopyFrom(detail)
            else:
                packed.Pack(detail)
            status.details.append(packed)
        return bytes(status.SerializeToString())


def shorten(text: str, size: int) -> str:
    """Returns `text`; a longer one is cut to `size` bytes of UTF-8 and ends with an ellipsis."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return data.decode()
    return data[: size - 3].decode(errors="ignore") + "…"


def invalid(violations: Iterable[Violation]) -> StatusError:
    """Returns INVALID_ARGUMENT with one violation for each field at fault, as many as fit."""
    request = error_details_pb2.BadRequest()
    for field, text in violations:
        request.field_violations.add(
            field=shorten(field, _MAX_FIELD_BYTES), description=shorten(text, _MAX_TEXT_BYTES)
        )
        if request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del request.field_violations[-1]
            break
    message = "; ".join(violation.description for violation in request.field_violations)
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message, request)


def not_found(model: str, version: int = 0) -> StatusError:
    """Returns NOT_FOUND for a model, or for one of its versions if `version` is not 0."""
    what = f"version {version} of model {model!r}" if version else f"model {model!r}"
    return StatusError(grpc.StatusCode.NOT_FOUND, f"there is no {what}", _resource(model, version))


def damaged(model: str, version: int, error: Exception) -> StatusError:
    """Returns DATA_LOSS for a version whose file cannot be read."""
    message = f"version {version} of model {model!r} cannot be read: {error}"
    return StatusError(CODES[LoadError], message, _resource(model, version))


def job_damaged(job: str, fault: str) -> StatusError:
    """Returns DATA_LOSS for a job whose row in the database cannot be used."""
    message = (
        f"the server's record of job {job!r} is damaged ({fault}): delete the job, or stop the "
        "server and run treadle-server --fsck --repair"
    )
    resource = error_details_pb2.ResourceInfo(
        resource_type=JOB_RESOURCE, resource_name=shorten(job, _MAX_FIELD_BYTES)
    )
    return StatusError(grpc.StatusCode.DATA_LOSS, message, resource)


def job_not_found(job: str) -> StatusError:
    """Returns NOT_FOUND for a job."""
    return _missing(f"there is no job {job!r}", JOB_RESOURCE, job)


def file_not_found(file: str) -> StatusError:
    """Returns NOT_FOUND for a file."""
    shown = shorten(file, _MAX_FIELD_BYTES)
    return _missing(f"there is no file {shown!r}", FILE_RESOURCE, file)


def already_exists(message: str, job: str) -> StatusError:
    """Returns ALREADY_EXISTS: another job has the request id."""
    resource = error_details_pb2.ResourceInfo(resource_type=JOB_RESOURCE, resource_name=job)
    return StatusError(grpc.StatusCode.ALREADY_EXISTS, message, resource)


def corpus_not_found(sha256: str) -> StatusError:
    """Returns NOT_FOUND for a corpus file that a client expects to be stored."""
    message = f"no corpus file {sha256} is stored here: send its bytes"
    return _missing(message, CORPUS_RESOURCE, sha256)


def unknown_alias(model: str, alias: str) -> StatusError:
    """Returns NOT_FOUND for an alias that a model does not have."""
    message = f"there is no alias {shorten(alias, _MAX_FIELD_BYTES)!r} of model {model!r}"
    return _missing(message, MODEL_RESOURCE, model)


def _missing(message: str, kind: str, name: str) -> StatusError:
    resource = error_details_pb2.ResourceInfo(
        resource_type=kind, resource_name=shorten(name, _MAX_FIELD_BYTES)
    )
    return StatusError(grpc.StatusCode.NOT_FOUND, message, resource)


def precondition(message: str) -> StatusError:
    """Returns FAILED_PRECONDITION: the request is legal, but the current state forbids it."""
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)


def from_packed(packed: bytes, message: str) -> StatusError:
    """Returns the error that `StatusError.packed` packed.

    Args:
        packed: The serialized google.rpc.Status.
        message: The message to use if it cannot be read.
    """
    try:
        status = status_pb2.Status.FromString(packed)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    except (DecodeError, StopIteration):
        code = grpc.StatusCode.OK
    if code is grpc.StatusCode.OK:  # no error is packed as that
        return StatusError(grpc.StatusCode.DATA_LOSS, message)
    return StatusError(code, status.message, *status.details)


def exhausted(message: str, retry_s: float, *details: Message) -> StatusError:
    """Returns RESOURCE_EXHAUSTED; a retry is worthwhile after `retry_s` seconds."""
    return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, _retry(retry_s), *details)


def unavailable(message: str, retry_s: float = 5.0) -> StatusError:
    """Returns UNAVAILABLE; a retry is worthwhile after `retry_s` seconds."""
    return StatusError(grpc.StatusCode.UNAVAILABLE, message, _retry(retry_s))


def aborted(message: str) -> StatusError:
    """Returns ABORTED: the call ended, and its request is not at fault."""
    return StatusError(grpc.StatusCode.ABORTED, message)


def from_model(error: ModelError, field: str, rename: Callable[[str], str] = str) -> StatusError:
    """Returns the status of an error of the model package.

    Args:
        error: The error.
        field: The field of the request that the error is about; a ConfigError names its own.
        rename: Maps the name of a setting, as a ConfigError has it, to that of a field.
    """
    if isinstance(error, ConfigError) and error.field:
        return invalid((rename(fault.field), str(fault)) for fault in error.faults)
    code = CODES[type(error)]
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return invalid([(field, str(error))])
    return StatusError(code, str(error))


def from_exception(
    error: BaseException, doing: str, field: str = "", rename: Callable[[str], str] = str
) -> StatusError:
    """Returns the status of any exception; logs those that callers cannot cause.

    Args:
        error: The exception.
        doing: The operation that failed, for the log.
        field: The field of the request that a ModelError is about.
        rename: As for `from_model`.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, ModelError):
        return from_model(error, field, rename)
    for failure in _FAILURES:
        if failure.matches(error):
            return failure.status(error, doing)
    mark = secrets.token_hex(4)
    logger.error("%s: internal error %s", doing, mark, exc_info=error)
    return StatusError(
        grpc.StatusCode.INTERNAL, f"internal error {mark}; the server's log says more"
    )


@dataclass(frozen=True)
class _Failure:
    """A failure of the machine, which any call may meet, and its status."""

    matches: Callable[[BaseException], bool]
    code: grpc.StatusCode
    message: str
    retry_s: float = 0.0
    """Seconds after which a retry is worthwhile; 0: the status has no RetryInfo."""

    def status(self, error: BaseException, doing: str) -> StatusError:
        """Logs a failure and returns its status."""
        message = self.message
        level = logging.ERROR
        if isinstance(error, NoSpaceError):  # the disk is not full yet, and says how much is free
            message += f": {error.strerror}"
            level = logging.WARNING
        logger.log(level, "%s: %s", doing, str(error) or message)
        details = [_retry(self.retry_s)] if self.retry_s else []
        return StatusError(self.code, message, *details)


def _is_a(kind: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kind)


_FAILURES = (
    _Failure(is_full, grpc.StatusCode.RESOURCE_EXHAUSTED, "the server's disk is full", 60.0),
    _Failure(
        is_out_of_files,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the server has as many files and connections open as it may",
        5.0,
    ),
    _Failure(
        _is_a(DatabaseUnavailableError),
        grpc.StatusCode.UNAVAILABLE,
        "the server's database cannot be reached for now",
        2.0,
    ),
    _Failure(
        _is_a(LostLeaseError),
        grpc.StatusCode.UNAVAILABLE,
        "the job has moved to another server",
        1.0,
    ),
    _Failure(
        _is_a(BlobsUnavailableError),
        grpc.StatusCode.UNAVAILABLE,
        "the store of the server's files cannot be reached for now",
        2.0,
    ),
    _Failure(
        _is_a(DamagedBlobError),
        grpc.StatusCode.DATA_LOSS,
        "a file in the store that the servers share is damaged; the server's log says which",
    ),
    _Failure(
        _is_a(DamagedDatabaseError),
        grpc.StatusCode.DATA_LOSS,
        "the server's database is damaged: stop the server and run treadle-server --fsck --repair",
    ),
    _Failure(
        _is_a(MemoryError),
        grpc.StatusCode.ABORTED,
        "the server has too little memory for this; make the request smaller",
    ),
)
"""The status of every failure of the machine, in the order in which they are tried."""


def _resource(model: str, version: int) -> error_details_pb2.ResourceInfo:
    name = f"{model}/versions/{version}" if version else model
    return error_details_pb2.ResourceInfo(resource_type=MODEL_RESOURCE, resource_name=name)


def _retry(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)
