"""The command `treadle embed` prints texts as vectors."""

from __future__ import annotations

import argparse
from itertools import tee

from treadle.client.cli.connect import connect, request_options
from treadle.client.cli.display.console import Console
from treadle.client.cli.input.labeled_texts import LabeledText, labeled_lines, with_labels
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.model_options import add_model, check_model
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
    add_encoding,
)
from treadle.client.errors import InputError


def add_parsers(commands: Commands) -> None:
    """Adds `treadle embed`."""
    parser = commands.add_parser(
        "embed",
        description="Print the hidden state after each text as a vector: a JSON object per line "
        "with the text, its number of tokens and the values.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the texts and the options."""
    add_model(parser, "embed")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="the texts")
    parser.add_argument(
        "--per-line",
        metavar="FILE",
        help="embed each line of FILE instead; - reads standard input (default: TEXT)",
    )
    add_encoding(parser)
    add_flags(parser, "embed", OPTIONS)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Prints a vector for each text.

    Raises:
        InputError: There are no texts, or the options do not go together.
    """
    from treadle.client.cli.display.json_lines import as_json, to_line
    from treadle.client.options import EmbedOptions

    if "job" in vars(args) and args.model is not None:
        args.texts.insert(0, args.model)  # with --job, every word is a text
        args.model = None
    check_model(args)
    if bool(args.texts) == (args.per_line is not None):
        raise InputError("give either texts or --per-line FILE")
    found = labeled_lines(args, args.per_line) if args.per_line else _words(args.texts)
    labels, texts = tee(found)
    with connect(args) as client:
        options = request_options(args, client, EmbedOptions)
        vectors = client.embeddings(args.model or "", (each.text for each in texts), **options)
        for text, vector in with_labels(labels, vectors):
            console.line(to_line({**text.label, **as_json(vector)}))


def _words(words: list[str]) -> list[LabeledText]:
    """Labels the texts of the command line."""
    return [LabeledText(word, {"text": word}) for word in words]
