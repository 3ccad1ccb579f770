"""The options of `treadle score-stream`."""

from __future__ import annotations

import argparse
import math

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
"""What only a stream that is learned has, by its option."""

SCORING = {
    "job": "--job",
    "context": "--context",
    "state": "--state",
    "return_state": "--save-state",
}
"""What only a stream that is not learned has, by its option."""


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Adds what a row is, which rows are printed, and what they tell."""
    unset = argparse.SUPPRESS
    group = parser.add_argument_group("rows")
    group.add_argument(
        "--per",
        choices=("line", "event", "chunk"),
        default="line",
        help="print a row for each line, for each run of anything but white space in it, or for "
        "whatever arrives at once (line)",
    )
    group.add_argument(
        "--format",
        choices=("plain", "jsonl"),
        default="plain",
        help="what a line is: the text itself, or a JSON object that holds it (plain)",
    )
    group.add_argument("--column", metavar="NAME", help="jsonl: the field of the text (text)")
    group.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        help="what to do about a line that cannot be read: mark and count it and continue, as if "
        "it had not been there, or end there with exit code 2 (skip for standard input and "
        "pipes, stop for a file)",
    )
    group.add_argument(
        "--threshold", metavar="NATS", type=float, help="print only rows above so many nats"
    )
    group.add_argument(
        "--top-g",
        metavar="G",
        type=int,
        help="tell the worst rank of a row's tokens, and flag it with ! where that is above G",
    )
    group.add_argument("--only-flagged", action="store_true", help="with --top-g: print no others")
    group.add_argument(
        "--tokens", dest="log_probabilities", action="store_true", default=unset,
        help="tell each token's log-probability",
    )  # fmt: skip
    group.add_argument("--ranks", action="store_true", default=unset, help="and its rank")
    group.add_argument(
        "--top", dest="top_log_probabilities", type=int, metavar="N", default=unset,
        help="and the N likeliest tokens in its place",
    )  # fmt: skip
    group.add_argument(
        "--context", metavar="TEXT", default=unset, help="text before the stream; it is not scored"
    )


def add_learning(parser: argparse.ArgumentParser) -> None:
    """Adds how to learn, and what becomes of it."""
    unset = argparse.SUPPRESS
    group = parser.add_argument_group("learning")
    group.add_argument(
        "--learn",
        action="store_true",
        help="learn from each row after it was scored, on a copy of the model of one's own",
    )
    group.add_argument(
        "--optimizer", choices=("sgd", "adam"), default=unset, help="the update rule (sgd)"
    )
    group.add_argument(
        "--learning-rate", type=float, metavar="F", default=unset, help="(sgd 0.05, adam 0.0005)"
    )
    group.add_argument(
        "--clip-norm", type=float, metavar="F", default=unset,
        help="scale larger gradients down to this norm; 0 leaves them (1)",
    )  # fmt: skip
    group.add_argument(
        "--window", type=int, metavar="N", default=unset,
        help="the most tokens that one update learns from (64)",
    )  # fmt: skip
    group.add_argument(
        "--publish",
        action="store_true",
        help="at the end, whatever ends the stream, store what was learned as a new version",
    )
    group.add_argument("--publish-every", type=int, metavar="N", help="and after every N rows")
    group.add_argument("--publish-as", metavar="NAME", help="under this name (the model's)")
    group.add_argument("--alias", metavar="ALIAS", help="give each new version this alias")


def check(args: argparse.Namespace) -> None:
    """Checks that the options go together.

    Raises:
        InputError: They do not.
    """
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    for name, flag in (SCORING if args.learn else LEARNING).items():
        if name in given:
            raise InputError(
                f"{flag} does not go with --learn: learning begins again, from a stored model"
                if args.learn
                else f"{flag} is about learning: give --learn as well"
            )
    for name in ("publish_as", "alias"):
        if getattr(args, name) == "":
            raise InputError(f"--{name.replace('_', '-')} is empty: give a name, or leave it out")
    if (args.publish_as or args.alias) and not (args.publish or args.publish_every):
        raise InputError("--publish-as and --alias are about publishing: give --publish as well")
    if args.only_flagged and args.top_g is None:
        raise InputError("--only-flagged prints what --top-g flags: give --top-g as well")
    if args.per == "chunk" and args.format != "plain":
        raise InputError("--per chunk takes text as it comes, and no lines of JSON")
    if args.column is not None and args.format != "jsonl":
        raise InputError("--column names a field of lines of --format jsonl: give that as well")
    if args.threshold is not None and math.isnan(args.threshold):
        raise InputError("--threshold must be a number of nats, not nan")
    if args.top_g is not None and args.top_g < 0:
        raise InputError(f"--top-g cannot be {args.top_g}: ranks count from 1, and 0 flags all")
    if args.publish_every is not None and args.publish_every < 1:
        raise InputError("--publish-every counts rows: give 1 or more")
