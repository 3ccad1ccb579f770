"""The action `treadle models push` sends the file of a model to a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.transfer.transfer_options import (
    Outcome,
    add_target,
    add_transfer_options,
    sending,
    stored,
)

if TYPE_CHECKING:
    from treadle.client.client import Client


def add_push(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action; returns its parser."""
    push = actions.add_parser(
        "push",
        help="send the file of a model, which becomes a version",
        description="Send the file of a model, as `treadle models pull` writes it. It becomes a "
        "version, unless the model has one with the same file.",
    )
    push.add_argument("file", metavar="FILE", help="the file of the model")
    add_target(push, needs_name=True)
    add_transfer_options(push)
    push.set_defaults(transfer=run)
    return push


def run(args: argparse.Namespace, console: Console, client: Client) -> Outcome:
    """Sends the file; returns the version."""
    with sending(args, console, f"pushing {args.model}") as transfer:
        reply = client.import_model(Path(args.file), **transfer)
    return stored(reply, args.alias)
