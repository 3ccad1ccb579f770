"""`train` makes the best model of Tiny Shakespeare in a given time, chosen by AUTO.

    python benchmarks/shakespeare.py examples/data/tinyshakespeare.txt [--train-for 180]
        [--precision fp32] [--seeds 3]

Trains with `preset: AUTO` for so many seconds on the first 90 % of the file, and then measures
the last 10 %, in nats per character, in both ways that others have measured it:

- in one stateful pass, as a stream that the model follows from its first character to its last;
- over cold windows of 256 characters, each from an empty state, as nanoGPT measures.

With several seeds it prints the mean of each, and the distance from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import exit_code, input_file
from treadle.model import Model, Trainer
from treadle.model.config import LimitsConfig, OptimizerConfig, ReportConfig, TrainConfig
from treadle.model.enums import Preset
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parallel import Pool
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import Scorer

COLD_WINDOW = 256


def train(corpus: Path, seconds: float, threads: int, precision: str, seed: int) -> Model:
    """Trains by AUTO and prints what it picks and how it goes."""
    given: tuple[str, ...] = ()
    optimizer = OptimizerConfig()
    if precision:
        optimizer = OptimizerConfig(precision=precision)  # type: ignore[arg-type]
        given = ("optimizer.precision",)
    config = TrainConfig(
        preset=Preset.AUTO,
        given=given,
        optimizer=optimizer,
        limits=LimitsConfig(max_time_s=seconds),
        report=ReportConfig(progress_interval_s=1e6, sample_tokens=0),
        seed=seed,
    )
    trainer = Trainer(corpus, config, threads)
    started = trainer.started
    for notice in started.notices:
        print(f"- {notice}")
    print(f"{started.parameter_count:,} parameters; {started.baseline_order}-gram", end=" ")
    print(f"{started.baseline_loss:.4f}", flush=True)
    for progress in trainer.run():
        print(
            f"{progress.elapsed_s:7.1f} s  step {progress.step:6d}  train {progress.train_loss:.4f}"
            f"  valid {progress.valid_loss or float('nan'):.4f}"
            f"  {progress.tokens_per_second:,.0f} tokens/s",
            flush=True,
        )
    return trainer.finish()


def summary(losses: Sequence[float]) -> str:
    """Returns the mean of some losses and the distance from the lowest to the highest."""
    mean = statistics.mean(losses)
    spread = max(losses) - min(losses)
    return f"mean {mean:.4f}, spread {spread:.4f}, of {len(losses)}"


def stateful(model: Model, text: str) -> float:
    """Returns the mean nats per character of a text, read from its beginning to its end."""
    mean = model.score(text).mean_nats
    assert mean is not None
    return mean


def cold(model: Model, text: str, window: int, threads: int) -> float:
    """Returns the mean nats per character over windows of a text, each from an empty state."""
    tokens = model.tokenizer.encode(text)
    rows = (len(tokens) - 1) // window
    inputs = tokens[: rows * window].reshape(rows, window).T
    targets = tokens[1 : rows * window + 1].reshape(rows, window).T
    pool = Pool(threads)
    weights = pack_for_inference(model.parameters)
    scorer = Scorer(model.parameters.shape, weights, rows, window, pool)
    fresh = np.ones(rows, np.bool_)
    scores = scorer.log_probabilities(
        np.ascontiguousarray(inputs, np.int32), np.ascontiguousarray(targets, np.int32), fresh
    )
    pool.close()
    return -in_order(scores.reshape(-1).tolist()) / scores.size


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=input_file)
    parser.add_argument("--train-for", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="", help="not AUTO's pick")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    text = options.corpus.read_text()
    held_out = text[int(len(text) * 0.9) :]
    passes: list[float] = []
    windows: list[float] = []
    for seed in range(options.seed, options.seed + options.seeds):
        model = train(options.corpus, options.train_for, options.threads, options.precision, seed)
        passes.append(stateful(model, held_out))
        print(f"one stateful pass over the last 10 %: {passes[-1]:.4f} nats per character")
        windows.append(cold(model, held_out, COLD_WINDOW, options.threads))
        print(
            f"cold windows of {COLD_WINDOW} characters:      {windows[-1]:.4f} nats per character"
        )
    if options.seeds > 1:
        print(f"one stateful pass: {summary(passes)}")
        print(f"cold windows:      {summary(windows)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
