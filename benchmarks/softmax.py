"""`main` measures a factored softmax against the full one: speed and loss at equal tokens.

    python benchmarks/softmax.py corpus.txt ... [--kind words] [--vocabulary 10000] [--units 200]
        [--tokens 1000000] [--batch 32x35] [--steps 15] [--clusters 2048,4096]

For each corpus it prints, for an LSTM, the milliseconds of CPU of a training step with either
softmax, medians of steps that take turns, and their ratio; and the loss of the validation part
after the same number of tokens, with the same seed. The loss has the same bits on any machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import exit_code, input_file
from treadle.model import Trainer
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.batching import make_batches
from treadle.model.data.corpus import Corpus, read_corpus
from treadle.model.enums import Precision, Softmax, TokenizerKind
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import Optimizer
from treadle.model.training.setup import with_clusters


def config_of(options: argparse.Namespace, softmax: Softmax) -> TrainConfig:
    """Returns the settings of a run."""
    rows, steps = (int(size) for size in options.batch.split("x"))
    clusters = options.clusters if softmax is Softmax.FACTORED else ()
    return TrainConfig(
        tokenizer=TokenizerConfig(options.kind, max_vocabulary_size=options.vocabulary),
        data=DataConfig(batch_size=rows, window=steps, validation_fraction=0.05),
        network=NetworkConfig(
            hidden_size=options.units,
            embedding_size=options.units,
            output_dropout=options.output_dropout,
            softmax=softmax,
            softmax_clusters=clusters,
        ),
        optimizer=OptimizerConfig(learning_rate=options.learning_rate, precision=options.precision),
        limits=LimitsConfig(max_tokens=max(options.tokens, 1)),
        report=ReportConfig(
            progress_interval_s=1e6, validation_interval_steps=2**40, sample_tokens=0
        ),
        seed=options.seed,
    )


class Steps:
    """Training steps of one network on the batches of a corpus, one thread."""

    def __init__(self, corpus: Corpus, config: TrainConfig) -> None:
        """Prepares the steps of a run with these settings."""
        config = with_clusters(config, corpus)
        self.clusters = config.network.softmax_clusters
        shape = Shape.of(config.network, corpus.tokenizer.vocabulary_size)
        parameters = Parameters.initial(shape, config.seed)
        self._batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        self._engine = Engine(
            parameters,
            self._batches.batch_size,
            self._batches.window,
            Pool(1),
            precision=config.optimizer.precision,
            output_dropout=config.network.output_dropout,
        )
        self._optimizer = Optimizer(config.optimizer, parameters)

    def step(self) -> float:
        """Makes a step; returns its seconds of CPU."""
        batch = next(self._batches)
        begin = time.process_time()
        self._engine.loss_and_gradient(batch.tokens, batch.targets, batch.fresh)
        self._optimizer.step(self._engine.gradient, 1e-3, self._engine.pool)
        return time.process_time() - begin


def speeds(corpus: Corpus, options: argparse.Namespace) -> tuple[float, float, tuple[int, ...]]:
    """Returns the median seconds of a full and a factored step, and the clusters."""
    both = [Steps(corpus, config_of(options, softmax)) for softmax in Softmax]
    taken: list[list[float]] = [[], []]
    for number in range(options.steps + 2):
        for steps, seconds in zip(both, taken, strict=True):
            one = steps.step()
            if number >= 2:
                seconds.append(one)
    full, factored = (statistics.median(seconds) for seconds in taken)
    return full, factored, both[1].clusters


def loss_of(corpus: Corpus, config: TrainConfig, threads: int) -> float:
    """Trains once; returns the loss of the validation part, in nats per token."""
    *_, last = Trainer(corpus, config, threads).run()
    return math.nan if last.valid_loss is None else last.valid_loss


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=input_file, nargs="+", help="one long text each")
    parser.add_argument("--kind", type=TokenizerKind, default="words")
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--batch", default="32x35", help="rows x steps")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="0: speed alone")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--clusters", type=_numbers, default=(), help="their first tokens")
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default="fp32")
    parser.add_argument("--output-dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    for path in options.corpus:
        config = config_of(options, Softmax.FULL)
        corpus = read_corpus(path, config.tokenizer, config.data, config.seed)
        V = corpus.tokenizer.vocabulary_size
        if options.steps:
            full, factored, clusters = speeds(corpus, options)
            print(
                f"{path.name}: {V:,} tokens, clusters {', '.join(map(str, clusters))}\n"
                f"  a step: {1e3 * full:.1f} ms full, {1e3 * factored:.1f} ms factored, "
                f"{full / factored:.2f}x",
                flush=True,
            )
        if options.tokens:
            for softmax in Softmax:
                run = replace(config_of(options, softmax))
                loss = loss_of(corpus, run, options.threads)
                print(f"  {softmax}: {loss:.4f} nats, perplexity {math.exp(loss):.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
