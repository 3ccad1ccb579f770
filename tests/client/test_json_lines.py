"""Messages as JSON."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.client.cli.display.json_lines import as_json, to_line
from treadle.v1 import sequence_pb2 as v1

from .fake import a_model


def test_scalars_are_always_there_and_what_is_unset_is_not() -> None:
    assert as_json(v1.TrainingProgress()) == {
        "step": 0,
        "epoch": 0.0,
        "tokens_seen": 0,
        "train_loss": 0.0,
        "tokens_per_second": 0.0,
        "elapsed_s": 0.0,
        "gradient_norm": 0.0,
        "learning_rate": 0.0,
        "memory_bytes": 0,
        "valid_tokens": 0,
    }
    assert as_json(v1.TrainingProgress(valid_loss=0.0, sample=""))["valid_loss"] == 0.0
    assert as_json(v1.TrainingProgress(sample=""))["sample"] == ""


def test_large_integers_are_numbers() -> None:
    assert as_json(v1.GenerateResult(seed=2**64 - 1))["seed"] == 2**64 - 1


def test_maps_are_objects() -> None:
    spec = as_json(v1.TrainSpec(tags={"team": "search", "run": "7"}))
    assert spec["tags"] == {"team": "search", "run": "7"}
    assert "tags" not in as_json(v1.TrainSpec())


def test_nested_messages_enums_and_times() -> None:
    model = as_json(a_model())
    assert model["network"] == {"cell": "lstm", "hidden_size": 128, "layers": 2} | {
        "embedding_size": 64,
        "dropout": 0.2,
        "output_dropout": 0.0,
        "tied_weights": False,
        "softmax": "unspecified",
    }
    assert model["layout"] == "text"
    assert model["create_time"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("value", "shown"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN")]
)
def test_what_json_lacks_is_a_string(value: float, shown: str) -> None:
    assert as_json(v1.TextScore(perplexity=value))["perplexity"] == shown


def test_a_line_is_a_line() -> None:
    line = to_line(v1.GenerateResponse(text="a\nb\r\u2028\x1bñ世"))
    assert len(line.split("\n")) == 1
    assert json.loads(line)["text"] == "a\nb\r\u2028\x1bñ世"
    assert "世" in line


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_32_bit_numbers_are_short_and_exact(value: float) -> None:
    shown = as_json(v1.Token(log_probability=value))["log_probability"]
    assert struct.pack("f", shown) == struct.pack("f", value)
    assert len(f"{shown!r}") <= len(f"{value!r}")


def test_bytes_are_base64() -> None:
    assert as_json(v1.TextScore(state=b"\x00\xff"))["state"] == "AP8="
