"""`add_transfers` adds the actions; the others show and repeat what all of them do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.display.tables import print_message
from treadle.client.cli.display.transfer_progress import TransferProgress
from treadle.client.cli.options.output_options import output_format
from treadle.client.cli.options.values import duration

if TYPE_CHECKING:
    from treadle.client.errors import ServerError
    from treadle.v1.sequence_pb2 import ImportModelResponse


def add_transfer_options(parser: argparse.ArgumentParser) -> None:
    """Adds --quiet and --reconnect."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--reconnect",
        dest="retry_s",
        metavar="TIME",
        type=duration,
        default=60.0,
        help="how long to try to reconnect where the connection breaks, 0 never (0 or more; "
        "default: 60s)",
    )


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
            "retry_s": args.retry_s,
        }


def _advance(progress: TransferProgress) -> Callable[[int, int], None]:
    def advance(done_bytes: int, total_bytes: int) -> None:
        progress.total_bytes = total_bytes or None
        progress.advance(done_bytes - progress.done_bytes)

    return advance


def _say_break(error: ServerError) -> None:
    print_notice(f"{error}; trying again")


def print_stored(reply: ImportModelResponse, args: argparse.Namespace, console: Console) -> None:
    """Prints the version that a file has become."""
    for notice in reply.notices:
        print_notice(notice)
    if print_message(reply, output_format(args), console):
        return
    model = reply.model
    alias = f", {model.name}@{args.alias}," if args.alias else ""
    state = "was that file already" if reply.reused else "is stored"
    console.line(f"{model.name} version {model.version}{alias} {state}")
