"""Options and their words follow the contract: what it gains, they gain."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import pytest

from treadle.client.cli.main import make_parser
from treadle.client.cli.options.values import duration, size
from treadle.client.errors import InputError
from treadle.client.messages.enums import enum_word, enum_words
from treadle.client.messages.fields import set_field
from treadle.client.options import (
    EmbedOptions,
    GenerateOptions,
    LearnStreamOptions,
    ScoreOptions,
    ScoreStreamOptions,
    TrainOptions,
    option_home,
)
from treadle.client.upload import make_spec
from treadle.v1 import sequence_pb2 as v1


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and those of all its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def parser_of(command: str) -> argparse.ArgumentParser:
    return next(p for p in parsers(make_parser()) if p.prog == f"treadle {command}")


def flags(command: str) -> dict[str, argparse.Action]:
    """The options of a command by the field that they set."""
    return {a.dest: a for a in parser_of(command)._actions if a.option_strings}


def test_training_options_are_the_specs_fields() -> None:
    fields = set()
    for part in v1.TrainSpec.DESCRIPTOR.fields:
        if part.message_type is None or part.is_repeated:
            fields.add(part.name)
        else:
            names = {field.name for field in part.message_type.fields}
            assert not fields & names, "flat options need names of their own"
            fields |= names
    assert set(TrainOptions.__annotations__) == fields - {"model", "kind"} | {"tokenizer"}


@pytest.mark.parametrize(
    ("options", "request_type", "own"),
    [
        (
            GenerateOptions,
            v1.GenerateRequest,
            {"model", "prompt", "prompt_tokens", "n", "resume", "resume_interval"},
        ),
        (ScoreOptions, v1.ScoreRequest, {"model", "texts"}),
        (ScoreStreamOptions, v1.ScoreStreamSpec, {"model"}),
        (LearnStreamOptions, v1.LearnStreamSpec, {"model"}),
        (EmbedOptions, v1.EmbedRequest, {"model", "texts", "tokens"}),
    ],
)
def test_other_options_are_the_requests_fields(
    options: Any, request_type: Any, own: set[str]
) -> None:
    assert set(options.__annotations__) == set(request_type.DESCRIPTOR.fields_by_name) - own


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", TrainOptions),
        ("generate", GenerateOptions),
        ("score", ScoreOptions),
        ("score-stream", ScoreStreamOptions),
        ("score-stream", LearnStreamOptions),
        ("embed", EmbedOptions),
    ],
)
def test_the_command_line_has_every_option(command: str, options: Any) -> None:
    # chosen from the corpus; the command needs no other
    assert set(options.__annotations__) - {"softmax_clusters"} <= set(flags(command))


def test_the_command_line_has_every_word_of_an_enum() -> None:
    found = flags("train")
    for option in TrainOptions.__annotations__:
        part, name = option_home(option)
        message: Any = getattr(v1.TrainSpec(), part) if part else v1.TrainSpec()
        enum = message.DESCRIPTOR.fields_by_name[name].enum_type
        if enum is not None:
            assert list(found[option].choices or ()) == enum_words(enum), option


def test_words_of_enums() -> None:
    enum: Any = v1.StopReason.DESCRIPTOR
    assert enum_word(enum, v1.STOP_REASON_STOP_SEQUENCE) == "stop_sequence"
    assert enum_word(enum, 0) == "unspecified"
    assert enum_word(enum, 99) == "99"


@pytest.mark.parametrize("parser", list(parsers(make_parser())), ids=lambda parser: parser.prog)
def test_every_option_is_explained(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        assert action.help or action.dest in ("command", "action", "model"), action
        if action.dest in ("version", "timeout", "wait") and action.nargs != 0:
            assert re.search(r"\(\d or more[;)]", str(action.help)), action
    assert parser.description or parser.prog.endswith(" list"), parser.prog
    assert "%" not in parser.format_help().replace("90 %", "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("180", 180),
        ("180s", 180),
        ("3m", 180),
        ("1h", 3600),
        ("1.5h", 5400),
        ("250ms", 0.25),
        (".5", 0.5),
        ("2 D", 172_800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("1500", 1500), ("500MB", 500_000_000), ("1.5g", 1_500_000_000), ("2 GiB", 2**31)],
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1", "1.5X", "1e6"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 500MB"):
        size(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1h30m", "nan", "1e3", "1,5s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 90s"):
        duration(text)


@pytest.mark.parametrize(
    "option",
    [
        "max_vocabulary_size",
        "min_frequency",
        "batch_size",
        "window",
        "hidden_size",
        "layers",
        "accumulation_steps",
        "plateau_patience",
    ],
)
def test_0_is_not_taken_for_the_default(option: str) -> None:
    options: Any = {option: 0}
    with pytest.raises(InputError, match=f"{option} cannot be 0: leave it out for the default"):
        make_spec("m", None, options)
    options = {option: 1}
    make_spec("m", None, options)


@pytest.mark.parametrize(("option", "value"), [("regex", ""), ("best_of", 0)])
def test_nothing_is_not_taken_for_no_constraint(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} cannot be {value!r}: leave it out"):
        set_field(v1.GenerateRequest(), option, value)


@pytest.mark.parametrize("option", ["column", "encoding", "request_id", "init_from"])
def test_nothing_is_not_taken_for_the_default(option: str) -> None:
    options: Any = {option: ""}
    with pytest.raises(InputError, match=f"{option} cannot be '': leave it out"):
        make_spec("m", None, options)


@pytest.mark.parametrize(
    "option",
    [
        "seed",
        "dropout",
        "output_dropout",
        "test_fraction",
        "validation_fraction",
        "clip_norm",
        "averaging",
        "final_rate",
        "weight_decay",
        "early_stopping_patience",
        "sample_tokens",
        "embedding_size",
    ],
)
def test_0_is_a_value_where_the_contract_has_it(option: str) -> None:
    options: Any = {option: 0}
    make_spec("m", None, options)
