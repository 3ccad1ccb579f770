"""`add_option` adds an option whose help says everything; `given_options` returns those given."""

from __future__ import annotations

import argparse
from typing import Any


def add_option(
    group: argparse._ActionsContainer,
    flag: str,
    meaning: str,
    *,
    also: str = "",
    values: str = "",
    default: str = "",
    **settings: Any,
) -> argparse.Action:
    """Adds an option that is absent from the parsed arguments unless it is given.

    The server knows the defaults; the help states them for the reader, and a test compares them
    with the configs of the model.

    Args:
        group: The parser or group.
        flag: The flag, such as `--hidden-size`.
        meaning: The help's first part.
        also: Another name of the flag.
        values: The range of its value, such as "1 to 4,096".
        default: The default, as the help states it; empty for a switch.
        **settings: Further arguments of `add_argument`.

    Returns:
        The option.
    """
    notes = [values] if values else []
    if default:
        notes.append(f"default: {default}")
    text = f"{meaning} ({'; '.join(notes)})" if notes else meaning
    flags = [flag, also] if also else [flag]
    return group.add_argument(*flags, help=text, default=argparse.SUPPRESS, **settings)


def given_options(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """Returns the options of a TypedDict that were given."""
    return {name: vars(args)[name] for name in options.__annotations__ if name in vars(args)}
