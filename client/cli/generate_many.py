"""`print_items` generates several texts for `treadle generate` and prints one per line."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.notices import print_break
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.quota_notice import QuotaNotice
from treadle.client.cli.display.tables import pad

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.generation import GeneratedText

FLAGS = ("n", "unique", "novel", "max_tries", "with_likelihood")


def add_items(parser: argparse.ArgumentParser) -> None:
    """Adds how many texts to generate, and which of them count."""
    group = parser.add_argument_group("several texts, one per line")
    group.add_argument(
        "-n",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="generate N texts at once (1 or more; default: 1)",
    )
    group.add_argument(
        "--unique",
        action="store_true",
        help="only texts that differ from each other: generate more until there are N",
    )
    group.add_argument(
        "--novel",
        action="store_true",
        help="only texts that are not in the training data; needs a model trained with "
        "--novelty-index",
    )
    group.add_argument(
        "--max-tries",
        type=int,
        metavar="N",
        help="with --unique or --novel: generate at most N texts (1 or more; default: 10 for each)",
    )
    group.add_argument(
        "--with-likelihood",
        action="store_true",
        help="print columns: the text, its log-probability in nats and, where novelty is known, "
        "`new` or `known`",
    )


def wants_items(args: argparse.Namespace) -> bool:
    """Returns whether several texts, or one in the form of several, are requested."""
    given = (vars(args).get(flag) for flag in FLAGS)
    return any(value is not None and value is not False for value in given)  # -n 0 is an error


def print_items(
    client: Client, args: argparse.Namespace, prompt: str, options: dict[str, Any], console: Console
) -> None:
    """Generates several texts and prints each when it and all before it have ended."""
    n = getattr(args, "n", 1)
    items = client.generate_many(
        args.model or "",
        prompt,
        n,
        unique=args.unique,
        novel=args.novel,
        max_tries=args.max_tries,
        reconnect_s=args.reconnect_s,
        on_break=print_break,
        **options,
    )
    with items, QuotaNotice(client.server_info) as notice:
        for text in notice.over(items):
            console.line(_line(text, args, console))
    if items.missing:
        print(
            f"treadle: only {items.given} of {n} texts after {items.tries} tries", file=sys.stderr
        )


def _line(text: GeneratedText, args: argparse.Namespace, console: Console) -> str:
    """Shows a text on one line, whatever is in it."""
    if getattr(args, "json", False):
        return _json(text)
    line = one_line(text.text)
    if not args.with_likelihood:
        return line
    cells = [number_text(text.result.total_log_probability)]
    if text.result.HasField("novelty"):
        cells.append("new" if text.result.novelty.is_new else "known")
    if console.is_terminal:
        return "  ".join([pad(console, line, 24), cells[0].rjust(10), *cells[1:]])
    return "\t".join([line, *cells])


def _json(text: GeneratedText) -> str:
    """Writes a text and what it came to as one object."""
    from treadle.client.cli.display.json_lines import as_json, to_line

    tokens = {"tokens": [as_json(token) for token in text.tokens]} if text.tokens else {}
    fields = {"index": text.index, "text": text.text, **tokens, "result": as_json(text.result)}
    return to_line(fields)
