"""Errors: one table, complete; details read without the packages that define them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]

from treadle.client import (
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServerError,
    TreadleError,
    UnavailableError,
    UnimplementedError,
    Violation,
    errors,
)
from treadle.client.messages.status import from_rpc_error, read_status

from .fake import FakeServer, FakeService, status


class Refusal(grpc.RpcError):
    """What a call raises, as far as it is looked at."""

    def __init__(self, code: grpc.StatusCode, details: str = "", trailers: Any = ()) -> None:
        self._values = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._values[0]

    def details(self) -> str:
        return self._values[1]

    def trailing_metadata(self) -> Any:
        return self._values[2]


def test_the_table_names_every_status_but_ok() -> None:
    assert set(errors.ERRORS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_the_docstring_draws_every_class() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, TreadleError)
    }
    assert classes == {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_status_becomes_an_error_with_a_sentence(code: grpc.StatusCode) -> None:
    error = from_rpc_error(Refusal(code), "host:1")
    assert type(error) is errors.ERRORS[code.name]
    assert error.code == code.name
    assert len(str(error)) > 10


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed "
            "to connect to remote host: connect: Connection refused (111)",
            "nothing listens at host:1: start treadle-server, or give another address",
        ),
        ("DNS resolution failed for host:1", "the name does not resolve"),
        ("Socket closed", "the connection broke"),
        ("something new", "something new"),
        ("the server is shutting down", "the server is shutting down"),
    ],
)
def test_connection_trouble_is_put_into_words(details: str, expected: str) -> None:
    error = from_rpc_error(Refusal(grpc.StatusCode.UNAVAILABLE, details), "host:1")
    assert isinstance(error, UnavailableError)
    assert expected in str(error)


def test_violations_reach_the_caller(client: Client, service: FakeService) -> None:
    field = error_details_pb2.BadRequest.FieldViolation
    request = error_details_pb2.BadRequest(
        field_violations=[
            field(field="spec.network.layers", description="layers must be 1 to 8"),
            field(field="spec.data.window", description="window is zu groß"),
        ]
    )
    info = error_details_pb2.ErrorInfo(reason="X", domain="d")
    service.failure = status(code_pb2.INVALID_ARGUMENT, "two things are wrong", info, request)
    with pytest.raises(InvalidArgumentError, match="two things are wrong") as caught:
        client.server_info()
    assert caught.value.violations == (
        Violation("spec.network.layers", "layers must be 1 to 8"),
        Violation("spec.data.window", "window is zu groß"),
    )
    assert caught.value.retry_delay_s is None


def test_the_retry_delay_reaches_the_caller(client: Client, service: FakeService) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    service.failure = status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", retry)
    with pytest.raises(ResourceExhaustedError) as caught:
        client.generate("m").result()
    assert caught.value.retry_delay_s == 2.5
    assert caught.value.violations == ()


def test_a_status_stands_without_details(client: Client, service: FakeService) -> None:
    service.failure = status(code_pb2.NOT_FOUND, "there is no model 'm'")
    with pytest.raises(NotFoundError, match="there is no model 'm'") as caught:
        client.get_model("m")
    assert caught.value.violations == ()


@pytest.mark.parametrize("garbage", [b"\xff", b"\x1a\x02\xff\xff", b"\x1a\x04\x0a\x02hi", b""])
def test_unreadable_details_are_left_out(garbage: bytes) -> None:
    assert read_status(garbage) == ((), None)


def test_nothing_listens() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(UnavailableError, match=r"nothing listens at 127\.0\.0\.1:1"),
    ):
        client.server_info()


def test_a_timeout_ends_a_call(server: FakeServer) -> None:
    with (
        Client(server.address, timeout_s=0.2) as client,
        pytest.raises(DeadlineExceededError, match="took longer than the timeout allows"),
    ):
        client.generate("stuck").result()


def test_what_the_server_says_of_its_own_limit_is_kept() -> None:
    said = "no message for 5 seconds; the upload was given up"
    error = from_rpc_error(Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, said), "host:1")
    assert isinstance(error, DeadlineExceededError)
    assert str(error) == said


def test_a_server_without_the_service_is_recognized() -> None:
    pool = ThreadPoolExecutor(1)
    bare = grpc.server(pool)
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(UnimplementedError, match="Treadle"):
        client.server_info()
    bare.stop(None).wait()
    pool.shutdown()


def test_server_errors_have_defaults() -> None:
    error = ServerError("no")
    assert (error.code, error.violations, error.retry_delay_s) == ("UNKNOWN", (), None)
