"""`add_sampling` and the others add the options that become fields of a GenerateRequest."""

from __future__ import annotations

import argparse
from typing import Any

from treadle.client.cli.options.option import add_option
from treadle.client.cli.options.token_values import bias, token
from treadle.client.cli.options.values import duration

TOKEN_FORMS = "its text, `id:N` by its number, or `id:end` for the end token"


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are sampled, which of them, and when the text ends."""
    group = parser.add_argument_group("sampling")
    temperature = group.add_mutually_exclusive_group()
    add_temperature(temperature)
    add_option(
        temperature,
        "--greedy",
        "always take the likeliest token: --temperature 0",
        dest="temperature",
        action="store_const",
        const=0.0,
    )
    add_sampling(group)
    add_option(
        group,
        "--best-of",
        "search for the likeliest text, by a beam search of width K, and sample nothing",
        values="1 to 64",
        default="sample",
        type=int,
        metavar="K",
    )
    _add_end(parser.add_argument_group("end"))
    _add_vocabulary(parser.add_argument_group("which tokens"))
    _add_output(parser.add_argument_group("output"))


def add_temperature(group: argparse._ActionsContainer) -> None:
    """Adds --temperature."""
    add_option(
        group,
        "--temperature",
        "divides the scores before sampling; 0 is greedy",
        values="0 to 100",
        default="1",
        type=float,
        metavar="F",
    )


def add_sampling(group: argparse._ActionsContainer) -> None:
    """Adds how tokens are sampled, but for the temperature and the beam search."""
    add_option(
        group,
        "--top-k",
        "sample among the N likeliest tokens, 0 for all",
        values="0 or more",
        default="0",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--top-p",
        "sample among the fewest likeliest tokens of total probability F",
        values="above 0 to 1",
        default="1",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--min-p",
        "sample among the tokens at least F times as likely as the likeliest",
        values="0 to 1",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--typical-p",
        "sample among the tokens of most typical surprisal of total probability F",
        values="above 0 to 1",
        default="1",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--repetition-penalty",
        "divides the scores of tokens in the prompt or the text; above 1 is against repetition",
        values="0.01 to 100",
        default="1",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--presence-penalty",
        "subtracted from the scores of tokens in the new text",
        values="-100 to 100",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--frequency-penalty",
        "subtracted from the score of a token for each time it is in the new text",
        values="-100 to 100",
        default="0",
        type=float,
        metavar="F",
    )
    add_option(
        group,
        "--seed",
        "the same seed gives the same text",
        values="0 or more",
        default="random",
        type=int,
        metavar="N",
    )


def add_max_new_tokens(group: argparse._ActionsContainer) -> None:
    """Adds --max-new-tokens."""
    add_option(
        group,
        "--max-new-tokens",
        "end after N tokens; the server has a limit, see `treadle info`",
        values="0 or more",
        default="256",
        type=int,
        metavar="N",
    )


def _add_end(group: argparse._ArgumentGroup) -> None:
    """Adds when a text ends."""
    add_max_new_tokens(group)
    add_option(
        group,
        "--min-tokens",
        "no end token or --stop ends the text before N tokens",
        values="0 or more",
        default="0",
        dest="min_new_tokens",
        type=int,
        metavar="N",
    )
    add_option(
        group,
        "--max-time",
        "end after TIME from the call on, such as 10s",
        values="above 0",
        default="the server's limit",
        dest="max_time_s",
        type=duration,
        metavar="TIME",
    )
    add_option(
        group,
        "--stop",
        "end where TEXT appears; may be repeated; a newline is $'\\n' in most shells",
        values="up to 16, of 1 to 256 characters",
        default="none",
        dest="stop_sequences",
        action="append",
        metavar="TEXT",
    )


def _add_vocabulary(group: argparse._ArgumentGroup) -> None:
    """Adds tokens that are never, always or more often sampled."""
    add_option(
        group,
        "--ban",
        f"never sample this token: {TOKEN_FORMS}; may be repeated",
        values="up to 1,024",
        default="none",
        dest="banned_tokens",
        action="append",
        type=token,
        metavar="TOKEN",
    )
    add_option(
        group,
        "--bias",
        "add X to the score of a token; may be repeated",
        values="up to 1,024, X from -100 to 100",
        default="none",
        dest="token_biases",
        action=AppendBias,
        type=bias,
        metavar="TOKEN=X",
    )
    add_option(
        group,
        "--force",
        "begin the new text with this token or text; may be repeated",
        values="up to 1,024 tokens",
        default="none",
        dest="forced_tokens",
        action="append",
        type=token,
        metavar="TEXT",
    )
    add_option(
        group,
        "--regex",
        "the whole new text must match this regular expression (of Rust's crate regex). At each "
        "token the probabilities of those that may follow are scaled up to 1, so texts are not "
        "sampled in proportion to their likelihood: for the likeliest ones add --best-of 16",
        values="up to 4,096 characters",
        default="any text",
        metavar="R",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    """Adds what is printed besides the new text."""
    add_option(
        group,
        "--log-probabilities",
        "print each token's log-probability: in --json, else on standard error",
        action="store_true",
    )
    add_option(
        group,
        "--ranks",
        "print each token's rank, 1 for the likeliest of all tokens",
        action="store_true",
    )
    add_top(group)
    add_option(
        group,
        "--novelty",
        "print how much of a text is in the training data; needs a model trained with "
        "--novelty-index",
        action="store_true",
    )
    add_option(group, "--echo", "print the prompt as well", action="store_true")


def add_top(group: argparse._ActionsContainer) -> None:
    """Adds --top."""
    add_option(
        group,
        "--top",
        "print the N likeliest tokens for each position",
        values="0 to 20",
        default="0",
        dest="top_log_probabilities",
        type=int,
        metavar="N",
    )


class AppendBias(argparse.Action):
    """Gathers the biases of tokens in one mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        """Adds one bias."""
        key, value = values
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})
