"""`TomlTable` reads the values of one TOML table, and names what is wrong with them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

Fault = Callable[[str], str]
"""Returns what is wrong with a value, as a clause that follows its key; '' for nothing."""


class TomlError(ValueError):
    """A value of a file cannot be used. The message names the key, the fault and the remedy."""


class TomlTable:
    """The values of one table; each is read once, and `finish` refuses those that nobody read.

    Args:
        name: The dotted name of the table; empty for the whole file.
        values: The values, as `tomllib` reads them.
    """

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        """The dotted name of the table; empty for the whole file."""
        self._values = values
        self._known: list[str] = []

    def key(self, key: str) -> str:
        """Returns the dotted name of a key of the table."""
        is_bare = key.replace("-", "").replace("_", "").isalnum() and len(key) <= _SHOWN
        shown = key if is_bare else repr(key[:_SHOWN])
        return f"{self.name}.{shown}" if self.name else shown

    def has(self, key: str) -> bool:
        """Returns whether the table has a key."""
        return key in self._values

    def error(self, key: str, fault: str) -> TomlError:
        """Returns the error of a key.

        Args:
            key: The key.
            fault: What is wrong with it and what to do, as a clause that follows its name.
        """
        return TomlError(f"{self.key(key)} {fault}")

    def value(self, key: str) -> Any:
        """Returns any value; None if it is missing."""
        self._known.append(key)
        return self._values.get(key)

    def text(self, key: str, default: str | None = None, fault: Fault = lambda _: "") -> str:
        """Returns a string that is not empty.

        Args:
            key: Its key.
            default: What it is if it is missing; None: it is required.
            fault: What is wrong with a string.

        Raises:
            TomlError: It is missing, no string, empty, or has a fault.
        """
        value = self.value(key)
        if value is None:
            if default is None:
                raise self.error(key, "is missing; it is required")
            return default
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, not {kind_of(value)}")
        if not value.strip():
            raise self.error(key, "is empty; give a value")
        if found := fault(value):
            raise self.error(key, found)
        return value

    def texts(
        self, key: str, default: tuple[str, ...] = (), fault: Fault = lambda _: ""
    ) -> tuple[str, ...]:
        """Returns a list of strings.

        Args:
            key: Its key.
            default: What it is if it is missing.
            fault: What is wrong with one of the strings.

        Raises:
            TomlError: It is no list of strings, has one twice, or one has a fault.
        """
        values = self.value(key)
        if values is None:
            return default
        if not isinstance(values, list):
            raise self.error(
                key, f'must be a list of strings such as ["..."], not {kind_of(values)}'
            )
        for place, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(key, f"must have strings only, not {kind_of(value)}")
            if found := fault(value):
                raise self.error(key, found)
            if value in values[:place]:
                raise self.error(key, f"has {shown(value)} twice; remove one")
        return tuple(values)

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """Returns a number in a range.

        Args:
            key: Its key.
            default: What it is if it is missing.
            least: The smallest that is allowed.
            most: The largest that is allowed.

        Raises:
            TomlError: It is no number, or out of its range.
        """
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, not {kind_of(value)}")
        if not least <= value <= most:  # NaN neither
            raise self.error(key, f"must be {least:g} to {most:g}, not {str(value)[:_SHOWN]}")
        return float(value)

    def time(self, key: str) -> datetime.datetime | None:
        """Returns a time with its offset from UTC; None if it is missing.

        Raises:
            TomlError: It is no time, or has no offset.
        """
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, datetime.datetime) or value.tzinfo is None:
            example = "2027-01-31T12:00:00Z"
            found = "a time without Z" if isinstance(value, datetime.datetime) else kind_of(value)
            raise self.error(
                key,
                f"must be a date with a time and Z, such as {example} without quotes; it is "
                f"{found}",
            )
        return value

    def table(self, key: str) -> TomlTable | None:
        """Returns a table within this one; None if it is missing.

        Raises:
            TomlError: It is no table.
        """
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"must be a table, [{self.key(key)}], not {kind_of(value)}")
        return TomlTable(self.key(key), value)

    def tables(self, key: str) -> Iterator[tuple[str, TomlTable]]:
        """Yields the tables in a table of tables, with their keys; nothing if it is missing.

        Raises:
            TomlError: It is no table of tables.
        """
        table = self.table(key)
        if table is not None:
            for name in table._values:
                found = table.table(name)
                assert found is not None
                yield name, found

    def list_of_tables(self, key: str) -> list[TomlTable]:
        """Returns the tables of a list; each is named with its place, from 1.

        Raises:
            TomlError: It is no list of tables.
        """
        values = self.value(key)
        if values is None:
            return []
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(key, f"must be a list of tables, [[{self.key(key)}]]")
        return [
            TomlTable(f"{self.key(key)}[{place}]", value) for place, value in enumerate(values, 1)
        ]

    def finish(self) -> None:
        """Checks that every key is known.

        Raises:
            TomlError: One is not; the message has the nearest that is, or all.
        """
        for key in self._values:
            if key not in self._known:
                near = get_close_matches(key, self._known, 1)
                remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(self._known)}"
                raise self.error(key, f"is not a known key; {remedy}")


def shown(value: str) -> str:
    """Returns a string of a file as a message shows it: quoted, and cut to a few words."""
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


def kind_of(value: object) -> str:
    """Returns what a value is in the words of TOML, such as `a string`."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return "a date or time"
    return {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }[type(value)]
