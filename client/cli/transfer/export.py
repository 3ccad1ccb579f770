"""The action `treadle models export` writes a model in the format of another program."""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.output_file import check_output
from treadle.client.cli.options.output_options import output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_version
from treadle.client.cli.transfer.converter import SAFETENSORS, SUFFIXES, check_converter, convert
from treadle.client.cli.transfer.transfer_options import add_transfer_options, shown
from treadle.client.errors import InputError
from treadle.client.files.paths import display_path

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.v1.sequence_pb2 import Model

DESCRIPTION = """\
Write a model in the format of another program: onnx for ONNX Runtime, rtneural for audio plug-ins,
safetensors for PyTorch and other Treadle servers, npz for NumPy. The model's file is fetched from
the server and converted on this machine, which needs `pip install '.[server]'` in a checkout of
Treadle for that, and '.[server,onnx]' for onnx.
"""


def add_export(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action; returns its parser."""
    export = actions.add_parser(
        "export", help="write a model in the format of another program", description=DESCRIPTION
    )
    export.add_argument("model", metavar="NAME", nargs="?", help="the model's name, or NAME@ALIAS")
    add_version(export, "the model's version (1 or more; default: the newest)")
    export.add_argument(
        "--file",
        metavar="FILE",
        help="convert a model file, and ask no server (default: fetch that of NAME)",
    )
    export.add_argument(
        "--format", choices=list(SUFFIXES), required=True, help="the format to write"
    )
    ends = ", ".join(SUFFIXES.values())
    export.add_argument(
        "--out", metavar="FILE", help=f"the file to write (default: NAME with its end: {ends})"
    )
    export.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace the file if it exists"
    )
    add_transfer_options(export)
    export.set_defaults(transfer=run)
    return export


def run(args: argparse.Namespace, console: Console, client: Client) -> None:
    """Writes a model, and says so; with --file it does not ask the server.

    Raises:
        InputError: The words do not go together, a package is missing, the file exists already or
            cannot be written.
    """
    if (args.model is None) == (args.file is None):
        raise InputError("give either the NAME of a model or --file FILE")
    if args.file is not None and args.version:
        raise InputError("--version chooses among the versions on a server: leave it out")
    path = _target(args)
    facts: dict[str, str | int] = {"file": path, "format": args.format}
    if args.file is not None:
        check_converter(args.format)
        convert(args.file, args.format, path)
        source = display_path(args.file)
    else:
        model = _export(args, path, console, client)
        facts |= {"model": model.name, "version": model.version}
        source = f"{model.name} version {model.version}"
    facts["size_bytes"] = os.path.getsize(path)
    _report(facts, source, args, console)


def _report(
    facts: dict[str, str | int], source: str, args: argparse.Namespace, console: Console
) -> None:
    """Says what was written."""
    from treadle.client.cli.display.json_lines import to_line
    from treadle.client.cli.display.progress import size_text

    output = output_format(args)
    if output == "json":
        console.line(to_line(facts))
    elif output == "plain":
        console.line("\t".join(map(str, facts.values())))
    else:
        size = size_text(int(facts["size_bytes"]))
        path = display_path(str(facts["file"]))
        console.line(f"{source} is in {path} as {args.format} ({size})")


def _target(args: argparse.Namespace) -> str:
    """Returns the file to write.

    Raises:
        InputError: It cannot be written, or exists.
    """
    if args.out is not None:
        path = str(args.out)
    elif args.model is not None:
        path = args.model.partition("@")[0] + SUFFIXES[args.format]
    else:
        stem = os.path.basename(args.file).removesuffix(SUFFIXES[SAFETENSORS])
        path = stem + SUFFIXES[args.format]
    check_output(path)
    if os.path.lexists(path) and not args.overwrite:
        raise InputError(
            f"{display_path(path)} exists: give --force to replace it, or another --out"
        )
    return path


def _export(args: argparse.Namespace, path: str, console: Console, client: Client) -> Model:
    """Fetches a model and converts it.

    Returns:
        The version.
    """
    if args.format == SAFETENSORS:
        return _fetch(args, path, console, client)
    check_converter(args.format)
    temporary = tempfile.TemporaryDirectory(prefix="treadle-export-", ignore_cleanup_errors=True)
    console.before_exit = temporary.cleanup
    with temporary as folder:
        source = os.path.join(folder, "model" + SUFFIXES[SAFETENSORS])
        model = _fetch(args, source, console, client)
        convert(source, args.format, path)
    return model


def _fetch(args: argparse.Namespace, path: str, console: Console, client: Client) -> Model:
    """Fetches the file of a model.

    Returns:
        The version.
    """
    with shown(args, console, f"fetching {args.model}") as transfer:
        return client.export_model(
            args.model,
            path,
            version=args.version,
            overwrite=True,
            timeout_s=getattr(args, "timeout", None),
            **transfer,
        )
