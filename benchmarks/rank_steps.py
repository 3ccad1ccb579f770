"""`main` compares a step on several ranks with the same step of one process of as many threads.

    mpirun -n 2 python -m treadle.benchmarks.rank_steps [--rounds N] [--threads N]

Rank 0 runs the trainer both ways in turns, a few steps each, A B A B: alone with the threads of all
ranks, while the others sleep, and together with them. All ranks must be on one machine, and Open
MPI must not bind them to processors (`--bind-to none`). A figure is the median of the rounds, a
ratio that of medians. The weights must be the same in the end, to the byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from treadle.model import (
    Cell,
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    ReportConfig,
    TrainConfig,
    Trainer,
)
from treadle.model.network.ranks.ranks import Ranks
from treadle.model.training.ranks.follower import follow_to_the_end
from treadle.model.training.ranks.join import join

_CASES = (
    ("LSTM 64", 64, Precision.FP32),
    ("LSTM 128", 128, Precision.FP32),
    ("LSTM 256", 256, Precision.FP32),
    ("LSTM 512", 512, Precision.FP32),
    ("LSTM 512, bf16", 512, Precision.BF16),
)
_ROWS = 64
_WINDOW = 64
_SECONDS = 0.4
"""How long each side runs in a round, about."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="rank_steps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each case (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a rank (default: 1)")
    options = parser.parse_args(arguments)
    ranks = join()
    if ranks is None:
        print("start it by mpirun -n 2", file=sys.stderr)
        return 2
    if not ranks.leads:
        return follow_to_the_end(ranks)
    try:
        _lead(ranks, options.threads, options.rounds)
    finally:
        ranks.leave()
    return 0


def _lead(ranks: Ranks, threads: int, rounds: int) -> None:
    together = ranks.size * threads
    print(f"load {os.getloadavg()[0]:.1f}; {ranks.size} ranks of {threads}; {_ROWS} rows")
    print(f"{'':16}{f'1 x {together}':>12}{f'{ranks.size} x {threads}':>12}{'ratio':>8}")
    for name, units, precision in _CASES:
        alone, shared = _times(_config(units, precision), ranks, threads, rounds)
        one = statistics.median(alone)
        many = statistics.median(shared)
        print(
            f"{name:16}{one * 1e3:9.2f} ms{many * 1e3:9.2f} ms{many / one:8.2f}",
            flush=True,
        )


def _config(units: int, precision: Precision) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(batch_size=_ROWS, window=_WINDOW, validation_fraction=0),
        network=NetworkConfig(Cell.LSTM, units, embedding_size=64),
        optimizer=OptimizerConfig(precision=precision),
        limits=LimitsConfig(max_steps=10**9),
        report=ReportConfig(progress_interval_s=1e6, validation_interval_steps=10**9),
    )


def _times(
    config: TrainConfig, ranks: Ranks, threads: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Returns the seconds of a step in every round: of one process, and of all ranks."""
    letters = np.random.default_rng(0).integers(32, 97, 400_000, dtype=np.uint8).tobytes()
    alone = Trainer(letters, config, threads * ranks.size)
    shared = Trainer(letters, config, threads, ranks=ranks)
    steps = max(2, int(_SECONDS / _run(alone, 3)))
    _run(shared, 3)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        seconds[0].append(_run(alone, steps))
        seconds[1].append(_run(shared, steps))
    while alone.steps != shared.steps:  # a series ends where it ends
        behind = alone if alone.steps < shared.steps else shared
        _run(behind, abs(alone.steps - shared.steps), in_series=False)
    if alone.model.parameters.flat.tobytes() != shared.model.parameters.flat.tobytes():
        raise AssertionError("the weights differ")
    return seconds


def _run(trainer: Trainer, steps: int, *, in_series: bool = True) -> float:
    """Returns the seconds of a step; the first call of the trainer's own is not counted."""
    begins: list[tuple[float, int]] = []
    last = trainer.steps + steps

    def between() -> bool:
        begins.append((time.perf_counter(), trainer.steps))
        return trainer.steps >= last and (len(begins) > 1 or not in_series)

    for _ in trainer.run(between=between, in_series=in_series):
        pass
    (begin, first), (end, done) = begins[0], begins[-1]
    return (end - begin) / max(done - first, 1)


if __name__ == "__main__":
    sys.exit(main())
