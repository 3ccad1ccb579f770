"""`add_rows` and `add_learning` add the options of `treadle score-stream`; `check` checks them."""

from __future__ import annotations

import argparse
import math

from treadle.client.cli.options.field_flags import extend_group
from treadle.client.errors import InputError

LEARNING = {
    "optimizer": "--optimizer",
    "learning_rate": "--learning-rate",
    "clip_norm": "--clip-norm",
    "window": "--window",
    "publish": "--publish",
    "publish_every": "--publish-every",
    "publish_as": "--publish-as",
    "alias": "--alias",
}
"""Options that need --learn, and their flags."""

SCORING = {
    "job": "--job",
    "context": "--context",
    "state": "--state",
    "return_state": "--save-state",
    "inference_precision": "--inference-precision",
}
"""Options that exclude --learn, and their flags."""

BEGINS = "which always begins with a stored model"
LEARNS_IN = {"inference_precision": "which computes in float32"}
"""Why options exclude --learn: most of them for the first reason."""


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Adds what a row is, which rows are printed, and what they contain."""
    group = parser.add_argument_group("rows")
    group.add_argument(
        "--per",
        choices=("line", "event", "chunk"),
        default="line",
        help="print a row for each line, for each event (text between white space), or for each "
        "chunk of text that arrives (default: line)",
    )
    group.add_argument(
        "--format",
        choices=("plain", "jsonl"),
        default="plain",
        help="a line is the text itself, or a JSON object that holds it (default: plain)",
    )
    group.add_argument(
        "--column", metavar="NAME", help="jsonl: the field that holds the text (default: text)"
    )
    group.add_argument(
        "--threshold",
        metavar="NATS",
        type=float,
        help="print only rows above this score (default: all rows)",
    )
    group.add_argument(
        "--top-g",
        metavar="G",
        type=int,
        help="print the worst rank among the tokens of a row, and flag the row with ! where it is "
        "above G (0 or more; default: neither)",
    )
    group.add_argument(
        "--only-flagged", action="store_true", help="with --top-g: print flagged rows only"
    )
    extend_group(group, "score-stream", ("score-stream", "rows"))


def add_learning(parser: argparse.ArgumentParser) -> None:
    """Adds how the stream is learned, and where the result is stored."""
    group = parser.add_argument_group("learning")
    group.add_argument(
        "--learn",
        action="store_true",
        help="learn from each row after it was scored, on a copy of the model",
    )
    extend_group(group, "score-stream", ("score-stream", "learning"))
    group.add_argument(
        "--publish",
        action="store_true",
        help="store what was learned as a new version when the stream ends, for whatever reason",
    )
    group.add_argument(
        "--publish-every",
        type=int,
        metavar="N",
        help="store a new version after every N rows as well (1 or more; default: never)",
    )
    group.add_argument(
        "--publish-as",
        metavar="NAME",
        help="the name to store under (default: the model's)",
    )
    group.add_argument(
        "--alias", metavar="ALIAS", help="the alias of each new version (default: none)"
    )


def check(args: argparse.Namespace) -> None:
    """Checks that the options go together.

    Raises:
        InputError: They do not.
    """
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    for name, flag in (SCORING if args.learn else LEARNING).items():
        if name in given:
            if args.learn:
                reason = LEARNS_IN.get(name, BEGINS)
                raise InputError(f"{flag} does not go with --learn, {reason}")
            raise InputError(f"{flag} needs --learn: give that as well")
    for name in ("publish_as", "alias"):
        if getattr(args, name) == "":
            raise InputError(f"--{name.replace('_', '-')} is empty: give a name, or leave it out")
    if (args.publish_as or args.alias) and not (args.publish or args.publish_every):
        raise InputError("--publish-as and --alias need --publish: give that as well")
    if args.only_flagged and args.top_g is None:
        raise InputError("--only-flagged needs --top-g, which flags rows: give that as well")
    if args.per == "chunk" and args.format != "plain":
        raise InputError("--per chunk does not go with --format jsonl: leave one of them out")
    if args.column is not None and args.format != "jsonl":
        raise InputError("--column needs --format jsonl: give that as well")
    if args.threshold is not None and math.isnan(args.threshold):
        raise InputError("--threshold must be a number of nats, not nan")
    if args.top_g is not None and args.top_g < 0:
        raise InputError(f"--top-g cannot be {args.top_g}: ranks count from 1, and 0 flags all")
    if args.publish_every is not None and args.publish_every < 1:
        raise InputError(f"--publish-every cannot be {args.publish_every}: it counts rows from 1")
