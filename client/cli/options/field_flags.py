"""`add_flags` adds the flags that set fields of requests, as `flags.toml` and the contract say.

A field gives its flag the name, the type, the words of its enum, and whether it may be repeated.
`flags.toml` gives the help and what differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from treadle.client.cli.options.option import add_option
from treadle.client.cli.options.token_values import bias, token
from treadle.client.cli.options.values import duration, read_state, size, tag, version_number

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

Row: TypeAlias = Mapping[str, Any]
"""A flag's row of the table."""

UNITS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "_s": ("TIME", duration),
    "_bytes": ("SIZE", size),
}
"""Suffixes of fields that a flag's name leaves out, and how their values are written and read."""

OPTIONS = "options"
"""The group of flags that belong to the command's parser itself."""


class AppendEntry(argparse.Action):
    """Gathers entries, such as the biases of tokens, in one mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        """Adds one entry."""
        key, value = values
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})


TYPES: Mapping[str, Mapping[str, Any]] = {
    "bias": {"type": bias, "action": AppendEntry},
    "tag": {"type": tag, "action": AppendEntry},
    "token": {"type": token},
    "version_number": {"type": version_number},
}
"""The types that a row can name."""


@cache
def table() -> Mapping[str, Any]:
    """Returns the table: the groups of each command, the rows of each group, by name."""
    import tomllib

    return tomllib.loads(Path(__file__).with_name("flags.toml").read_text("utf-8"))


def groups(command: str) -> list[str]:
    """Returns the groups of a command, in their order in the help."""
    return [name for name in table()[command] if name != "requests"]


def add_flags(
    parser: argparse.ArgumentParser,
    command: str,
    group: str,
    without: Collection[str] = (),
    of: str = "",
) -> argparse._ActionsContainer:
    """Adds the flags of one group of a command.

    Args:
        parser: The command's parser.
        command: The command's name in the table.
        group: The group's name there, and its title in the help.
        without: Names of flags that are not to be added.
        of: The command whose group it is, if not the same.

    Returns:
        The group of the help, or the parser.
    """
    container: argparse._ActionsContainer = parser
    if group != OPTIONS:
        container = parser.add_argument_group(group)
    extend_group(container, command, (of or command, group), without)
    return container


def extend_group(
    container: argparse._ActionsContainer,
    command: str,
    group: tuple[str, str],
    without: Collection[str] = (),
) -> None:
    """Adds the flags of a group to a container that exists; see `add_flags`."""
    rows = {name: row for name, row in _rows(*group).items() if name not in without}
    exclusive = [name for name, row in rows.items() if "exclusive" in row]
    one = container.add_mutually_exclusive_group() if len(exclusive) > 1 else container
    for name, row in rows.items():
        field = field_of(command, name, row)
        _add(one if name in exclusive else container, name, row, field)


def _rows(command: str, group: str) -> dict[str, Row]:
    common = table()["common"]
    return {name: {**common.get(name, {}), **row} for name, row in table()[command][group].items()}


def field_of(command: str, name: str, row: Row) -> FieldDescriptor:
    """Returns the field that a flag sets.

    Args:
        command: The command's name in the table.
        name: The flag's name.
        row: The flag's row.

    Raises:
        KeyError: No request of the command has such a field.
    """
    from treadle.v1.sequence_pb2 import DESCRIPTOR

    named = row.get("field", name.replace("-", "_"))
    for request in table()[command]["requests"]:
        message = DESCRIPTOR.message_types_by_name[request]
        for name_ in (named, *(named + suffix for suffix in UNITS)):
            if (field := find_field(message, name_)) is not None:
                return field
    raise KeyError(f"no request of `treadle {command}` has a field for --{name}")


def find_field(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Returns a field of a message or of one of its parts, that is no part itself; or None."""
    found = message.fields_by_name.get(name)
    if found is not None and (found.is_repeated or found.message_type is None):
        return found
    for part in message.fields:
        if part.message_type is not None and not part.is_repeated:
            inner = part.message_type.fields_by_name.get(name)
            if inner is not None and inner.message_type is None:
                return inner
    return None


def _add(
    container: argparse._ActionsContainer, name: str, row: Row, field: FieldDescriptor
) -> None:
    """Adds one flag."""
    settings = _settings(row, field)
    settings["dest"] = row.get("dest", field.name)
    action = add_option(
        container,
        f"--{name}",
        row["help"],
        also=row.get("also", ""),
        values=row.get("range", ""),
        default=row.get("default", ""),
        **settings,
    )
    if "initial" in row:
        action.default = row["initial"]


def _settings(row: Row, field: FieldDescriptor) -> dict[str, Any]:
    """Returns the further arguments of `add_argument`."""
    if "const" in row:
        return {"action": "store_const", "const": row["const"]}
    if field.type == field.TYPE_BOOL and "metavar" not in row:
        return {"action": "store_true"}
    settings: dict[str, Any] = {"action": "append"} if field.is_repeated else {}
    if field.enum_type is not None:
        from treadle.client.messages.enums import enum_words

        words: Sequence[str] = row.get("words") or enum_words(field.enum_type)
        return settings | {"choices": tuple(words)}
    metavar, read = _value(field)
    settings["metavar"] = row.get("metavar", metavar)
    if read is not None:
        settings["type"] = read
    return {**settings, **TYPES.get(row.get("type", ""), {})}


def _value(field: FieldDescriptor) -> tuple[str, Callable[[str], object] | None]:
    """Returns how the help calls a field's value, and the function that reads it."""
    for suffix, unit in UNITS.items():
        if field.name.endswith(suffix):
            return unit
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return "F", float
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return "N", int
    if field.type == field.TYPE_BYTES:
        return "FILE", read_state
    return "TEXT", None
