"""`add_output` adds the choice of an output format; `add_plain` adds --plain."""

from __future__ import annotations

import argparse

FORMATS = ("table", "json", "plain")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds --output, and --json for one of its values."""
    parser.add_argument(
        "--output",
        choices=FORMATS,
        default=argparse.SUPPRESS,
        help="a table for people, JSON with an object per line, or plain rows with tabs between "
        "the values (default: table)",
    )
    parser.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        default=argparse.SUPPRESS,
        help="print JSON, one object per line, as --output json does",
    )


def output_format(args: argparse.Namespace) -> str:
    """Returns the chosen output format."""
    return str(getattr(args, "output", "table"))


def add_plain(parser: argparse._ActionsContainer) -> None:
    """Adds --plain."""
    parser.add_argument(
        "--plain",
        action="store_true",
        default=argparse.SUPPRESS,
        help="draw nothing on a terminal: no color, no bars, no line that is overwritten",
    )
