"""`add_train_options` adds the files and options of `treadle train`."""

from __future__ import annotations

import argparse

from treadle.client.cli.options.field_flags import add_flags, groups
from treadle.client.cli.options.shared import add_follow, add_json
from treadle.client.cli.options.values import weight


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files of the corpus and every option of `treadle train`."""
    parser.add_argument(
        "file", metavar="FILE", nargs="+", help="the corpus; - reads standard input"
    )
    for role, use in (("valid", "validate on"), ("test", "test the stored model on")):
        parser.add_argument(
            f"--{role}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"a separate file to {use}; may be repeated (default: a share of the corpus)",
        )
    parser.add_argument(
        "--weight",
        metavar="FILE=W",
        dest="weights",
        action="append",
        type=weight,
        default=[],
        help="how often an epoch reads FILE; may be repeated (above 0 to 100; default: 1)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        required=True,
        help="the model's name; a name in use gets a new version (1 to 100 letters, digits, `.`, "
        "`_` and `-`)",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="leave once the server has accepted the job, and print the job's id "
        "(with --json: the first event)",
    )
    add_json(parser)
    add_follow(parser)
    for group in groups("train"):
        add_flags(parser, "train", group)
