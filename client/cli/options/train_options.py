"""The options of `treadle train`: the fields of a TrainSpec, by groups of its help."""

from __future__ import annotations

import argparse
from typing import Any

from treadle.client.cli.options.shared import add_follow, add_json, add_unknown
from treadle.client.cli.options.values import duration, size, weight

# The defaults are the server's; they are told here for the reader of --help.
OPTIONS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "recipe": (
        (
            "--auto",
            {
                "dest": "preset",
                "action": "store_const",
                "const": "auto",
                "help": "let the server pick what is not set, and say why: --preset auto",
            },
        ),
        ("--preset", {"choices": ("auto",), "help": "settings picked as a whole (none)"}),
    ),
    "text": (
        (
            "--tokenizer",
            {
                "choices": ("characters", "bytes", "words", "subwords", "events", "whitespace"),
                "help": "what one token is; whitespace: what stands between white space, and "
                "line ends (characters)",
            },
        ),
        (
            "--max-vocabulary-size",
            {
                "type": int,
                "metavar": "N",
                "help": "not characters, bytes: keep the N most frequent (10,000)",
            },
        ),
        (
            "--min-frequency",
            {"type": int, "metavar": "N", "help": "tokens seen fewer times are unknown (1)"},
        ),
        (
            "--lower-case",
            {"action": "store_true", "help": "read text in lower case (as it stands)"},
        ),
    ),
    "data": (
        (
            "--layout",
            {"choices": ("text", "lines"), "help": "one long text, or one item a line (text)"},
        ),
        (
            "--format",
            {
                "choices": ("plain", "jsonl", "csv"),
                "help": "what the files are (by their names: jsonl for .jsonl and .ndjson, csv for "
                ".csv and .tsv, else plain)",
            },
        ),
        (
            "--column",
            {"metavar": "NAME", "help": "jsonl, csv: the field that holds the items (text)"},
        ),
        (
            "--encoding",
            {"metavar": "NAME", "help": "of the files' text, such as latin-1 (utf-8)"},
        ),
        (
            "--missing",
            {
                "choices": ("error", "skip"),
                "help": "jsonl, csv: what to do with rows without text, such as null (error)",
            },
        ),
        (
            "--novelty-index",
            {
                "action": "store_true",
                "help": "store the training part with the model, so that `generate --novel` knows "
                "what is new (not)",
            },
        ),
        (
            "--validation-fraction",
            {"type": float, "metavar": "F", "help": "share kept for validation (0.1)"},
        ),
        (
            "--test-fraction",
            {"type": float, "metavar": "F", "help": "share kept for a test at the end (0)"},
        ),
    ),
    "network": (
        ("--cell", {"choices": ("rnn", "gru", "lstm"), "help": "the recurrent cell (lstm)"}),
        ("--hidden-size", {"type": int, "metavar": "N", "help": "units in each layer (128)"}),
        ("--layers", {"type": int, "metavar": "N", "help": "recurrent layers (1)"}),
        (
            "--embedding-size",
            {"type": int, "metavar": "N", "help": "length of an embedding; 0 is one-hot (64)"},
        ),
        (
            "--dropout",
            {"type": float, "metavar": "F", "help": "share of units dropped between layers (0)"},
        ),
        (
            "--output-dropout",
            {"type": float, "metavar": "F", "help": "share dropped before the output layer (0)"},
        ),
        (
            "--tied-weights",
            {"action": "store_true", "help": "the output's weights are the embedding's (not)"},
        ),
        (
            "--init-from",
            {"metavar": "MODEL", "help": "go on from MODEL or MODEL@ALIAS (random weights)"},
        ),
        (
            "--init-from-version",
            {"type": int, "metavar": "N", "help": "the version of --init-from (the newest)"},
        ),
    ),
    "learning": (
        ("--batch-size", {"type": int, "metavar": "N", "help": "sequences side by side (32)"}),
        ("--window", {"type": int, "metavar": "N", "help": "steps of BPTT (64)"}),
        ("--optimizer", {"choices": ("sgd", "adagrad", "adam"), "help": "update rule (adam)"}),
        (
            "--learning-rate",
            {"type": float, "metavar": "F", "help": "(adam 0.003, adagrad 0.1, sgd 0.5)"},
        ),
        (
            "--schedule",
            {"choices": ("constant", "cosine", "plateau"), "help": "of the rate (cosine)"},
        ),
        (
            "--plateau-factor",
            {"type": float, "metavar": "F", "help": "plateau: the rate is times F then (0.5)"},
        ),
        (
            "--plateau-patience",
            {"type": int, "metavar": "N", "help": "plateau: after N validations no better (2)"},
        ),
        (
            "--warmup-steps",
            {"type": int, "metavar": "N", "help": "the rate rises over N steps (100)"},
        ),
        ("--beta1", {"type": float, "metavar": "F", "help": "adam's decay of the mean (0.9)"}),
        ("--beta2", {"type": float, "metavar": "F", "help": "adam's decay of squares (0.99)"}),
        ("--weight-decay", {"type": float, "metavar": "F", "help": "decoupled decay (0)"}),
        ("--clip-norm", {"type": float, "metavar": "F", "help": "0 clips no norm (1)"}),
        ("--clip-value", {"type": float, "metavar": "F", "help": "0 clips no element (0)"}),
        (
            "--precision",
            {
                "choices": ("fp32", "bf16"),
                "help": "of the products; bf16 is faster where the server has AVX512_BF16 (fp32)",
            },
        ),
        (
            "--accumulation-steps",
            {"type": int, "metavar": "N", "help": "batches added up for one step (1)"},
        ),
        ("--seed", {"type": int, "metavar": "N", "help": "of everything random (0)"}),
    ),
    "end (at the first limit met; with none, the server picks the steps)": (
        ("--max-steps", {"type": int, "metavar": "N", "help": "optimizer steps"}),
        ("--max-epochs", {"type": float, "metavar": "F", "help": "passes over the corpus"}),
        (
            "--train-for",
            {
                "dest": "max_time_s",
                "type": duration,
                "metavar": "TIME",
                "help": "time of the run with its validations, such as 90s, 3m or 1h",
            },
        ),
        (
            "--max-wall-time",
            {
                "dest": "max_wall_time_s",
                "type": duration,
                "metavar": "TIME",
                "help": "time by the clock, validation included, waiting not",
            },
        ),
        ("--max-tokens", {"type": int, "metavar": "N", "help": "tokens trained on"}),
        (
            "--early-stopping-patience",
            {"type": int, "metavar": "N", "help": "N validations no better; 0 is never (0)"},
        ),
        (
            "--max-memory",
            {
                "dest": "max_memory_bytes",
                "type": size,
                "metavar": "SIZE",
                "help": "fail beyond it, such as 500MB or 2GB (what the server allows)",
            },
        ),
        (
            "--keep",
            {"choices": ("best", "last"), "help": "the weights that are stored (best)"},
        ),
    ),
    "reports": (
        (
            "--progress-interval",
            {
                "dest": "progress_interval_s",
                "type": duration,
                "metavar": "TIME",
                "help": "time between progress events (1s)",
            },
        ),
        (
            "--validation-interval",
            {
                "dest": "validation_interval_steps",
                "type": int,
                "metavar": "N",
                "help": "steps between validations (a tenth of the run)",
            },
        ),
        (
            "--sample-tokens",
            {"type": int, "metavar": "N", "help": "length of a sample; 0 sends none (80)"},
        ),
    ),
}


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files of the corpus and every option of `treadle train`."""
    _add_files(parser)
    parser.add_argument("--model", metavar="NAME", required=True, help="the model's name")
    parser.add_argument(
        "--detach",
        action="store_true",
        help="leave once the server has accepted the job, and print the job's id "
        "(with --json: the first event)",
    )
    parser.add_argument(
        "--request-id",
        metavar="TEXT",
        default=argparse.SUPPRESS,
        help="a text of your own; repeating the command with it follows the same job",
    )
    add_json(parser)
    add_follow(parser)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, settings in options:
            group.add_argument(flag, default=argparse.SUPPRESS, **settings)
        if title == "text":
            add_unknown(
                group, "what to do with unknown symbols (error; words, events, whitespace: unknown)"
            )


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Adds the files of the corpus."""
    parser.add_argument(
        "file", metavar="FILE", nargs="+", help="the corpus; - reads standard input"
    )
    for role, use in (("valid", "validate on"), ("test", "test the stored model on")):
        parser.add_argument(
            f"--{role}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"a file of its own to {use}; may be repeated (a share of the corpus)",
        )
    parser.add_argument(
        "--weight",
        metavar="FILE=W",
        dest="weights",
        action="append",
        type=weight,
        default=[],
        help="a pass reads FILE so many times, above 0 to 100; may be repeated (1)",
    )
