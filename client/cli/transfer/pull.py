"""The action `treadle models pull` fetches the file of a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.output_file import check_output
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_version
from treadle.client.cli.transfer.transfer_options import Outcome, add_transfer_options, shown
from treadle.client.errors import InputError
from treadle.client.files.paths import display_path

if TYPE_CHECKING:
    from treadle.client.client import Client

SUFFIX = ".safetensors"


def add_pull(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action; returns its parser."""
    pull = actions.add_parser(
        "pull",
        help="fetch the file of a model",
        description="Fetch the file of one version of a model: its weights, tokenizer and "
        "training record. What an interrupted pull has left in FILE.part is not fetched again.",
    )
    pull.add_argument("model", metavar="NAME", help="the model's name, or NAME@ALIAS")
    add_version(pull, "the model's version (1 or more; default: the newest)")
    pull.add_argument(
        "--out",
        metavar="FILE",
        help=f"the file to write, - for standard output (default: NAME{SUFFIX})",
    )
    pull.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace FILE if it exists"
    )
    add_transfer_options(pull)
    pull.set_defaults(transfer=run)
    return pull


def run(args: argparse.Namespace, console: Console, client: Client) -> Outcome | None:
    """Fetches the file.

    Returns:
        The version; None where its file is the output.

    Raises:
        InputError: It cannot be written.
    """
    from treadle.client.cli.display.progress import size_text

    if args.out == "-":
        _to_standard_output(args, console, client)
        return None
    path = args.out if args.out is not None else args.model.partition("@")[0] + SUFFIX
    check_output(path)
    console.interruption = lambda: "interrupted: the same command continues"
    with shown(args, console, f"pulling {args.model}") as transfer:
        model = client.export_model(
            args.model,
            path,
            version=args.version,
            overwrite=args.overwrite,
            timeout_s=getattr(args, "timeout", None),
            **transfer,
        )
    size = size_text(model.size_bytes)
    text = f"{model.name} version {model.version} is in {display_path(path)} ({size})"
    return Outcome(model, text)


def _to_standard_output(args: argparse.Namespace, console: Console, client: Client) -> None:
    if console.is_terminal:
        raise InputError("a model is no text for a terminal: give --out FILE, or a pipe")
    with shown(args, console, f"pulling {args.model}") as transfer:
        client.export_model(
            args.model,
            sys.stdout.buffer,
            version=args.version,
            timeout_s=getattr(args, "timeout", None),
            **transfer,
        )
    sys.stdout.buffer.flush()
