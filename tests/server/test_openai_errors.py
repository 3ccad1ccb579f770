"""Errors of RPCs as OpenAI's clients expect them."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from treadle.server.access.quota_book import quota_exceeded
from treadle.server.errors import (
    StatusError,
    exhausted,
    from_packed,
    invalid,
    job_not_found,
    not_found,
    precondition,
    unavailable,
)
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.rpc_errors import from_status

CASES: dict[str, tuple[StatusError, int, str, str | None, str | None]] = {
    "invalid": (invalid([("a.b", "a.b is 3")]), 400, "invalid_request_error", "a", None),
    "precondition": (precondition("it is over"), 400, "invalid_request_error", None, None),
    "credential": (
        StatusError(grpc.StatusCode.UNAUTHENTICATED, "no"),
        401,
        "authentication_error",
        None,
        "invalid_api_key",
    ),
    "role": (
        StatusError(grpc.StatusCode.PERMISSION_DENIED, "no"),
        403,
        "permission_error",
        None,
        "permission_denied",
    ),
    "model": (not_found("m"), 404, "invalid_request_error", "model", "model_not_found"),
    "job": (job_not_found("j"), 404, "invalid_request_error", None, None),
    "full": (exhausted("full", 2.5), 429, "rate_limit_error", None, "rate_limit_exceeded"),
    "quota": (
        quota_exceeded("ann", "calls", 2, "2 of 2 run", 1.0),
        429,
        "rate_limit_error",
        None,
        "rate_limit_exceeded",
    ),
    "bytes": (
        quota_exceeded("ann", "corpus_bytes", 2, "2 of 2", 60.0),
        429,
        "rate_limit_error",
        None,
        "insufficient_quota",
    ),
    "closing": (unavailable("it shuts down"), 503, "server_error", None, None),
    "fault": (StatusError(grpc.StatusCode.INTERNAL, "oh"), 500, "server_error", None, None),
    "damage": (StatusError(grpc.StatusCode.DATA_LOSS, "oh"), 500, "server_error", None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_keeps_what_it_says(case: str) -> None:
    error, status, kind, param, code = CASES[case]
    for raised in (error, from_packed(error.packed(), error.message)):
        response = from_status(raised).response()
        assert response.status_code == status
        shown = json.loads(bytes(response.body))["error"]
        assert shown == {"message": error.message, "type": kind, "param": param, "code": code}


def headers(error: StatusError) -> Any:
    return from_status(error).response().headers


def test_headers_say_when_to_retry_and_how_to_log_in() -> None:
    assert headers(exhausted("full", 2.5))["retry-after"] == "3"
    assert headers(CASES["credential"][0])["www-authenticate"] == "Bearer"
    assert headers(CASES["bytes"][0])["x-should-retry"] == "false"  # nothing changes by itself
    assert "x-should-retry" not in headers(CASES["quota"][0])


def test_fields_have_the_names_of_the_request() -> None:
    error = invalid([("token_biases[3].token", "token_biases[3] must be one token")])
    shown = from_status(error, {"token_biases": "logit_bias"})
    assert (shown.param, shown.message) == ("logit_bias", "logit_bias[3] must be one token")


def test_a_text_that_is_not_ascii_stays_readable() -> None:
    assert "ä" in OpenAIError(400, "ä").body().decode()
