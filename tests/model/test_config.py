from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

from treadle.model import config as settings
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, EncodingError, UnknownSymbolError
from treadle.model.field_checks import Checked

SECTIONS = [
    TokenizerConfig,
    NetworkConfig,
    DataConfig,
    OptimizerConfig,
    LimitsConfig,
    ReportConfig,
    TrainConfig,
    SamplingConfig,
]

# The lowest and highest legal value of every bounded field, and its illegal neighbours.
EDGES: list[tuple[type[Checked], str, list[Any], list[Any]]] = [
    (TokenizerConfig, "max_vocabulary_size", [1, 1_000_000], [0, 1_000_001]),
    (TokenizerConfig, "min_frequency", [1, 2**32 - 1], [0, 2**32]),
    (NetworkConfig, "hidden_size", [1, 4096], [0, 4097]),
    (NetworkConfig, "layers", [1, 8], [0, 9]),
    (NetworkConfig, "embedding_size", [0, 4096], [-1, 4097]),
    (NetworkConfig, "dropout", [0.0, 0.999], [-0.001, 1.0]),
    (NetworkConfig, "output_dropout", [0.0, 0.999], [-0.001, 1.0]),
    (DataConfig, "validation_fraction", [0.0, 0.999], [-0.001, 1.0]),
    (DataConfig, "test_fraction", [0.0, 0.999], [-0.001, 1.0]),
    (DataConfig, "batch_size", [1, 4096], [0, 4097]),
    (DataConfig, "window", [1, 4096], [0, 4097]),
    (OptimizerConfig, "learning_rate", [1e-9, 1e9], [0.0, -0.1]),
    (OptimizerConfig, "warmup_steps", [0, 2**32 - 1], [-1, 2**32]),
    (OptimizerConfig, "beta1", [0.0, 0.999], [-0.1, 1.0]),
    (OptimizerConfig, "beta2", [0.0, 0.999], [-0.1, 1.0]),
    (OptimizerConfig, "weight_decay", [0.0, 10.0], [-0.1]),
    (OptimizerConfig, "clip_norm", [0.0, 10.0], [-0.1]),
    (OptimizerConfig, "clip_value", [0.0, 10.0], [-0.1]),
    (OptimizerConfig, "accumulation_steps", [1, 4096], [0, 4097]),
    (OptimizerConfig, "final_rate", [0.0, 1.0], [-0.1, 1.1]),
    (OptimizerConfig, "averaging", [0.0, 100.0], [-0.1]),
    (OptimizerConfig, "plateau_factor", [0.001, 0.999], [0.0, 1.0]),
    (OptimizerConfig, "plateau_patience", [1, 2**32 - 1], [0, 2**32]),
    (LimitsConfig, "max_steps", [1, 2**64 - 1], [0, 2**64]),
    (LimitsConfig, "max_tokens", [1, 2**64 - 1], [0, 2**64]),
    (LimitsConfig, "max_wall_time_s", [0.01, 1e6], [0.0, -1.0]),
    (LimitsConfig, "early_stopping_patience", [0, 2**32 - 1], [-1, 2**32]),
    (LimitsConfig, "max_memory_bytes", [1, 2**64 - 1], [0, 2**64]),
    (LimitsConfig, "max_epochs", [0.01, 1e6], [0.0, -1.0]),
    (LimitsConfig, "max_time_s", [0.01, 1e6], [0.0, -1.0]),
    (ReportConfig, "progress_interval_s", [0.05, 60.0], [0.04, 0.0]),
    (ReportConfig, "validation_interval_steps", [1, 2**64 - 1], [0]),
    (ReportConfig, "sample_tokens", [0, 1000], [-1, 1001]),
    (TrainConfig, "seed", [0, 2**64 - 1], [-1, 2**64]),
    (SamplingConfig, "temperature", [0.0, 100.0], [-0.1, 100.1]),
    (SamplingConfig, "top_k", [0, 2**32 - 1], [-1, 2**32]),
    (SamplingConfig, "top_p", [0.001, 1.0], [0.0, 1.001]),
    (SamplingConfig, "min_p", [0.0, 1.0], [-0.001, 1.001]),
    (SamplingConfig, "seed", [0, 2**64 - 1], [-1, 2**64]),
    (SamplingConfig, "max_new_tokens", [0, 2**32 - 1], [-1, 2**32]),
    (SamplingConfig, "typical_p", [0.001, 1.0], [0.0, 1.001]),
    (SamplingConfig, "repetition_penalty", [0.01, 100.0], [0.0, 0.009, 100.1]),
    (SamplingConfig, "presence_penalty", [-100.0, 0.0, 100.0], [-100.1, 100.1]),
    (SamplingConfig, "frequency_penalty", [-100.0, 0.0, 100.0], [-100.1, 100.1]),
    (SamplingConfig, "min_new_tokens", [0, 2**32 - 1], [-1, 2**32]),
    (SamplingConfig, "max_time_s", [0.001, 1e6], [0.0, -1.0]),
    (SamplingConfig, "top_log_probabilities", [0, 20], [-1, 21]),
    (SamplingConfig, "best_of", [0, 64], [-1, 65]),
]


def bounded_fields() -> set[tuple[type[Checked], str]]:
    return {
        (kind, field.name)
        for kind in SECTIONS
        for field in dataclasses.fields(kind)
        if any(name in str(field.type) for name in ("int", "float"))
        and "tuple" not in str(field.type)
    }


def test_every_bounded_field_has_its_edges_tested() -> None:
    assert {(kind, name) for kind, name, _, _ in EDGES} == bounded_fields()


@pytest.mark.parametrize(("kind", "name", "legal", "illegal"), EDGES)
def test_ranges(kind: type[Checked], name: str, legal: list[Any], illegal: list[Any]) -> None:
    for value in legal:
        assert getattr(kind(**{name: value}), name) == value
    for value in [*illegal, 10**400, math.nan, math.inf, -math.inf, True, "1", [1], np.array([1])]:
        with pytest.raises(ConfigError) as caught:
            kind(**{name: value})
        assert caught.value.field == kind.dotted(name)
        assert str(caught.value).startswith(f"{kind.dotted(name)} must be ")


@pytest.mark.parametrize("kind", SECTIONS)
def test_json_round_trip_of_defaults(kind: type[Checked]) -> None:
    assert kind.from_json(json.loads(json.dumps(kind().to_json()))) == kind()
    assert kind.from_json({}) == kind()


def test_json_round_trip_of_other_values() -> None:
    config = TrainConfig(
        tokenizer=TokenizerConfig(TokenizerKind.WORDS, 7, UnknownPolicy.SKIP),
        data=DataConfig(CorpusLayout.LINES, 0.25, 3, 5),
        network=NetworkConfig(Cell.GRU, 9, 2, 0, 0.25),
        optimizer=OptimizerConfig(OptimizerKind.SGD, 0.1, warmup_steps=0),
        limits=LimitsConfig(max_time_s=2.5),
        seed=2**64 - 1,
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    sampling = SamplingConfig(
        stop_sequences=("a", "\n"),
        unknown_policy=UnknownPolicy.SKIP,
        token_biases=((3, -1.5), (4, 100.0)),
        banned_tokens=(1, 2**32 - 1),
        forced_tokens=(0,),
        regex="a+",
    )
    assert SamplingConfig.from_json(json.loads(json.dumps(sampling.to_json()))) == sampling


def test_plain_values_become_proper_ones() -> None:
    config = NetworkConfig(cell="gru", hidden_size=np.int64(3))  # type: ignore[arg-type]
    assert config.cell is Cell.GRU
    assert type(config.hidden_size) is int
    assert type(OptimizerConfig(beta1=0).beta1) is float
    assert type(OptimizerConfig(beta1=np.float32(0.5)).beta1) is float  # type: ignore[arg-type]


def test_the_policy_that_holds() -> None:
    assert TokenizerConfig().policy is UnknownPolicy.ERROR
    assert TokenizerConfig(TokenizerKind.WORDS).policy is UnknownPolicy.UNKNOWN
    skip = TokenizerConfig(TokenizerKind.WORDS, unknown_policy=UnknownPolicy.SKIP)
    assert skip.policy is UnknownPolicy.SKIP


def test_the_rate_that_holds() -> None:
    assert OptimizerConfig().rate == 0.003
    assert OptimizerConfig(OptimizerKind.SGD).rate == 0.5
    assert OptimizerConfig(OptimizerKind.ADAGRAD).rate == 0.1
    assert OptimizerConfig(learning_rate=0.25).rate == 0.25
    assert set(settings.LEARNING_RATES) == set(OptimizerKind)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"network": {"hiden_size": 3}}, "network.hiden_size"),
        ({"network": {"cell": "mamba"}}, "network.cell"),
        ({"network": {"cell": ["gru"]}}, "network.cell"),
        ({"network": 3}, "network"),
        ({"sed": 3}, "sed"),
        ({"seed": None}, "seed"),
        ({"limits": {"max_steps": 1.5}}, "limits.max_steps"),
        ([], "config"),
    ],
)
def test_bad_json_names_the_field(data: object, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json(data)
    assert field in str(caught.value)
    assert caught.value.field == field


def test_all_errors_are_reported_at_once() -> None:
    data = {"network": {"layers": 0, "hidden_size": -1}, "data": {"window": 0}, "seed": -1}
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json(data)
    fields = [fault.field for fault in caught.value.faults]
    assert fields == ["data.window", "network.hidden_size", "network.layers", "seed"]


@pytest.mark.parametrize("bad", ["ab", [""], ["x" * 257], ["x"] * 17, [3], None])
def test_stop_sequences(bad: Any) -> None:
    with pytest.raises(ConfigError, match="stop_sequences"):
        SamplingConfig(stop_sequences=bad)
    good = SamplingConfig(stop_sequences=["x" * 256] * 16)  # type: ignore[arg-type]
    assert good.stop_sequences == ("x" * 256,) * 16


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NetworkConfig().layers = 2  # type: ignore[misc]


def test_errors_survive_pickling() -> None:
    errors = [
        ConfigError("a", "b.c"),
        EncodingError("a", 3),
        UnknownSymbolError("a", "é", 4),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("name", "bad", "place"),
    [
        ("token_biases", [(1, 2.0)] * 1025, "token_biases"),
        ("token_biases", [(1, 2.0), (2, 100.5)], "token_biases[1]"),
        ("token_biases", [(-1, 2.0)], "token_biases[0]"),
        ("token_biases", [3], "token_biases[0]"),
        ("token_biases", {1: 2.0}, "token_biases"),
        ("banned_tokens", [0] * 1025, "banned_tokens"),
        ("banned_tokens", [0, 2**32], "banned_tokens[1]"),
        ("banned_tokens", "abc", "banned_tokens"),
        ("forced_tokens", [1.5], "forced_tokens[0]"),
        ("forced_tokens", 7, "forced_tokens"),
        ("regex", "a" * 4097, "regex"),
    ],
)
def test_lists_of_tokens(name: str, bad: Any, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**{name: bad})
    assert caught.value.field == place
