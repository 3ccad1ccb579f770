"""`measure` shows what int8 weights cost: the validation loss in float32 and in int8.

    python benchmarks/int8_loss.py --text tinyshakespeare.txt --lines names.txt
        --events hdfs100k_train.jsonl --words german.txt [--tokens 3000000]

Trains networks of several kinds on each corpus, scores the whole validation part with every
network in float32 and in int8, and prints both losses in nats a token, their difference, and the
bytes of the packed weights. A corpus that is not given is left out. A run that ends by a number of
tokens gives the same bits on any machine, however busy, and so do both losses.

A model that is already there is measured on a corpus as well:

    python benchmarks/int8_loss.py --model shakespeare.safetensors --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from treadle.benchmarks.machine import describe
from treadle.kernels import structs
from treadle.model import (
    Cell,
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    DataConfig,
    InferencePrecision,
    LimitsConfig,
    Model,
    ModelError,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
)
from treadle.model.data.corpus import Corpus, read_corpus
from treadle.model.network.parallel import Pool
from treadle.model.scoring.scorer import mean_loss
from treadle.model.training.evaluation import Evaluation
from treadle.model.training.trainer import Trainer

ASKED = 0.002
"""Nats that int8 may cost at most."""


@dataclass(frozen=True)
class Source:
    """How a corpus is read."""

    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


SOURCES = {
    "text": Source(DataConfig()),
    "lines": Source(DataConfig(layout=CorpusLayout.LINES)),
    "events": Source(
        DataConfig(layout=CorpusLayout.LINES, format=CorpusFormat.JSONL, column="events"),
        TokenizerConfig(TokenizerKind.EVENTS),
    ),
    "words": Source(DataConfig(encoding="latin-1"), TokenizerConfig(TokenizerKind.WORDS)),
}
"""By the name of the flag."""


@dataclass(frozen=True)
class Trained:
    """A network to train on a corpus, for a share of the tokens."""

    source: str
    network: NetworkConfig
    share: float

    @property
    def label(self) -> str:
        """How the table calls the network."""
        net = self.network
        size = f"{net.layers}x{net.hidden_size}" if net.layers > 1 else f"{net.hidden_size}"
        kind = ", tied" if net.tied_weights else ", one-hot" if not net.embedding_size else ""
        return f"{net.cell.value.upper()} {size}{kind}"


TRAINED = (
    Trained("text", NetworkConfig(hidden_size=256), 1.0),
    Trained("text", NetworkConfig(Cell.GRU, hidden_size=128), 0.5),
    Trained("text", NetworkConfig(hidden_size=128, layers=2), 0.5),
    Trained("text", NetworkConfig(Cell.RNN, hidden_size=128, embedding_size=0), 0.3),
    Trained("lines", NetworkConfig(hidden_size=128), 0.5),
    Trained("events", NetworkConfig(hidden_size=64), 0.2),
    Trained("words", NetworkConfig(hidden_size=200, embedding_size=200), 0.05),
    Trained("words", NetworkConfig(hidden_size=200, embedding_size=200, tied_weights=True), 0.1),
)


@dataclass(frozen=True)
class Measured:
    """What int8 weights cost one network."""

    fp32: float
    """Nats a token of the whole validation part."""
    int8: float
    """The same with int8 weights."""
    fp32_bytes: int
    """Of the packed weights that the two precisions have in another form."""
    int8_bytes: int
    """The same with int8 weights."""

    @property
    def lost(self) -> float:
        """Nats that int8 costs."""
        return self.int8 - self.fp32


def product_bytes(weights: structs.Weights) -> int:
    """Returns the bytes of the weights that are multiplied: recurrent, input, output."""
    return int(weights.Wx.nbytes + weights.Wh.nbytes + weights.Wy.nbytes)


def measure(model: Model, corpus: Corpus) -> Measured:
    """Scores a corpus's validation part in both precisions.

    Args:
        model: Any model.
        corpus: With a validation part, in the model's tokens.

    Returns:
        Both losses, and the bytes of both forms of the weights.

    Raises:
        ValueError: The corpus has no validation part.
    """
    pool = Pool(1)
    batches = Evaluation(corpus, pool, lambda: False).batches(CorpusRole.VALID, None)
    if batches is None:
        raise ValueError("the corpus has no validation part")
    losses = {}
    sizes = {}
    for precision in InferencePrecision:
        weights = model.at(precision).weights
        losses[precision] = mean_loss(model.parameters.shape, weights, batches, pool)
        sizes[precision] = product_bytes(weights)
    pool.close()
    fp32 = losses[InferencePrecision.FP32]
    int8 = losses[InferencePrecision.INT8]
    assert fp32 is not None
    assert int8 is not None
    return Measured(fp32, int8, sizes[InferencePrecision.FP32], sizes[InferencePrecision.INT8])


def train(case: Trained, corpus: Corpus, tokens: int, seed: int) -> Model:
    """Trains a network for so many tokens, on one thread."""
    source = SOURCES[case.source]
    config = TrainConfig(
        data=source.data,
        tokenizer=source.tokenizer,
        network=case.network,
        optimizer=OptimizerConfig(learning_rate=0.005),
        limits=LimitsConfig(max_tokens=max(1, round(tokens * case.share))),
        report=ReportConfig(
            progress_interval_s=1e6, validation_interval_steps=2**40, sample_tokens=0
        ),
        seed=seed,
    )
    trainer = Trainer(corpus, config, threads=1)
    for _ in trainer.run():
        pass
    return trainer.finish()


def line(source: str, label: str, found: Measured) -> str:
    """Returns a row of the table."""
    verdict = "" if found.lost <= ASKED else f" (more than {ASKED})"
    return (
        f"| {source} | {label} | {found.fp32:.5f} | {found.int8:.5f} | {found.lost:+.5f}{verdict} "
        f"| {found.fp32_bytes / 1024:,.0f} KiB | {found.int8_bytes / 1024:,.0f} KiB "
        f"| {found.fp32_bytes / found.int8_bytes:.2f} |"
    )


HEAD = """\
| data | network | fp32, nats | int8, nats | difference | float32 panels | int8 panels | ratio |
|---|---|---|---|---|---|---|---|"""


def measured(options: argparse.Namespace) -> Iterator[tuple[str, str, Measured]]:
    """Measures every network that the flags ask for.

    Args:
        options: The parsed flags.

    Yields:
        The names of the data and of the network, and what was measured.
    """
    given = {name: getattr(options, name) for name in SOURCES if getattr(options, name)}
    if options.model is not None:
        model = Model.load(options.model)
        for name, path in given.items():
            data = SOURCES[name].data
            corpus = read_corpus(path, data_config=data, seed=options.seed, fixed=model.tokenizer)
            yield path.name, options.model.name, measure(model, corpus)
        return
    for name, path in given.items():
        source = SOURCES[name]
        corpus = read_corpus(path, source.tokenizer, source.data, options.seed)
        for case in TRAINED:
            if case.source == name:
                model = train(case, corpus, options.tokens, options.seed)
                yield path.name, case.label, measure(model, corpus)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; exits with 1 where int8 costs more than is asked, with 2 on errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="one long text, in characters")
    parser.add_argument("--lines", type=Path, help="one item a line, in characters")
    parser.add_argument("--events", type=Path, help="JSONL, sessions in the field events")
    parser.add_argument("--words", type=Path, help="one long text in Latin-1, in words")
    parser.add_argument("--model", type=Path, help="a model file to measure; nothing is trained")
    parser.add_argument("--tokens", type=int, default=3_000_000, help="of the largest network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not any(getattr(options, name) for name in SOURCES):
        parser.error(f"no corpus is given: give one of --{', --'.join(SOURCES)}")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    print(HEAD, flush=True)
    lost = []
    try:
        for source, label, found in measured(options):
            print(line(source, label, found), flush=True)
            lost.append(found.lost)
    except (ModelError, OSError) as error:
        print(f"int8_loss.py: {error}", file=sys.stderr)
        return 2
    print(f"\nint8 costs at most {max(lost):.5f} nats; at most {ASKED} are asked for")
    return 0 if all(nats <= ASKED for nats in lost) else 1


if __name__ == "__main__":
    sys.exit(main())
