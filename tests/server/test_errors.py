"""Statuses of errors: the table, the details, and the way through the pipe of a worker."""

from __future__ import annotations

import errno
import inspect
import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from treadle.model import errors as model_errors
from treadle.model.errors import ConfigError, ModelError, UnknownSymbolError
from treadle.server.errors import (
    CODES,
    StatusError,
    from_exception,
    from_model,
    invalid,
    not_found,
)
from treadle.server.failures import (
    BlobsUnavailableError,
    DamagedBlobError,
    DatabaseUnavailableError,
    LostLeaseError,
)
from treadle.server.jobs import worker_protocol

KINDS = [
    kind
    for _, kind in inspect.getmembers(model_errors, inspect.isclass)
    if issubclass(kind, ModelError)
]


def test_the_table_knows_every_error_of_the_model_package() -> None:
    assert set(CODES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_and_crosses_the_pipe(kind: type[ModelError]) -> None:
    error = kind("the thing is wrong; repair it")
    crossed = worker_protocol.unpack_error(
        worker_protocol.decode(worker_protocol.encode(worker_protocol.pack_error(error)))
    )
    assert type(crossed) is kind
    status = from_exception(crossed, "a test", field="corpus_chunk")
    assert (status.code, status.message) == (CODES[kind], "the thing is wrong; repair it")


def test_all_faults_of_a_config_cross_the_pipe_under_their_new_names() -> None:
    error = ConfigError("a.b is wrong", "a.b")
    error.others = (ConfigError("c is wrong", "c"),)
    crossed = worker_protocol.unpack_error(worker_protocol.pack_error(error))
    status = from_exception(crossed, "a test", rename=lambda field: f"spec.{field}")
    (details,) = status.details
    assert isinstance(details, error_details_pb2.BadRequest)
    assert [item.field for item in details.field_violations] == ["spec.a.b", "spec.c"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (MemoryError("too much"), grpc.StatusCode.ABORTED),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
def test_other_errors_cross_the_pipe_too(error: Exception, code: grpc.StatusCode) -> None:
    crossed = worker_protocol.unpack_error(worker_protocol.pack_error(error))
    assert from_exception(crossed, "a test").code is code


def test_an_unforeseen_error_tells_an_id_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        status = from_exception(KeyError("a secret"), "a test")
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    assert status.message.split()[2].rstrip(";") in caplog.text
    assert "a secret" in caplog.text


@pytest.mark.parametrize("kind", [BlobsUnavailableError, DatabaseUnavailableError, LostLeaseError])
def test_what_passes_by_itself_is_unavailable_and_says_when_to_try_again(
    kind: type[Exception],
) -> None:
    status = from_exception(kind("host db.example of user ann"), "a test")
    assert status.code is grpc.StatusCode.UNAVAILABLE
    assert "db.example" not in status.message
    (details,) = status.details
    assert isinstance(details, error_details_pb2.RetryInfo)
    assert details.retry_delay.ToTimedelta().total_seconds() > 0


def test_a_damaged_blob_is_data_loss_and_only_the_log_names_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = from_exception(DamagedBlobError(errno.EIO, "blob corpora/1 in s3://b"), "a test")
    assert status.code is grpc.StatusCode.DATA_LOSS
    assert "s3://b" not in status.message
    assert "blob corpora/1 in s3://b" in caplog.text


def test_a_symbol_is_about_the_field_it_stands_in() -> None:
    status = from_model(UnknownSymbolError("no 'x' here", "x", 3), field="texts[2]")
    (details,) = status.details
    assert isinstance(details, error_details_pb2.BadRequest)
    assert details.field_violations[0].field == "texts[2]"


@pytest.mark.parametrize(
    "error",
    [
        invalid([("ß" * 5000, "Ω" * 5000)] * 500),
        not_found("m" * 100, 2**63),
        StatusError(grpc.StatusCode.INTERNAL, "ü" * 100_000),
    ],
)
def test_details_fit_what_clients_take(error: StatusError) -> None:
    # gRPC percent-encodes the message: three bytes for each byte beyond ASCII.
    message = sum(3 * len(letter.encode()) for letter in error.message)
    packed = error.packed()
    assert status_pb2.Status.FromString(packed).message == error.message
    assert message + len(packed) * 4 / 3 < 8192
