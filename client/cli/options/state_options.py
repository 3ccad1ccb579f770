"""`add_state` adds --state and --save-state, files that hold a state as raw bytes."""

from __future__ import annotations

import argparse
from typing import Any

from treadle.client.cli.display.output_file import check_output
from treadle.client.files.paths import display_path


def add_state(parser: argparse.ArgumentParser, field: str, text: str) -> None:
    """Adds --state and --save-state.

    Args:
        parser: The command's parser.
        field: The request's field that asks for the state back.
        text: The subject that continues from the state, for the help.
    """
    group = parser.add_argument_group("state")
    group.add_argument(
        "--state",
        metavar="FILE",
        type=read_state,
        default=argparse.SUPPRESS,
        help=f"{text} continues from the state in FILE, which the same model returned "
        "(default: none)",
    )
    group.add_argument(
        "--save-state",
        dest=field,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="write the state at the end to FILE (default: discard it)",
    )


def read_state(path: str) -> bytes:
    """Reads a state file.

    Returns:
        The bytes of the state.

    Raises:
        argparse.ArgumentTypeError: It cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            state = file.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot read {display_path(path)}: {error.strerror}"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise argparse.ArgumentTypeError(f"cannot read {path!r}: {error}") from error
    if not state:
        raise argparse.ArgumentTypeError(f"{display_path(path)} is empty, and not a state")
    return state


def save_path(options: dict[str, Any], field: str) -> str | None:
    """Turns the file of --save-state among the options into the request's field.

    Returns:
        The file's path; None where no state is to be kept.

    Raises:
        InputError: It cannot be written.
    """
    if field not in options:
        return None
    path = str(options[field])
    options[field] = True
    check_output(path)
    return path
