"""The action `treadle models import` makes a model of the weights of a PyTorch module."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.option import given_options
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.transfer.transfer_options import (
    Outcome,
    add_target,
    add_transfer_options,
    sending,
    stored,
)
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.client import Client


def add_import(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action; returns its parser."""
    parser = actions.add_parser(
        "import",
        help="make a model of the weights of a PyTorch module",
        description="Send the state_dict of a PyTorch module, saved by safetensors, with its "
        "vocabulary. The server makes a model of it: cell, layers and sizes follow from the names "
        "and shapes of the tensors.",
        fill=_add_options,
    )
    parser.set_defaults(transfer=run)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files and the options."""
    parser.add_argument("file", metavar="FILE", help="the state_dict, in safetensors")
    parser.add_argument(
        "--vocabulary",
        metavar="VOCAB",
        help="the tokens in the order of their ids: a .json file with a list of them, or with an "
        "object of tokens and ids, or a text file with one on each line (default: none, for bytes)",
    )
    add_flags(parser, "models import", OPTIONS)
    add_target(parser, needs_name=True)
    add_transfer_options(parser)


def run(args: argparse.Namespace, console: Console, client: Client) -> Outcome:
    """Sends the weights and the vocabulary.

    Returns:
        The version.

    Raises:
        InputError: There is no vocabulary where one is needed, or it cannot be used.
    """
    from treadle.client.options import StateDictOptions
    from treadle.client.transfer.vocabulary_file import read_vocabulary

    kind = getattr(args, "tokenizer", "characters")
    if args.vocabulary is None and kind != "bytes":
        raise InputError(
            f"give --vocabulary VOCAB: the tokens of a module of {kind}, in the order of their ids"
        )
    vocabulary = [] if args.vocabulary is None else read_vocabulary(args.vocabulary)
    with sending(args, console, f"importing {args.model}") as transfer:
        reply = client.import_state_dict(
            Path(args.file),
            vocabulary=vocabulary,
            **given_options(args, StateDictOptions),
            **transfer,
        )
    return stored(reply, args.alias)
