"""What is refused before a corpus is read, and that a run asks the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from treadle.model import Trainer
from treadle.model.config import NetworkConfig, TokenizerConfig, TrainConfig
from treadle.model.enums import CorpusLayout
from treadle.model.errors import ConfigError
from treadle.model.training import config_check
from treadle.model.training.config_check import check_config
from treadle.model.training.fine_tuning import BaseModelInfo

BF16 = "this processor has no AVX512_BF16"

IMPOSSIBLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"data": {"encoding": "klingon"}}, ["data.encoding"]),
    ({"data": {"encoding": "base64"}}, ["data.encoding"]),
    ({"data": {"encoding": "idna"}}, ["data.encoding"]),
    ({"data": {"encoding": "a\0b"}}, ["data.encoding"]),
    ({"data": {"validation_fraction": 0.9, "test_fraction": 0.2}}, ["data.test_fraction"]),
    ({"data": {"validation_fraction": 0.5, "test_fraction": 0.5}}, ["data.test_fraction"]),
    ({"tokenizer": {"kind": "subwords"}}, ["tokenizer.kind"]),
    (
        {"tokenizer": {"kind": "subwords", "max_vocabulary_size": 255}},
        ["tokenizer.max_vocabulary_size"],
    ),
    ({"network": {"tied_weights": True}}, ["network.tied_weights"]),
    ({"network": {"tied_weights": True, "embedding_size": 0}}, ["network.tied_weights"]),
    (
        {
            "network": {"tied_weights": True, "embedding_size": 8, "hidden_size": 16},
            "preset": "auto",
            "given": ["network.tied_weights", "network.embedding_size", "network.hidden_size"],
        },
        ["network.tied_weights"],
    ),
    ({"limits": {"max_memory_bytes": 1}}, ["network.hidden_size"]),
    ({"limits": {"max_memory_bytes": 100}, "preset": "auto"}, ["network.hidden_size"]),
    ({"optimizer": {"precision": "bf16"}}, ["optimizer.precision"]),
    (
        {"data": {"encoding": "klingon"}, "network": {"tied_weights": True}},
        ["data.encoding", "network.tied_weights"],
    ),
]
"""Settings that no corpus could make work on this machine, and the settings at fault."""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the package for subwords and without bfloat16."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("treadle.model.network.precision.BF16_MISSING", BF16)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("settings", "fields"), IMPOSSIBLE)
def test_what_no_corpus_can_make_work_is_refused(
    settings: dict[str, Any], fields: list[str]
) -> None:
    config = TrainConfig.from_json(settings)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert [fault.field for fault in caught.value.faults] == fields
    with pytest.raises(ConfigError) as caught:
        Trainer(b"abcabc" * 100, config)
    assert [fault.field for fault in caught.value.faults] == fields


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": {"encoding": "UTF-16"}},
        {"tokenizer": {"kind": "bytes", "unknown_policy": "unknown"}},
        {"data": {"validation_fraction": 0.9, "test_fraction": 0.05}},
        {"network": {"tied_weights": True}, "preset": "auto", "given": ["network.tied_weights"]},
        {"tokenizer": {"max_vocabulary_size": 1}},
        {"limits": {"max_memory_bytes": 1 << 30}},
    ],
)
def test_what_some_corpus_makes_work_passes(settings: dict[str, Any]) -> None:
    check_config(TrainConfig.from_json(settings))


def begin(layout: CorpusLayout, **tokenizer: Any) -> BaseModelInfo:
    return BaseModelInfo(NetworkConfig(), TokenizerConfig(**tokenizer), layout, 50)


@pytest.mark.parametrize(
    ("settings", "base", "field"),
    [
        ({"data": {"format": "jsonl"}}, begin(CorpusLayout.TEXT), "data.format"),
        (
            {"tokenizer": {"unknown_policy": "unknown"}},
            begin(CorpusLayout.LINES),
            "tokenizer.unknown_policy",
        ),
        (
            {"tokenizer": {"kind": "words"}},
            begin(CorpusLayout.LINES, kind="words", unknown_policy="skip"),
            "tokenizer.unknown_policy",
        ),
    ],
)
def test_what_does_not_fit_the_model_to_begin_from_is_refused(
    settings: dict[str, Any], base: BaseModelInfo, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(TrainConfig.from_json(settings), base)
    assert [fault.field for fault in caught.value.faults] == [field]


@pytest.mark.parametrize("kind", ["bytes", "subwords", "words", "events"])
def test_kinds_that_obey_unknown_may_be_asked_to(kind: str) -> None:
    base = begin(CorpusLayout.TEXT, kind=kind)
    settings = {"tokenizer": {"kind": kind, "unknown_policy": "unknown"}}
    check_config(TrainConfig.from_json(settings), base)


def test_a_memory_limit_counts_a_known_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(config_check, "check_memory", lambda _, size, __: seen.append(size))
    config = TrainConfig.from_json({"limits": {"max_memory_bytes": 10}})
    check_config(config)
    check_config(config, begin(CorpusLayout.TEXT))
    assert seen == [1, 50]
