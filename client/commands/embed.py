"""`treadle embed`: texts as vectors."""

from __future__ import annotations

import argparse
from itertools import tee

from treadle.client.commands.common import (
    Commands,
    add_connection,
    add_encoding,
    add_model,
    add_unknown,
    check_model,
    connect,
    weights_of,
)
from treadle.client.commands.score import Text, paired, read_lines
from treadle.client.console import Console
from treadle.client.errors import InputError


def add_parsers(commands: Commands) -> None:
    """Adds `treadle embed`."""
    parser = commands.add_parser(
        "embed",
        help="turn texts into vectors",
        description="Print the hidden state after each text as a vector: a JSON object a line "
        "with the text, its number of tokens and the values.",
    )
    add_model(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="the texts")
    parser.add_argument(
        "--per-line", metavar="FILE", help="each line of FILE in their place; - reads stdin"
    )
    add_encoding(parser)
    parser.add_argument(
        "--all-layers",
        action="store_true",
        default=argparse.SUPPRESS,
        help="the states of all layers, lowest first, one after the other (the last one's)",
    )
    add_unknown(parser, "what to do with unknown symbols (the model's)")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Prints a vector for each text.

    Raises:
        InputError: There are no texts, or the options do not go together.
    """
    from treadle.client.json_lines import as_json, to_line
    from treadle.client.options import EmbedOptions

    if "job" in vars(args) and args.model is not None:
        args.texts.insert(0, args.model)  # with --job, every word is a text
        args.model = None
    check_model(args)
    if bool(args.texts) == (args.per_line is not None):
        raise InputError("give either texts or --per-line FILE")
    found = read_lines(args, args.per_line) if args.per_line else _words(args.texts)
    labels, texts = tee(found)
    with connect(args) as client:
        options = weights_of(args, client, EmbedOptions)
        vectors = client.embeddings(args.model or "", (each.text for each in texts), **options)
        for text, vector in paired(labels, vectors):
            console.line(to_line({**text.label, **as_json(vector)}))


def _words(words: list[str]) -> list[Text]:
    """Labels the texts of the command line."""
    return [Text(word, {"text": word}) for word in words]
