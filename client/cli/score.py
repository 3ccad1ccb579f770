"""The command `treadle score` prints how likely a model finds texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import TYPE_CHECKING

from treadle.client.cli.connect import connect, request_options
from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.notices import print_unknown_share
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.output_file import write_output
from treadle.client.cli.display.tables import fit, print_tokens
from treadle.client.cli.input.labeled_texts import LabeledText, labeled_lines, with_labels
from treadle.client.cli.input.text_input import input_name, read_text
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.model_options import add_model, check_model
from treadle.client.cli.options.output_options import add_output, output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
    add_encoding,
)
from treadle.client.cli.options.state_options import save_path
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import TextScore

ROW = "{:>6}  {:>7}  {:>11}  {:>7}  {:>10}  {:>9}  {}"
"""Fixed columns, since the rows are printed as the scores arrive."""
HEAD = ROW.format("text", "tokens", "nats", "mean", "perplexity", "bits/char", "")
PLAIN_COLUMNS = (
    "token_count",
    "total_log_probability",
    "mean_nats",
    "perplexity",
    "bits_per_character",
)
"""The columns of a text as a plain row, after its number and before itself."""

PLAIN_TOKEN_COLUMNS = ("id", "log_probability", "rank", "text")
"""The columns of a token as a plain row, after an empty one."""

STATE_FIELD = "return_states"
INDENT = " " * 8


def add_parsers(commands: Commands) -> None:
    """Adds `treadle score`."""
    parser = commands.add_parser(
        "score",
        description="Print how likely a model finds texts: the sum of log-probabilities in "
        "nats, nats per token, perplexity and bits per character.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the text and the options."""
    add_model(parser, "score")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the text; - reads standard input")
    parser.add_argument(
        "--text",
        metavar="TEXT",
        nargs="+",
        action="extend",
        help="texts to score instead of FILE (default: the text of FILE)",
    )
    add_encoding(parser)
    parser.add_argument(
        "--per-line", action="store_true", help="score each line of FILE on its own"
    )
    add_flags(parser, "score", OPTIONS)
    add_flags(parser, "score", "state")
    add_output(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Scores the texts and prints each score as it arrives.

    Raises:
        InputError: The options do not go together.
    """
    from treadle.client.options import ScoreOptions

    if "job" in vars(args) and args.file is None:
        args.file = args.model  # with --job, the one word is the FILE
        args.model = None
    check_model(args)
    if STATE_FIELD in vars(args) and (args.per_line or len(args.text or ()) > 1):
        raise InputError("--save-state keeps the state after one text: give one")
    if args.per_line and args.text:
        raise InputError("--per-line scores the lines of a file: leave --text out")
    # tee keeps a text until its score has arrived, and no longer.
    labels, texts = tee(_texts_to_score(args))
    with connect(args) as client:
        options = request_options(args, client, ScoreOptions)
        path = save_path(options, STATE_FIELD)
        scores = client.score(args.model or "", (each.text for each in texts), **options)
        pairs = with_labels(labels, scores)
        if path is not None:
            pairs = _saved(pairs, path)
        if output_format(args) == "table":
            _print_table(pairs, console)
        else:
            _print_rows(pairs, output_format(args), console)


def _texts_to_score(args: argparse.Namespace) -> Iterator[LabeledText]:
    """Returns the texts to score.

    Raises:
        InputError: There is no text, or more than one source of texts.
    """
    if (args.file is None) == (args.text is None):
        raise InputError("give either a FILE (- for standard input) or --text")
    if args.text is not None:
        return (LabeledText(text, {"text": text}) for text in args.text)
    if args.per_line:
        return labeled_lines(args, args.file)
    return iter([LabeledText(read_text(args, args.file), {"file": input_name(args.file)})])


def _saved(
    pairs: Iterable[tuple[LabeledText, TextScore]], path: str
) -> Iterator[tuple[LabeledText, TextScore]]:
    """Yields the score of the only text, and writes the state after it."""
    for text, score in pairs:
        write_output(path, score.state)
        score.ClearField("state")
        yield text, score


def _print_rows(
    pairs: Iterable[tuple[LabeledText, TextScore]], output: str, console: Console
) -> None:
    """Prints an object for each text, or plain rows: its own, then one for each token."""
    from treadle.client.cli.display.json_lines import as_json, to_line
    from treadle.client.cli.display.plain_rows import TAB, plain_row

    unknown = tokens = 0
    for count, (text, score) in enumerate(pairs, 1):
        if output == "json":
            console.line(to_line({**text.label, **as_json(score)}))
        else:
            number = str(text.label.get("line", count))
            name = one_line(str(text.label.get("text", text.label.get("file", ""))))
            console.line(TAB.join([number, plain_row(score, PLAIN_COLUMNS), name]))
            for token in score.tokens:
                console.line(TAB + plain_row(token, PLAIN_TOKEN_COLUMNS))
        unknown += score.unknown_count
        tokens += score.token_count
    print_unknown_share(unknown, tokens)


def _print_table(pairs: Iterable[tuple[LabeledText, TextScore]], console: Console) -> None:
    """Prints a row for each text and, after several, one for all of them."""
    from treadle.v1.sequence_pb2 import TextScore

    total = TextScore()
    count = 0
    for count, (text, score) in enumerate(pairs, 1):
        if count == 1:  # not before: an error would follow the head
            console.line(HEAD.rstrip())
        name = str(text.label.get("line", count))
        console.line(_row(name, score, text.label.get("text", ""), console))
        if score.tokens:
            print_tokens(score.tokens, console, INDENT)
        total.total_log_probability += score.total_log_probability
        total.token_count += score.token_count
        total.character_count += score.character_count
        total.unknown_count += score.unknown_count
    if count == 0:
        console.line(HEAD.rstrip())
    elif count > 1:
        console.line(_row("all", _with_means(total), "", console))
    print_unknown_share(total.unknown_count, total.token_count)


def _row(name: str, score: TextScore, text: str, console: Console) -> str:
    """Lays out the score of one text; a dash marks a missing value."""
    set_fields = {field.name: value for field, value in score.ListFields()}
    means = [
        write(set_fields[field]) if field in set_fields else "-"
        for field, write in (
            ("mean_nats", number_text),
            ("perplexity", "{:.5g}".format),
            ("bits_per_character", number_text),
        )
    ]
    nats = number_text(score.total_log_probability)
    row = ROW.format(name, score.token_count, nats, *means, "")
    return (row + fit(console, text, len(row))).rstrip()


def _with_means(total: TextScore) -> TextScore:
    """Fills in the means of a sum of scores, as the server does for one text."""
    if total.token_count:
        total.mean_nats = -total.total_log_probability / total.token_count
        total.perplexity = math.exp(min(total.mean_nats, 700.0))
    if total.character_count and not total.unknown_count:
        bits = -total.total_log_probability / math.log(2)
        total.bits_per_character = bits / total.character_count
    return total
