"""The help of every option states its range and default, and they are the model's."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import pytest

from treadle.client.cli.main import make_parser
from treadle.client.cli.options.shared import add_follow
from treadle.client.generate_many import TRIES
from treadle.client.replicas.retry import RECONNECT_S
from treadle.model.config import LEARNING_RATES, SamplingConfig, TrainConfig
from treadle.model.errors import ConfigError
from treadle.model.online.config import ONLINE_RATES, LearningConfig

from .test_options import flags, parsers

Case = tuple[str, argparse.Action, "dataclasses.Field[Any]"]

NUMBER = r"-?[\d,]+(?:\.\d+)?"
DEFAULT = re.compile(r"default: ([^()]*)\)")


def setting_fields(config: type) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yields the settings of a config and its parts by the names of their arguments."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default_factory):
            part: Any = field.default_factory
            for name, inner in setting_fields(part):
                yield part.section if name == "kind" else name, inner
        else:
            yield field.name, field


def cases() -> list[Case]:
    """Every option that sets a setting of a config of the model."""
    found: list[Case] = []
    for command, config in (
        ("train", TrainConfig),
        ("generate", SamplingConfig),
        ("chat", SamplingConfig),
        ("score-stream", LearningConfig),
    ):
        actions = flags(command)
        for name, field in setting_fields(config):
            if name in actions and actions[name].nargs != 0:
                found.append((command, actions[name], field))
    return found


def case_name(value: object) -> str | None:
    return value.dest if isinstance(value, argparse.Action) else None


@pytest.mark.parametrize(("command", "action", "field"), cases(), ids=case_name)
def test_a_default_is_the_models(
    command: str, action: argparse.Action, field: dataclasses.Field[Any]
) -> None:
    found = DEFAULT.search(str(action.help))
    assert found, action.help
    default: Any = field.default
    if default is None or default in ((), ""):
        return  # it depends on something else, which the help names
    if isinstance(default, StrEnum):
        expected = default.value
    elif isinstance(default, str):
        expected = default
    else:
        expected = f"{default:,g}" if default < 10_000 else f"{default:,}"
    if action.dest in ("best_of", "stop_sequences"):  # unset in `generate`, another in `chat`
        return
    assert found[1] == expected or found[1].endswith(f"else {expected}"), action.help


def bounds(text: str) -> tuple[list[float], list[float]]:
    """Reads a range of a help: the numbers that are legal, and some that are not."""
    numbers = [float(number.replace(",", "")) for number in re.findall(NUMBER, text)]
    step = 1e-6 if "above" in text or "below" in text or "." in text else 1
    low = numbers[0]
    legal = [low + step if text.startswith("above") else low]
    illegal = [low if text.startswith("above") else low - step]
    if len(numbers) > 1:
        high = numbers[1]
        legal.append(high - step if "below" in text else high)
        illegal.append(high if "below" in text else high + step)
    return legal, illegal


@pytest.mark.parametrize(("command", "action", "field"), cases(), ids=case_name)
def test_a_range_is_the_models(
    command: str, action: argparse.Action, field: dataclasses.Field[Any]
) -> None:
    check: Callable[[object, str], object] = field.metadata["check"]
    found = re.search(rf"\(((?:above )?{NUMBER} (?:to|or) [^;]*|above {NUMBER});", str(action.help))
    if action.type not in (int, float) and not str(action.type).startswith("<function duration"):
        return
    assert found, action.help
    number = int if action.type is int else float
    legal, illegal = bounds(found[1])
    for value in legal:
        check(number(value), action.dest)
    if action.dest == "best_of":  # 0 stands for "sample", and the client has it left out
        illegal = illegal[1:]
    for value in illegal:
        with pytest.raises(ConfigError):
            check(number(value), action.dest)


def test_learning_rates_are_the_models() -> None:
    for command, rates in (("train", LEARNING_RATES), ("score-stream", ONLINE_RATES)):
        found = DEFAULT.search(str(flags(command)["learning_rate"].help))
        assert found
        stated = dict(rate.split() for rate in found[1].split(", "))
        assert {kind: float(rate) for kind, rate in stated.items()} == {
            kind.value: rate for kind, rate in rates.items()
        }


def test_the_clients_own_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_follow(parser)
    assert parser.get_default("reconnect_s") == RECONNECT_S
    assert f"default: {RECONNECT_S:g}s)" in parser.format_help().replace("\n", " ")
    assert f"default: {TRIES} for each)" in str(flags("generate")["max_tries"].help)


@pytest.mark.parametrize("parser", list(parsers(make_parser())), ids=lambda parser: parser.prog)
def test_every_option_with_a_value_states_its_default(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            in_group = any(
                action in group._group_actions and group.required
                for group in parser._mutually_exclusive_groups
            )
            assert in_group or "default" in str(action.help) or action.dest in ("job", "texts"), (
                action
            )
