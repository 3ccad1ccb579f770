"""Requests to generate become settings, with every fault at once."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.model.config import SamplingConfig, TokenizerConfig
from treadle.model.enums import CorpusLayout
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.server.errors import StatusError
from treadle.server.messages import generate_request as convert
from treadle.server.messages.fields import to_json
from treadle.v1 import sequence_pb2 as pb


def violations(error: StatusError) -> dict[str, str]:
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    (details,) = error.details
    assert isinstance(details, error_details_pb2.BadRequest)
    return {item.field: item.description for item in details.field_violations}


def test_sampling_defaults_and_explicit_zeros() -> None:
    assert convert.sampling(pb.GenerateRequest(model="m"), 10**6) == SamplingConfig()
    assert convert.sampling(pb.GenerateRequest(model="m"), 100).max_new_tokens == 100
    request = pb.GenerateRequest(model="m", temperature=0, max_new_tokens=0, seed=0)
    sampling = convert.sampling(request, 100)
    assert (sampling.temperature, sampling.max_new_tokens, sampling.seed) == (0, 0, 0)
    assert convert.sampling(pb.GenerateRequest(model="m", min_p=0.25), 100).min_p == 0.25


def test_all_faults_of_a_generate_request_are_told_at_once() -> None:
    request = pb.GenerateRequest(
        temperature=-1,
        top_p=0,
        min_p=1.5,
        max_new_tokens=101,
        stop_sequences=["a", ""],
        unknown_policy=8,  # type: ignore[arg-type]
    )
    with pytest.raises(StatusError) as caught:
        convert.sampling(request, 100)
    assert set(violations(caught.value)) == {
        "model",
        "temperature",
        "top_p",
        "min_p",
        "max_new_tokens",
        "stop_sequences[1]",
        "unknown_policy",
    }


def request_of(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="m", **fields)


def test_every_setting_arrives() -> None:
    request = request_of(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        typical_p=0.75,
        repetition_penalty=2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        seed=7,
        max_new_tokens=9,
        min_new_tokens=2,
        stop_sequences=["a"],
        max_time_s=1.5,
        ranks=True,
        top_log_probabilities=4,
        regex="a*",
        unknown_policy=pb.UNKNOWN_POLICY_SKIP,
    )
    sampling = convert.sampling(request, 100)
    for name, value in sampling.to_json().items():
        if name in ("best_of", "token_biases", "banned_tokens", "forced_tokens"):
            continue
        assert value != SamplingConfig().to_json()[name], name
    assert convert.sampling(request_of(best_of=5, n=5), 100).best_of == 5


@pytest.mark.parametrize(
    ("fields", "faults"),
    [
        ({"n": 257}, {"n"}),
        ({"n": 3, "best_of": 2}, {"n"}),
        ({"best_of": 65}, {"best_of"}),
        ({"best_of": 2, "temperature": 0.0, "seed": 0}, {"temperature", "seed"}),
        ({"best_of": 2, "typical_p": 0.5, "top_k": 1}, {"typical_p", "top_k"}),
        ({"typical_p": 0.0}, {"typical_p"}),
        ({"repetition_penalty": 0.0}, {"repetition_penalty"}),
        ({"max_time_s": 0.0}, {"max_time_s"}),
        ({"top_log_probabilities": 21}, {"top_log_probabilities"}),
        ({"regex": "a" * 4097}, {"regex"}),
        ({"presence_penalty": 101}, {"presence_penalty"}),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], faults: set[str]) -> None:
    with pytest.raises(StatusError) as caught:
        convert.sampling(request_of(**fields), 100)
    assert set(violations(caught.value)) == faults
    if fields == {"best_of": 65}:
        assert "from 1 to 64, not 65" in str(caught.value)


def with_tokens(request: pb.GenerateRequest, tokenizer: Tokenizer) -> SamplingConfig:
    """The settings, once all steps are taken."""
    steps = convert.with_tokens(SamplingConfig(), request, tokenizer)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            made: SamplingConfig = stop.value
            return made


def test_tokens_are_named_by_id_text_or_as_the_end() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"], CorpusLayout.LINES)
    request = request_of(
        token_biases=[pb.TokenBias(token=pb.TokenReference(text="b"), bias=-2.5)],
        banned_tokens=[pb.TokenReference(id=2), pb.TokenReference(end=True)],
        forced_tokens=[pb.TokenReference(text="cab"), pb.TokenReference(id=0)],
    )
    sampling = with_tokens(request, tokenizer)
    assert sampling.token_biases == ((1, -2.5),)
    assert sampling.banned_tokens == (2, tokenizer.end)
    assert sampling.forced_tokens == (2, 0, 1, 0)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (pb.TokenReference(), "by its id"),
        (pb.TokenReference(text="ab"), "one token of the vocabulary, and 'ab' is 2 tokens"),
        (pb.TokenReference(text=""), "one token of the vocabulary, and '' is 0 tokens"),
        (pb.TokenReference(text="x"), "'x'"),
        (pb.TokenReference(end=True), "only models of lines"),
    ],
)
def test_what_is_no_token_is_refused(reference: pb.TokenReference, words: str) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"])
    request = request_of(
        banned_tokens=[pb.TokenReference(id=0), reference],
        token_biases=[pb.TokenBias(token=reference, bias=1), pb.TokenBias(bias=1)],
    )
    with pytest.raises(StatusError) as caught:
        with_tokens(request, tokenizer)
    found = violations(caught.value)
    assert set(found) == {"banned_tokens[1]", "token_biases[0]", "token_biases[1]"}
    assert words in found["banned_tokens[1]"]


def test_a_bias_out_of_range_is_named() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"])
    request = request_of(token_biases=[pb.TokenBias(token=pb.TokenReference(id=0), bias=101)])
    with pytest.raises(StatusError) as caught:
        with_tokens(request, tokenizer)
    assert set(violations(caught.value)) == {"token_biases[0]"}


def test_texts_that_name_tokens_are_encoded_in_short_steps() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"])
    request = request_of(banned_tokens=[pb.TokenReference(text="abc" * 100_000)])
    steps = convert.with_tokens(SamplingConfig(), request, tokenizer)
    with pytest.raises(StatusError) as caught:
        assert sum(1 for _ in steps) > 100
    assert "is 300,000 tokens" in violations(caught.value)["banned_tokens[0]"]


@pytest.mark.parametrize("size", [convert.MAX_TOKENS_NAMED + 1, 10 * convert.MAX_TOKENS_NAMED])
def test_forced_tokens_are_not_too_many_however_they_are_named(size: int) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abc"])
    legal = request_of(forced_tokens=[pb.TokenReference(text="a" * convert.MAX_TOKENS_NAMED)])
    assert len(with_tokens(legal, tokenizer).forced_tokens) == convert.MAX_TOKENS_NAMED
    text = pb.TokenReference(text="a" * (size // 2))
    request = request_of(forced_tokens=[text, text, pb.TokenReference(text="a")])
    with pytest.raises(StatusError) as caught:
        with_tokens(request, tokenizer)
    assert set(violations(caught.value)) == {"forced_tokens"}


def test_only_the_fields_that_are_asked_for_are_converted() -> None:
    request = pb.ScoreRequest(texts=["a"] * 5, unknown_policy=pb.UNKNOWN_POLICY_SKIP)
    assert to_json(request, only=("unknown_policy",)) == {"unknown_policy": "skip"}
