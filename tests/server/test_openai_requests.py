"""Any JSON at all is a request of OpenAI's API, or a 400 that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.server.http.openai import embeddings
from treadle.server.http.openai.completion_request import read_completion_request
from treadle.server.http.openai.json_fields import read_object
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.tuning.request import read_tuning_request

READERS: dict[str, Any] = {
    "completions": read_completion_request,
    "embeddings": embeddings._read,
    "fine-tuning": read_tuning_request,
}
NAMES = [
    *("model", "prompt", "n", "best_of", "stop", "logprobs", "logit_bias", "max_tokens", "echo"),
    *("stream", "stream_options", "include_usage", "temperature", "seed", "state", "regex", "user"),
    *("suffix", "beam_width", "input", "encoding_format", "dimensions", "training_file", "method"),
    *("hyperparameters", "n_epochs", "batch_size", "type", "supervised", "unknown_policy"),
    "inference_precision",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 20),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["m", "m@3", "job:a", "new:lstm", "new:", "auto", "float", "supervised"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "1", "-1", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def refusal(read: Callable[[Any], object], data: Any) -> OpenAIError | None:
    """Returns the error with which something is refused; None where it is read."""
    try:
        read(data)
    except OpenAIError as error:
        return error
    return None


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=100, deadline=None)
@given(data=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_a_request_is_read_or_refused(reader: str, data: dict[str, Any]) -> None:
    error = refusal(READERS[reader], data)
    if error is not None:
        assert error.status in (400, 404)
        shown = json.loads(error.body())["error"]
        assert shown["message"]
        assert shown["param"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_an_object_or_refused(body: bytes) -> None:
    error = refusal(read_object, body)
    if error is None:
        assert isinstance(read_object(body), dict)
    else:
        assert error.status == 400
        json.loads(error.body())


@pytest.mark.parametrize("reader", ["completions", "embeddings"])
def test_a_precision_is_one_of_two_words(reader: str) -> None:
    asked = {"model": "m", "input": "a"} if reader == "embeddings" else {"model": "m"}
    error = refusal(READERS[reader], {**asked, "inference_precision": "bf16"})
    assert error is not None
    shown = json.loads(error.body())["error"]
    assert shown["param"] == "inference_precision"
    assert shown["message"] == "inference_precision must be 'fp32' or 'int8', not \"bf16\""
    for word in ("fp32", "int8"):
        assert refusal(READERS[reader], {**asked, "inference_precision": word}) is None
