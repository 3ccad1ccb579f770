"""The command `treadle generate` prints text from a model as it is generated."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from treadle.client.cli.connect import connect, request_options
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_break
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.output_file import write_output
from treadle.client.cli.display.quota_notice import QuotaNotice
from treadle.client.cli.display.tables import print_tokens
from treadle.client.cli.generate_many import add_items, print_items, wants_items
from treadle.client.cli.input.text_input import read_text
from treadle.client.cli.options.field_flags import add_flags, groups
from treadle.client.cli.options.model_options import add_model, check_model
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
    add_encoding,
    add_json,
    add_reconnect,
)
from treadle.client.cli.options.state_options import save_path
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.generation import Generation
    from treadle.v1.sequence_pb2 import GenerateResult

STATE_FIELD = "return_state"


def add_parsers(commands: Commands) -> None:
    """Adds `treadle generate`."""
    parser = commands.add_parser(
        "generate",
        description="Generate text and print it as it is generated, without the prompt, and a "
        "newline at the end. With -n, generate several texts at once and print one per line.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the prompt and the options."""
    add_model(parser, "generate")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", metavar="TEXT", default="", help="the text to continue from (default: empty)"
    )
    prompt.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read the prompt from FILE, or from standard input for - (default: --prompt)",
    )
    add_encoding(parser)
    add_items(parser)
    for group in groups("generate"):
        add_flags(parser, "generate", group)
    parser.add_argument("--no-newline", action="store_true", help="print no newline after the text")
    add_json(parser)
    add_reconnect(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Generates one text or several.

    Raises:
        InputError: The options do not go together.
    """
    from treadle.client.options import GenerateOptions

    check_model(args)
    if args.unique and "n" not in args:
        raise InputError("--unique needs more than one text: give -n N as well")
    several = wants_items(args)
    if several and STATE_FIELD in vars(args):
        raise InputError(
            "--save-state keeps the state of one text: leave out -n and the other options of "
            "several texts"
        )
    prompt = args.prompt if args.prompt_file is None else read_text(args, args.prompt_file)
    with connect(args) as client:
        options = request_options(args, client, GenerateOptions)
        if several:
            print_items(client, args, prompt, options, console)
        else:
            _print_one(client, args, prompt, options, console)


def _print_one(
    client: Client, args: argparse.Namespace, prompt: str, options: dict[str, Any], console: Console
) -> None:
    """Generates one text and prints each piece as it arrives.

    Raises:
        OSError: The output has no reader any more, or cannot be written. A requested state is saved
            all the same.
    """
    path = save_path(options, STATE_FIELD)
    broken: OSError | None = None
    notice = QuotaNotice(client.server_info, on_terminal=console.is_terminal)
    generation = client.generate(
        args.model or "",
        prompt,
        reconnect_s=args.reconnect_s,
        on_break=print_break,
        **options,
    )
    with generation:
        try:
            with notice:
                _print_pieces(generation, notice, args, console)
        except OSError as error:
            broken = error
            if path is None:
                raise
        result = generation.result()
        if path is not None:
            write_output(path, result.state)
    if broken is not None:
        raise broken
    if not getattr(args, "json", False) and _prints_more(options):
        if generation.tokens:
            print_tokens(generation.tokens, console.errors, "")
        print(*_summary(result), sep="\n", file=sys.stderr)


def _print_pieces(
    generation: Generation, notice: QuotaNotice, args: argparse.Namespace, console: Console
) -> None:
    """Prints each piece, or each of the server's messages, as it arrives."""
    if getattr(args, "json", False):
        _print_json(generation, notice, console)
        return
    for piece in notice.over(generation):
        console.text(piece)
    if not args.no_newline:
        console.text("\n")


def _prints_more(options: dict[str, Any]) -> bool:
    """Returns whether anything besides the text is to be printed."""
    more = ("log_probabilities", "ranks", "top_log_probabilities", "novelty")
    return any(name in options for name in more)


def _print_json(generation: Generation, notice: QuotaNotice, console: Console) -> None:
    """Prints each of the server's messages as it arrives."""
    from treadle.client.cli.display.json_lines import to_line

    for response in notice.over(generation.responses()):
        console.line(to_line(response))


def _summary(result: GenerateResult) -> list[str]:
    """Returns lines with the counts of the generation."""
    from treadle.client.messages.enums import field_word

    reason = field_word(result, "stop_reason").replace("_", " ")
    weights = f"step {result.job_step:,}" if result.job_step else f"version {result.version}"
    lines = [
        f"{result.new_tokens} tokens, {number_text(result.total_log_probability)} nats, "
        f"ended by {reason}; seed {result.seed}, {weights}{_precision(result)}"
    ]
    if result.HasField("novelty"):
        new = "new" if result.novelty.is_new else "not new"
        lines.append(f"{new}; longest overlap {result.novelty.longest_overlap} characters")
    return lines


def _precision(result: GenerateResult) -> str:
    """Returns what is said of the precision of a generation, where it is not float32."""
    from treadle.v1.sequence_pb2 import INFERENCE_PRECISION_INT8

    return ", int8" if result.inference_precision == INFERENCE_PRECISION_INT8 else ""
