"""`measure` compares batches and networks at equal tokens: the basis of the rules of AUTO.

    python benchmarks/auto_batches.py corpus.txt ... [--lines names.txt ...]
        [--tokens 300000,1000000,3000000] [--shapes 8x32,16x32,16x64,32x32,32x64] [--units 128]

Trains with the same seed, learning rate and schedule on the same number of tokens of each corpus,
once for each shape of a batch (rows x steps) and each number of units, and prints the bits per
character of the validation part, a row for each corpus and number of tokens. A run that ends by a
number of tokens gives the same bits on any machine, however busy: the table does not depend on
where it was made.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import exit_code, input_file
from treadle.model import Trainer
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from treadle.model.enums import CorpusLayout, Precision
from treadle.model.training.setup import CorpusSource

SHAPES = "8x32,16x32,16x64,32x32,32x64"
TOKENS = "300000,1000000,3000000"
EMBEDDING_SIZE = 64


@dataclass(frozen=True)
class Shape:
    """The shape of a batch."""

    rows: int
    """Sequences side by side."""
    steps: int
    """Tokens of each."""

    def __str__(self) -> str:
        return f"{self.rows} x {self.steps}"


@dataclass(frozen=True)
class Case:
    """What all shapes of a row of the table are trained on."""

    corpus: Path
    """The file."""
    layout: CorpusLayout
    """How it is cut."""
    tokens: int
    """Tokens trained on, repeats counted."""


def measure(case: Case, shape: Shape, units: int, options: argparse.Namespace) -> float:
    """Trains once.

    Returns:
        Bits per character of the validation part: at the end, or the lowest of ten.
    """
    interval = None if options.best else 2**40
    data = case.corpus.read_bytes()[: options.max_bytes]
    config = TrainConfig(
        data=DataConfig(
            layout=case.layout,
            validation_fraction=options.validation_fraction,
            batch_size=shape.rows,
            window=shape.steps,
        ),
        network=NetworkConfig(
            hidden_size=units,
            embedding_size=EMBEDDING_SIZE,
            output_dropout=options.output_dropout,
        ),
        optimizer=OptimizerConfig(
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            precision=options.precision,
        ),
        limits=LimitsConfig(max_tokens=case.tokens),
        report=ReportConfig(
            progress_interval_s=1e6, validation_interval_steps=interval, sample_tokens=0
        ),
        seed=options.seed,
    )
    trainer = Trainer(_source(data), config, options.threads)
    bits = [progress.valid_bits_per_character for progress in trainer.run()]
    measured = [figure for figure in bits if figure is not None]
    if not measured:
        return math.nan
    return min(measured) if options.best else measured[-1]


def _source(data: bytes) -> CorpusSource:
    """Returns the data without a character that the limit of bytes has cut."""
    return data.decode("utf-8", "ignore").encode()


def rows(options: argparse.Namespace) -> Sequence[Case]:
    """Returns the cases, those of few tokens first."""
    texts = [(path, CorpusLayout.TEXT) for path in options.corpus]
    lines = [(path, CorpusLayout.LINES) for path in options.lines]
    return [Case(*file, tokens) for tokens in options.tokens for file in (*texts, *lines)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _shapes(text: str) -> list[Shape]:
    return [Shape(*(int(size) for size in shape.split("x"))) for shape in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=input_file, nargs="*", help="one long text each")
    parser.add_argument(
        "--lines", type=input_file, nargs="*", default=[], help="one item per line each"
    )
    parser.add_argument("--tokens", type=_numbers, default=_numbers(TOKENS))
    parser.add_argument("--shapes", type=_shapes, default=_shapes(SHAPES))
    parser.add_argument("--units", type=_numbers, default=[128])
    parser.add_argument("--output-dropout", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default="fp32")
    parser.add_argument("--best", action="store_true", help="the lowest of ten validations")
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--validation-fraction", type=float, default=0.05)
    parser.add_argument("--max-bytes", type=int, default=4_000_000, help="of each corpus")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    columns = list(itertools.product(options.shapes, options.units))
    sized = len(options.units) > 1
    names = [f"{shape}, {units} units" if sized else str(shape) for shape, units in columns]
    head = ["corpus", "tokens", *names]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for case in rows(options):
        print(f"| {case.corpus.name} | {case.tokens:,} |", end="", flush=True)
        for shape, units in columns:
            print(f" {measure(case, shape, units, options):.3f} |", end="", flush=True)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
