"""`add_transfer_options`, `shown`, `sending` and `stored` are for all actions with files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.display.transfer_progress import TransferProgress
from treadle.client.cli.options.shared import add_reconnect

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from treadle.client.errors import ServerError
    from treadle.v1.sequence_pb2 import ImportModelResponse


class Outcome(NamedTuple):
    """What an action has done."""

    message: Message
    """What it prints as JSON."""
    text: str
    """What it prints for people."""


def add_transfer_options(parser: argparse.ArgumentParser) -> None:
    """Adds --quiet and --reconnect."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_reconnect(parser)


def add_target(parser: argparse.ArgumentParser, needs_name: bool) -> None:
    """Adds what the version will be called."""
    parser.add_argument(
        "--name",
        dest="model",
        metavar="NAME",
        required=needs_name,
        default="",
        help="the model's name there; if it exists, the file becomes a new version"
        + ("" if needs_name else " (default: its name here)"),
    )
    parser.add_argument(
        "--alias", metavar="ALIAS", default="", help="an alias for the version (default: none)"
    )
    parser.add_argument(
        "--new-version",
        dest="reuse_identical",
        action="store_false",
        help="store a new version even if the model has one with the same file",
    )


@contextmanager
def shown(args: argparse.Namespace, console: Console, verb: str) -> Iterator[dict[str, Any]]:
    """Shows the progress of a transfer.

    Args:
        args: The parsed arguments.
        console: The output.
        verb: The beginning of the line, such as "pulling bard".

    Yields:
        The arguments of the client's method that are about progress and broken connections.
    """
    with TransferProgress(console, verb, quiet=args.quiet) as progress:
        yield {
            "on_progress": _advance(progress),
            "on_break": _say_break,
            "retry_s": args.reconnect_s,
        }


@contextmanager
def sending(args: argparse.Namespace, console: Console, verb: str) -> Iterator[dict[str, Any]]:
    """Shows the progress of a file that is sent; as `shown`.

    Yields:
        The arguments that all methods of the client take that send a file.
    """
    with shown(args, console, verb) as transfer:
        yield {
            "model": args.model,
            "alias": args.alias,
            "reuse_identical": args.reuse_identical,
            "timeout_s": getattr(args, "timeout", None),
            **transfer,
        }


def _advance(progress: TransferProgress) -> Callable[[int, int], None]:
    def advance(done_bytes: int, total_bytes: int) -> None:
        progress.total_bytes = total_bytes or None
        progress.advance(done_bytes - progress.done_bytes)

    return advance


def _say_break(error: ServerError) -> None:
    print_notice(f"{error}; trying again")


def stored(reply: ImportModelResponse, alias: str) -> Outcome:
    """Returns what is said of the version that a file has become.

    Args:
        reply: The reply of the server.
        alias: The alias that the version was given; empty: none.
    """
    for notice in reply.notices:
        print_notice(notice)
    model = reply.model
    named = f", {model.name}@{alias}," if alias else ""
    state = "was that file already" if reply.reused else "is stored"
    return Outcome(reply, f"{model.name} version {model.version}{named} {state}")
