"""The defaults and ranges in the contract's comments are those of the settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    SamplingConfig,
    TokenizerConfig,
)
from treadle.model.errors import ConfigError
from treadle.model.online.config import LearningConfig

CONTRACT = Path(__file__).parents[2] / "proto" / "treadle" / "v1" / "sequence.proto"
CONFIGS: dict[str, Any] = {
    "TokenizerSpec": TokenizerConfig,
    "DataSpec": DataConfig,
    "NetworkSpec": NetworkConfig,
    "OptimizerSpec": OptimizerConfig,
    "LimitsSpec": LimitsConfig,
    "ReportSpec": ReportConfig,
    "GenerateRequest": SamplingConfig,
    "LearnStreamSpec": LearningConfig,
}
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"


def comments() -> Iterator[tuple[str, str, str]]:
    """Yields message, field and comment of every field of a message with settings."""
    message = comment = ""
    for line in CONTRACT.read_text("utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment += " " + text.removeprefix("//").strip()
            continue
        if found := re.match(r"message (\w+) \{", text):
            message = found[1]
        field = re.match(r"(?:optional |repeated )?[\w.]+ (\w+) = \d+;", text)
        if field is not None and message in CONFIGS:
            yield message, field[1], comment
        comment = ""


def number(text: str) -> float:
    return float(text.replace(",", ""))


DEFAULTS = [
    (message, field, number(found[1]))
    for message, field, comment in comments()
    if (found := re.search(rf"Default: {NUMBER}(?=[,.] |\.?$|, no)", comment))
]
RANGES = [
    (message, field, number(found[1]), number(found[2]))
    for message, field, comment in comments()
    if (found := re.search(rf"{NUMBER} to {NUMBER}(?!\d|,\d| characters| bytes)", comment))
]


def legal(kind: Any, field: str, value: float) -> bool:
    whole = int(value) if value == int(value) else value
    try:
        kind.from_json({field: whole})
    except ConfigError:
        return False
    return True


def is_setting(message: str, field: str) -> bool:
    return field in CONFIGS[message].__dataclass_fields__


def test_there_are_comments_to_compare() -> None:
    assert len(DEFAULTS) >= 25
    assert len(RANGES) >= 15


@pytest.mark.parametrize(
    ("message", "field", "default"), [case for case in DEFAULTS if is_setting(*case[:2])]
)
def test_a_default_is_that_of_the_setting(message: str, field: str, default: float) -> None:
    held = getattr(CONFIGS[message](), field)
    assert held == default or (message, field, held) == ("OptimizerSpec", "warmup_steps", None)


@pytest.mark.parametrize(
    ("message", "field", "least", "most"), [case for case in RANGES if is_setting(*case[:2])]
)
def test_a_range_is_that_of_the_setting(
    message: str, field: str, least: float, most: float
) -> None:
    kind = CONFIGS[message]
    assert legal(kind, field, least)
    assert legal(kind, field, most)
    assert not legal(kind, field, most + 1)
    if least != 1 or field not in ("best_of", "top_log_probabilities"):  # 0 switches them off
        assert not legal(kind, field, least - 1)
