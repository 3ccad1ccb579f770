"""`reword`: a sentence about fields of the contract, in the words of whatever the caller used.

The server names what is at fault as the contract does: `spec.limits.max_time_s`, "set
unknown_policy to 'skip'". Who called from Python gave the argument `max_time_s`, and who typed a
command gave `--train-for`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

PARTS = ("spec", "tokenizer", "data", "network", "optimizer", "limits", "report")
"""The parts of a TrainSpec: what may stand before a field's name."""

KINDS = {"tokenizer.kind": "tokenizer", "optimizer.kind": "optimizer"}
"""Fields that no argument has the name of."""

_NAME = r"[a-z][a-z0-9_]*(?:\[\d+\])?(?:\.[a-z][a-z0-9_]*(?:\[\d+\])?)*"
_WORD = re.compile(
    r"(?P<quoted>(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`)"
    rf"|(?P<verb>\bset )?(?<![\w'./-])(?P<name>{_NAME})(?![\w/(=-])"
    r"(?P<values> to '[\w-]+'(?: or '[\w-]+')*)?"
)
_LEADS = re.compile(r"(?:^|; |\b(?:give|lower|raise|with|without|than) )$")
"""What stands before a word for it to be the name of a field at fault, and no plain English."""

_ORDERS = re.compile(r"\b(?:set|leave) $")
"""What stands before the name of any field."""


@dataclass(frozen=True)
class Words:
    """What an interface calls things."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Its names of arguments, or of paths of fields; an argument that is not here keeps its own."""
    are_flags: bool = False
    """Whether these are flags of a command line."""


PYTHON = Words()
"""Arguments of Python, which are named as the contract's fields are."""


def argument_of(path: str) -> str:
    """Names the argument that a field of a request comes from: `max_time_s`, "tokenizer".

    Args:
        path: The field, such as `spec.limits.max_time_s`, `tokenizer.kind` or `texts[3]`.
    """
    path = re.sub(r"\[\d+\]", "", path).removeprefix("spec.")
    return KINDS.get(path, path.rpartition(".")[2])


def reword(sentence: str, words: Words, at_fault: Collection[str] = ()) -> str:
    """Puts names of fields into the words of an interface; quoted text stays as it is.

    Args:
        sentence: What to say. A field is known by a dot or an underline in its name; one without
            only where it stands where a name would.
        words: The interface's.
        at_fault: Arguments that the sentence is about.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None or not _is_field(name, words):
            return match[0]
        argument = argument_of(name)
        if name == argument and "_" not in name:
            before = sentence[: match.start("name")]
            led = argument in at_fault and _LEADS.search(before)
            if not led and not _ORDERS.search(before):
                return match[0]
        called = words.names.get(name) or words.names.get(argument, argument)
        if match["values"] is None:
            return (match["verb"] or "") + called
        values = re.findall(r"'([\w-]+)'", match["values"])
        between = " " if words.are_flags else "="
        quote = "" if words.are_flags else "'"
        verb = "give " if match["verb"] else ""
        return verb + " or ".join(f"{called}{between}{quote}{value}{quote}" for value in values)

    return _WORD.sub(replace, sentence)


def _is_field(name: str, words: Words) -> bool:
    """Tells a field's name from a word, a file's name or a weight's."""
    if "." in name and name in words.names:
        return True
    *before, last = re.sub(r"\[\d+\]", "", name).split(".")
    if any(part not in PARTS for part in before):
        return False
    return argument_of(name) in words.names or (
        not words.are_flags and (bool(before) or "_" in last)
    )
