"""The action `treadle models pull` fetches the file of a model."""

from __future__ import annotations

import argparse
import sys

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.output_file import check_output
from treadle.client.cli.display.tables import print_message
from treadle.client.cli.options.output_options import output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_version
from treadle.client.cli.transfer.transfer_options import add_transfer_options, shown
from treadle.client.errors import InputError
from treadle.client.files.paths import display_path

SUFFIX = ".safetensors"


def add_pull(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action."""
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
    pull.set_defaults(run=run)
    return pull


def run(args: argparse.Namespace, console: Console) -> None:
    """Fetches the file.

    Raises:
        InputError: It cannot be written.
    """
    from treadle.client.cli.display.progress import size_text

    if args.out == "-":
        _to_standard_output(args, console)
        return
    path = args.out if args.out is not None else args.model.partition("@")[0] + SUFFIX
    check_output(path)
    console.interruption = lambda: "interrupted: the same command continues"
    with connect(args) as client, shown(args, console, f"pulling {args.model}") as transfer:
        model = client.export_model(
            args.model,
            path,
            version=args.version,
            overwrite=args.overwrite,
            timeout_s=getattr(args, "timeout", None),
            **transfer,
        )
    if not print_message(model, output_format(args), console):
        size = size_text(model.size_bytes)
        console.line(f"{model.name} version {model.version} is in {display_path(path)} ({size})")


def _to_standard_output(args: argparse.Namespace, console: Console) -> None:
    if console.is_terminal:
        raise InputError("a model is no text for a terminal: give --out FILE, or a pipe")
    with connect(args) as client, shown(args, console, f"pulling {args.model}") as transfer:
        client.export_model(
            args.model,
            sys.stdout.buffer,
            version=args.version,
            timeout_s=getattr(args, "timeout", None),
            **transfer,
        )
    sys.stdout.buffer.flush()
