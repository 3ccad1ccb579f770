"""`argument_names` returns a command's names for the arguments and fields in an error.

A flag is found by its destination, which is the argument's name. The tables here hold arguments
that have another name, or no flag of their own; a test checks every field of every request.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache

from treadle.client.argument_names import ArgumentNames, rename_fields
from treadle.client.cli.options.field_flags import add_flags, groups

RENAMED = {
    "of_model": "model",
    "file": "corpus_chunk",
    "weights": "weight",
    "after": "after_sequence",
}
"""Destinations whose name is not that of the argument."""

COMMON_NAMES = {
    "address": "--server",
    "timeout_s": "--timeout",
    "score_stream": "`treadle score-stream`",
}
"""Names that are the same in every command."""

TRAINING_NAMES = {"corpus_chunk": "FILE", "model": "--model", "weight": "--weight"}
"""Names of arguments of `treadle train` that are not in the table of flags."""

COMMAND_NAMES: dict[str, dict[str, str]] = {
    "train": {"role": "--valid or --test"},
    "generate": {"n": "-n"},
    "chat": {"prompt": "your line"},
    "score": {"texts": "the text", "return_state": "--save-state"},
    "score-stream": {
        "piece": "the line",
        "learn": "--learn",
        "publish.model": "--publish-as",
        "publish.alias": "--alias",
    },
    "embed": {"texts": "the text"},
    "models": {
        "all_versions": "--all",
        "chunk": "FILE",
        "state_dict": "`treadle models import`",
        "vocabulary": "--vocabulary",
    },
}
"""Names that are no flag of the field's name, by command. A key is an argument, or a field's whole
path where its last part names something else."""


def flag_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns the flags of a command's parser by the names of their arguments.

    Where several flags set one argument, the one that takes its value counts.
    """
    names: dict[str, str] = {}
    for action in parser._actions:
        name = RENAMED.get(action.dest, action.dest)
        if action.option_strings:
            flag = next((f for f in action.option_strings if f.startswith("--")), "")
            called = flag or action.option_strings[0]
        else:
            called = str(action.metavar or action.dest.upper())
        if name not in names or action.nargs != 0:
            names[name] = called
    return names


def switches(parser: argparse.ArgumentParser) -> frozenset[str]:
    """Returns the flags of a command's parser that take no value."""
    return frozenset(
        flag for action in parser._actions if action.nargs == 0 for flag in action.option_strings
    )


def command_parser(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[str, argparse.ArgumentParser]:
    """Returns the name of the parsed command, and the parser of the command or its action."""
    command = str(getattr(args, "command", "") or "")
    found = parser
    for word in (command, str(getattr(args, "action", "") or "")):
        for action in found._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                found = action.choices[word]
                break
    return command, found


def argument_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> ArgumentNames:
    """Returns the names of the command that was parsed.

    An argument without a flag of the command has its name in `treadle train`, since a job's
    errors are about the arguments of training.
    """
    command, own = command_parser(parser, args)
    names = {
        **training_names(),
        **COMMON_NAMES,
        **flag_names(own),
        **COMMAND_NAMES.get(command, {}),
    }
    if getattr(args, "novel", False) and "novelty" not in args:
        names["novelty"] = "--novel"
    return ArgumentNames(names, are_flags=True, switches=switches(own) | training_switches())


@cache
def training_names() -> Mapping[str, str]:
    """Returns the flags of `treadle train` by the names of their arguments."""
    return TRAINING_NAMES | flag_names(_training_parser())


@cache
def training_switches() -> frozenset[str]:
    """Returns the flags of `treadle train` that take no value."""
    return switches(_training_parser())


def _training_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for group in groups("train"):
        add_flags(parser, "train", group)
    return parser


def in_training_flags(sentence: str) -> str:
    """Replaces names of fields in a sentence by the flags of `treadle train`."""
    names = ArgumentNames(training_names(), are_flags=True, switches=training_switches())
    return rename_fields(sentence, names)
