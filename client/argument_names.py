"""`rename_fields` puts a sentence about request fields into the words that the caller used.

The server names a field at fault by its path in the contract: `spec.limits.max_time_s`, or "set
unknown_policy to 'skip'". A Python program gave the argument `max_time_s` instead, and a shell
gave the flag `--train-for`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

PARTS = ("spec", "tokenizer", "data", "network", "optimizer", "limits", "report")
"""The parts of a TrainSpec, which may precede the name of a field."""

KINDS = {"tokenizer.kind": "tokenizer", "optimizer.kind": "optimizer"}
"""Fields whose argument has another name."""

_NAME = r"[a-z][a-z0-9_]*(?:\[\d+\])?(?:\.[a-z][a-z0-9_]*(?:\[\d+\])?)*"
_WORD = re.compile(
    r"(?P<quoted>(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`)"
    rf"|(?P<verb>\bset )?(?<![\w'./-])(?P<name>{_NAME})(?![\w/(=-])"
    r"(?P<values> to '[\w-]+'(?: or '[\w-]+')*)?"
)
_LEADS = re.compile(r"(?:^|; |\b(?:give|lower|raise|with|without|than) )$")
"""Text before a word that makes it the name of a field at fault, not plain English."""

_IMPERATIVE = re.compile(r"\b(?:set|leave) $")
"""Text before the name of any field."""


@dataclass(frozen=True)
class ArgumentNames:
    """The names that an interface, Python or the command line, has for request fields."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Names by argument or by path of a field; an argument that is absent keeps its own name."""
    are_flags: bool = False
    """Whether these are flags of a command line."""
    connects_by_flags: bool = False
    """Whether the connection has flags, and only the fields are those of a file."""
    switches: frozenset[str] = frozenset()
    """Flags that take no value: they are added, not set."""

    @property
    def has_flags_to_connect(self) -> bool:
        """Whether the connection has flags."""
        return self.are_flags or self.connects_by_flags


PYTHON = ArgumentNames()
"""Arguments of Python, which have the names of the contract's fields."""


def argument_of(path: str) -> str:
    """Returns the argument that a request field comes from: `max_time_s`, "tokenizer".

    Args:
        path: The field, such as `spec.limits.max_time_s`, `tokenizer.kind` or `texts[3]`.
    """
    path = re.sub(r"\[\d+\]", "", path).removeprefix("spec.")
    return KINDS.get(path, path.rpartition(".")[2])


def rename_fields(sentence: str, interface: ArgumentNames, at_fault: Collection[str] = ()) -> str:
    """Replaces names of fields by the names that an interface has for them.

    Quoted text stays as it is.

    Args:
        sentence: The sentence. A field is recognized by a dot or an underscore in its name. A
            plain word counts as a field only in a position where a name is expected.
        interface: The names of the interface.
        at_fault: Arguments that the sentence is about.

    Returns:
        The sentence with the interface's names.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None or not _is_field(name, interface):
            return match[0]
        argument = argument_of(name)
        if name == argument and "_" not in name:
            before = sentence[: match.start("name")]
            led = argument in at_fault and _LEADS.search(before)
            if not led and not _IMPERATIVE.search(before):
                return match[0]
        called = interface.names.get(name) or interface.names.get(argument, argument)
        if match["values"] is None:
            is_added = match["verb"] and called in interface.switches
            return ("add " if is_added else match["verb"] or "") + called
        values = re.findall(r"'([\w-]+)'", match["values"])
        between = " " if interface.are_flags else "="
        quote = "" if interface.are_flags else "'"
        verb = "give " if match["verb"] else ""
        return verb + " or ".join(f"{called}{between}{quote}{value}{quote}" for value in values)

    return _WORD.sub(replace, sentence)


def _is_field(name: str, interface: ArgumentNames) -> bool:
    """Returns whether a name is that of a field, not a word, a file or a weight."""
    if "." in name and name in interface.names:
        return True
    *before, last = re.sub(r"\[\d+\]", "", name).split(".")
    if any(part not in PARTS for part in before):
        return False
    return argument_of(name) in interface.names or (
        not interface.are_flags and (bool(before) or "_" in last)
    )
