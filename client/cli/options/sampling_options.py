"""The options of `treadle generate` that become fields of a GenerateRequest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from treadle.client.cli.options.token_values import bias, token
from treadle.client.cli.options.values import duration

if TYPE_CHECKING:
    pass

TOKEN_HELP = "its text, or `id:N` by its number, or `id:end` for the end token"

# The defaults are the server's; they are told here for the reader of --help.
DRAW: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--top-k", {"type": int, "metavar": "N", "help": "among the N likeliest tokens (all)"}),
    ("--top-p", {"type": float, "metavar": "F", "help": "among those that hold F (1)"}),
    (
        "--min-p",
        {
            "type": float,
            "metavar": "F",
            "help": "among those at least F times as likely as the likeliest (0)",
        },
    ),
    (
        "--typical-p",
        {
            "type": float,
            "metavar": "F",
            "help": "among those of the most typical surprisal that hold F (1)",
        },
    ),
    (
        "--repetition-penalty",
        {
            "type": float,
            "metavar": "F",
            "help": "above 1 is against tokens that prompt or text hold (1)",
        },
    ),
    (
        "--presence-penalty",
        {"type": float, "metavar": "F", "help": "taken off tokens that the new text holds (0)"},
    ),
    (
        "--frequency-penalty",
        {"type": float, "metavar": "F", "help": "taken off once for each time they are there (0)"},
    ),
    ("--seed", {"type": int, "metavar": "N", "help": "same seed, same text (random)"}),
    (
        "--best-of",
        {
            "type": int,
            "metavar": "K",
            "help": "look for the likeliest text, by a beam search of width K, and do not draw",
        },
    ),
)

END: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--max-new-tokens", {"type": int, "metavar": "N", "help": "end after N tokens (256)"}),
    (
        "--min-tokens",
        {
            "dest": "min_new_tokens",
            "type": int,
            "metavar": "N",
            "help": "do not end by a stop or end token before N tokens (0)",
        },
    ),
    (
        "--max-time",
        {
            "dest": "max_time_s",
            "type": duration,
            "metavar": "TIME",
            "help": "end after TIME, from the call on",
        },
    ),
    (
        "--stop",
        {
            "dest": "stop_sequences",
            "action": "append",
            "metavar": "TEXT",
            "help": "end where TEXT appears; may be repeated; a newline is $'\\n' in most shells",
        },
    ),
)

TELL: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--log-probabilities",
        {
            "action": "store_true",
            "help": "tell each token's log-probability: in --json, else on standard error",
        },
    ),
    (
        "--ranks",
        {"action": "store_true", "help": "and its rank, 1 for the likeliest of all tokens"},
    ),
    (
        "--top",
        {
            "dest": "top_log_probabilities",
            "type": int,
            "metavar": "N",
            "help": "and the N likeliest tokens in its place",
        },
    ),
    (
        "--novelty",
        {"action": "store_true", "help": "tell how much of a text the training data hold already"},
    ),
    ("--echo", {"action": "store_true", "help": "print the prompt as well"}),
)


def add_draw(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are drawn, which of them, and when that ends."""
    group = parser.add_argument_group("draw")
    heat = group.add_mutually_exclusive_group()
    _add(
        heat,
        ("--temperature", {"type": float, "metavar": "F", "help": "0 to 100; 0 is greedy (1)"}),
        (
            "--greedy",
            {
                "dest": "temperature",
                "action": "store_const",
                "const": 0.0,
                "help": "always take the likeliest token",
            },
        ),
    )
    _add(group, *DRAW)
    _add(parser.add_argument_group("end"), *END)
    _add_vocabulary(parser.add_argument_group("which tokens"))
    _add(parser.add_argument_group("tell"), *TELL)


def _add_vocabulary(group: argparse._ArgumentGroup) -> None:
    """Adds what is never, always or more often drawn."""
    _add(
        group,
        (
            "--ban",
            {
                "dest": "banned_tokens",
                "action": "append",
                "type": token,
                "metavar": "TOKEN",
                "help": f"never draw it; {TOKEN_HELP}; may be repeated",
            },
        ),
        (
            "--bias",
            {
                "dest": "token_biases",
                "action": AppendBias,
                "type": bias,
                "metavar": "TOKEN=X",
                "help": "add X, -100 to 100, to its score; may be repeated",
            },
        ),
        (
            "--force",
            {
                "dest": "forced_tokens",
                "action": "append",
                "type": token,
                "metavar": "TEXT",
                "help": "begin the new text with it; may be repeated",
            },
        ),
        (
            "--regex",
            {
                "metavar": "R",
                "help": "the whole new text must match this regular expression (of Rust's crate "
                "regex); at each token the probabilities of those that may follow are scaled up to "
                "1, so texts are not drawn in proportion to their likelihood: for the likeliest "
                "ones add --best-of 16",
            },
        ),
    )


def _add(group: argparse._ActionsContainer, *options: tuple[str, dict[str, Any]]) -> None:
    """Adds options that are absent unless given."""
    for flag, settings in options:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)


class AppendBias(argparse.Action):
    """Gathers the biases of tokens in one mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        """Adds one."""
        key, value = values
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})
