"""`words_of`: what a command calls the arguments and fields that an error may name.

A flag is found by its destination, which is the argument's name. What has another name, or no
flag of its own, stands in the tables here; a test walks over every field of every request.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache

from treadle.client.wording import Words

RENAMED = {
    "of_model": "model",
    "file": "corpus_chunk",
    "weights": "weight",
    "after": "after_sequence",
}
"""Destinations that have not the name of what they set."""

EVERYWHERE = {
    "address": "--server",
    "timeout_s": "--timeout",
    "score_stream": "`treadle score-stream`",
}
"""What every command calls alike."""

PLACES: dict[str, dict[str, str]] = {
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
    "models": {"all_versions": "--all"},
}
"""What a command takes by other means than a flag of the field's name: by an argument, or by a
field's whole path where its last part names something else."""


def flag_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns what a command's parser calls its arguments, by their names.

    Where several flags set one argument, it is called by that which takes its value.
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


def leaf(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[str, argparse.ArgumentParser]:
    """Returns the name of the command that was parsed, and its own parser, that of its action."""
    command = str(getattr(args, "command", "") or "")
    found = parser
    for word in (command, str(getattr(args, "action", "") or "")):
        for action in found._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                found = action.choices[word]
                break
    return command, found


def words_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Words:
    """Returns the words of the command that was parsed.

    What it has no flag for is called as `treadle train` calls it: a job's errors are about those.
    """
    command, own = leaf(parser, args)
    names = {**training_names(), **EVERYWHERE, **flag_names(own), **PLACES.get(command, {})}
    return Words(names, are_flags=True)


@cache
def training_names() -> Mapping[str, str]:
    """Returns what `treadle train` calls its arguments."""
    from treadle.client.commands import train

    root = argparse.ArgumentParser()
    train.add_parsers(root.add_subparsers())
    (subparsers,) = (a for a in root._actions if isinstance(a, argparse._SubParsersAction))
    return flag_names(subparsers.choices["train"])


def in_training_flags(sentence: str) -> str:
    """Puts a sentence about a run's settings into the words of `treadle train`."""
    from treadle.client.wording import reword

    return reword(sentence, Words(training_names(), are_flags=True))
