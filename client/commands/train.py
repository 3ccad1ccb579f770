"""`treadle train`: send a corpus, watch a model learn."""

from __future__ import annotations

import argparse
import os
import stat
import time
from typing import IO, TYPE_CHECKING, Any

from treadle.client.commands.common import (
    Commands,
    add_connection,
    add_json,
    add_unknown,
    chosen,
    connect,
    duration,
    open_input,
)
from treadle.client.console import Console

if TYPE_CHECKING:
    from treadle.client.reports import Report
    from treadle.client.streams import TrainingRun

_INTERRUPTION_S = 0.1
"""How much later than the end of a pipe a Ctrl-C may come that ended the program feeding it."""

# The defaults are the server's; they are told here for the reader of --help.
OPTIONS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "text": (
        (
            "--tokenizer",
            {"choices": ("characters", "bytes", "words"), "help": "what one token is (characters)"},
        ),
        (
            "--max-vocabulary-size",
            {"type": int, "metavar": "N", "help": "words: keep the N most frequent (10,000)"},
        ),
        (
            "--layout",
            {"choices": ("text", "lines"), "help": "one long text, or one item a line (text)"},
        ),
        (
            "--validation-fraction",
            {"type": float, "metavar": "F", "help": "share kept for validation (0.1)"},
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
    ),
    "learning": (
        ("--batch-size", {"type": int, "metavar": "N", "help": "sequences side by side (32)"}),
        ("--window", {"type": int, "metavar": "N", "help": "steps of BPTT (64)"}),
        ("--optimizer", {"choices": ("sgd", "adagrad", "adam"), "help": "update rule (adam)"}),
        (
            "--learning-rate",
            {"type": float, "metavar": "F", "help": "(adam 0.003, adagrad 0.1, sgd 0.5)"},
        ),
        ("--schedule", {"choices": ("constant", "cosine"), "help": "of the rate (cosine)"}),
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
                "help": "time of training, such as 90s, 3m or 1h",
            },
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


def add_parsers(commands: Commands) -> None:
    """Adds `treadle train`."""
    parser = commands.add_parser(
        "train",
        help="train a model on a file",
        description="Train a model on a file. A terminal shows a live progress bar; piped, or "
        "with --json, each event is one JSON object a line.",
    )
    parser.add_argument("file", metavar="FILE", help="the corpus; - reads standard input")
    parser.add_argument("--model", metavar="NAME", required=True, help="the model's name")
    add_json(parser)
    parser.add_argument("--quiet", action="store_true", help="print only the finished model")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, settings in options:
            group.add_argument(flag, default=argparse.SUPPRESS, **settings)
        if title == "text":
            add_unknown(group, "what to do with unknown symbols (error; words: unknown)")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Trains, reporting each event as it comes."""
    from treadle.client.options import TrainOptions

    report = _make_report(args, console)
    timeout_s = getattr(args, "timeout", None)
    options = chosen(args, TrainOptions)
    with (
        connect(args) as client,
        open_input(args.file) as corpus,
        client.train(Input(corpus), model=args.model, timeout_s=timeout_s, **options) as training,
    ):
        console.interruption = lambda: _what_goes_on(training)
        with report:
            for event in training:
                report.show(event)
        training.result()


def _what_goes_on(training: TrainingRun) -> str:
    """What to say of a run that Ctrl-C left."""
    if training.started is not None:
        return "interrupted; the server goes on training"
    if training.sent:
        return "interrupted; if the whole corpus has arrived, the server goes on training"
    return "interrupted"


class Input:
    """A file whose end is only told once it is sure.

    Ctrl-C in a shell ends the program that feeds a pipe as well as this one, and the pipe may
    come to its end first: half a corpus must not pass for a whole one then.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes; nothing at the end."""
        data = self._file.read(size)
        if not data and stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode):
            time.sleep(_INTERRUPTION_S)
        return data


def _make_report(args: argparse.Namespace, console: Console) -> Report:
    """Chooses how to show the run."""
    from treadle.client.reports import JsonReport, LiveReport, PlainReport, QuietReport

    if getattr(args, "json", False) or not console.is_terminal:
        return JsonReport(console, only_completed=args.quiet)
    if args.quiet:
        return QuietReport(console)
    return LiveReport(console) if console.moves else PlainReport(console)
