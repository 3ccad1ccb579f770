"""`treadle generate`: text from a model, as it is made."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from treadle.client.commands.common import (
    Commands,
    add_connection,
    add_json,
    add_model,
    add_unknown,
    check_model,
    connect,
    read_text,
    token_table,
    weights_of,
)
from treadle.client.console import Console

if TYPE_CHECKING:
    from treadle.client.texts import Generation


def add_parsers(commands: Commands) -> None:
    """Adds `treadle generate`."""
    parser = commands.add_parser(
        "generate",
        help="generate text from a model",
        description="Generate text and print it as it is made, without the prompt, and a "
        "newline at the end.",
    )
    add_model(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", default="", help="the text to go on from")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read it from a file, or - for stdin")
    _add_draw(parser)
    parser.add_argument(
        "--log-probabilities",
        action="store_true",
        default=argparse.SUPPRESS,
        help="tell each token's log-probability: in --json, else on standard error",
    )
    parser.add_argument("--no-newline", action="store_true", help="print the bare text")
    add_unknown(parser, "what to do with unknown symbols of the prompt (the model's)")
    add_json(parser)
    add_connection(parser)
    parser.set_defaults(run=run)


def _add_draw(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are drawn, and when that ends."""
    unset = argparse.SUPPRESS
    group = parser.add_argument_group("draw")
    heat = group.add_mutually_exclusive_group()
    heat.add_argument(
        "--temperature", type=float, metavar="F", default=unset, help="0 to 100; 0 is greedy (1)"
    )
    heat.add_argument(
        "--greedy",
        dest="temperature",
        action="store_const",
        const=0.0,
        default=unset,
        help="always take the likeliest token",
    )
    group.add_argument(
        "--top-k", type=int, metavar="N", default=unset, help="among the N likeliest tokens (all)"
    )
    group.add_argument(
        "--top-p", type=float, metavar="F", default=unset, help="among those that hold F (1)"
    )
    group.add_argument(
        "--min-p", type=float, metavar="F", default=unset,
        help="among those at least F times as likely as the likeliest (0)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, metavar="N", default=unset, help="same seed, same text (random)"
    )
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", default=unset, help="end after N tokens (256)"
    )
    group.add_argument(
        "--stop",
        dest="stop_sequences",
        action="append",
        metavar="TEXT",
        default=unset,
        help="end where TEXT appears; may be repeated; a newline is $'\\n' in most shells",
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Generates, printing each piece as it comes."""
    from treadle.client.options import GenerateOptions

    check_model(args)
    prompt = args.prompt if args.prompt_file is None else read_text(args.prompt_file)
    with connect(args) as client:
        options = weights_of(args, client, GenerateOptions)
        with client.generate(args.model or "", prompt, **options) as generation:
            if getattr(args, "json", False):
                _print_json(generation, console)
                return
            for piece in generation:
                console.text(piece)
            if not args.no_newline:
                console.text("\n")
            if "log_probabilities" in options:
                print(*_summary(generation), sep="\n", file=sys.stderr)


def _print_json(generation: Generation, console: Console) -> None:
    """Prints each of the server's messages as it comes."""
    from treadle.client.json_lines import to_line

    for response in generation.responses():
        console.line(to_line(response))
    generation.result()


def _summary(generation: Generation) -> list[str]:
    """Tells each token's log-probability, and what the generation came to."""
    from treadle.client.options import field_word

    result = generation.result()
    reason = field_word(result, "stop_reason").replace("_", " ")
    weights = f"step {result.job_step:,}" if result.job_step else f"version {result.version}"
    return [
        *token_table(generation.tokens),
        f"{result.new_tokens} tokens, {result.total_log_probability:.3f} nats, "
        f"ended by {reason}; seed {result.seed}, {weights}",
    ]
