"""The command `treadle chat` lets a model continue from each typed line, with a memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from treadle.client.cli.connect import connect
from treadle.client.cli.conversation.conversation import talk
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.input.text_input import input_lines
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_encoding
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.options import GenerateOptions


def add_parsers(commands: Commands) -> None:
    """Adds `treadle chat`."""
    parser = commands.add_parser(
        "chat",
        description="Read lines, and let the model continue from each of them up to a stop. Its "
        "memory of the conversation is a few kilobytes, which /save writes to a file. /help "
        "lists the other commands.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model and the options."""
    parser.add_argument("model", metavar="MODEL", help="the model's name, or NAME@ALIAS")
    add_flags(parser, "chat", OPTIONS)
    add_encoding(parser)
    add_flags(parser, "chat", "sampling", ("greedy", "best-of"), of="generate")
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the conversation until the input ends.

    Returns:
        The exit code.
    """
    from treadle.client.cli.options.option import given_options
    from treadle.client.options import GenerateOptions

    options = cast("GenerateOptions", given_options(args, GenerateOptions))
    options.setdefault("stop_sequences", ["\n"])
    with connect(args) as client:
        model = client.get_model(args.model, version=args.version).model
        options["version"] = model.version
        is_typed = sys.stdin is not None and sys.stdin.isatty()
        return talk(client, model, options, console, None if is_typed else _piped(args))


def _piped(args: argparse.Namespace) -> Iterator[str]:
    """Yields lines from a file or a pipe; prints why a line is not text.

    Raises:
        InputError: The input is closed, or has the byte order mark of another encoding.
    """
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed")
    for number, line in enumerate(input_lines(args, "-"), 1):
        if line.fault:
            print_notice(f"line {number:,} was skipped: {line.fault}")
        else:
            yield line.text
