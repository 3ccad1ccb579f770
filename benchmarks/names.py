"""`train` makes a model of first names: its test loss, and the share of new names.

    python benchmarks/names.py names.txt [--train-for 60] [--samples 1000] [--seeds 3]

Reads one name a line, draws 1,000 of them for the test and 1,000 for validation, as makemore does
with the test, trains with `preset: AUTO` on the others, and prints the test loss in nats a
character, each name's end counted as one, and the share of generated names that training has
not seen. makemore's Transformer gives 1.92 on such a split, its best n-gram 2.052.
With several seeds, all on the split of the first, it prints the mean loss and the distance from
the lowest to the highest.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import exit_code, input_file
from treadle.benchmarks.shakespeare import summary
from treadle.model import Model, Trainer
from treadle.model.config import DataConfig, LimitsConfig, ReportConfig, TrainConfig
from treadle.model.data.corpus import CorpusFile
from treadle.model.enums import CorpusLayout, CorpusRole, Preset

HELD_OUT = 1000


def split(path: Path, seed: int) -> tuple[list[str], list[CorpusFile]]:
    """Returns the names to train on, and the files of all three parts."""
    names = path.read_text().split()
    random.Random(seed).shuffle(names)
    cuts = (0, HELD_OUT, 2 * HELD_OUT, len(names))
    test, valid, train = (names[a:b] for a, b in pairwise(cuts))
    parts = ((CorpusRole.TRAIN, train), (CorpusRole.VALID, valid), (CorpusRole.TEST, test))
    return train, [CorpusFile("\n".join(part).encode(), role.value, role) for role, part in parts]


def train(files: Sequence[CorpusFile], seconds: float, threads: int, seed: int) -> Model:
    """Trains by AUTO and prints what it picks and how it goes."""
    config = TrainConfig(
        preset=Preset.AUTO,
        given=("data.layout",),
        data=DataConfig(layout=CorpusLayout.LINES),
        limits=LimitsConfig(max_time_s=seconds),
        report=ReportConfig(progress_interval_s=1e6, sample_tokens=0),
        seed=seed,
    )
    trainer = Trainer(files, config, threads)
    for notice in trainer.started.notices:
        print(f"- {notice}")
    print(f"{trainer.started.parameter_count:,} parameters", end="; ")
    print(f"{trainer.started.baseline_order}-gram {trainer.started.baseline_loss:.4f}")
    for progress in trainer.run():
        loss = progress.valid_loss or float("nan")
        print(f"{progress.elapsed_s:6.1f} s  train {progress.train_loss:.4f}  valid {loss:.4f}")
    return trainer.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", type=input_file)
    parser.add_argument("--train-for", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="the first seed, and that of the split")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    seen, files = split(options.names, options.seed)
    losses: list[float] = []
    for seed in range(options.seed, options.seed + options.seeds):
        model = train(files, options.train_for, options.threads, seed)
        assert model.training is not None
        assert model.training.test_loss is not None
        losses.append(model.training.test_loss)
        print(f"test: {losses[-1]:.4f} nats per character, ends included")
    if options.seeds > 1:
        print(f"test: {summary(losses)}")
    known = set(seen)
    made = [model.generate(seed=seed, max_new_tokens=40) for seed in range(options.samples)]
    new = [name for name in made if name not in known]
    print(f"new: {len(new)} of {len(made)} generated names")
    print(" ".join(f"{name}{'*' if name not in known else ''}" for name in made[:20]), "(* new)")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
