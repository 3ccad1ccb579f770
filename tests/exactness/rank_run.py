"""Trains small networks on the ranks that mpirun starts, and prints every result to the bit.

    mpirun -n 2 python tests/exactness/rank_run.py '{"names": ["lstm"], "threads": 1}'

Rank 0 prints JSON. It must be what `results` returns in one process. With `stop` the runs pause
after so many steps and leave their checkpoints in `folder`; with `folder` alone they continue from
there.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from exactness import small_run

from treadle.kernels.jit import BF16_MISSING
from treadle.model import (
    Cell,
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    ReportConfig,
    Schedule,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    Trainer,
)
from treadle.model.network.ranks.ranks import Ranks
from treadle.model.training import evaluation, trainer
from treadle.model.training.ranks.follower import follow_to_the_end
from treadle.model.training.ranks.join import join

WORDS = " ".join(f"w{n * n % 701}" for n in range(4000))
"""More words than a batch has tokens, so that only some rows of the embedding have gradients."""

MORE = {
    "lstm many words": TrainConfig(
        tokenizer=TokenizerConfig(TokenizerKind.WORDS),
        data=DataConfig(batch_size=40, window=5, validation_fraction=0.2),
        network=NetworkConfig(cell=Cell.LSTM, hidden_size=24, embedding_size=9),
        optimizer=OptimizerConfig(clip_norm=0.5, averaging=2.0, weight_decay=0.02),
        limits=LimitsConfig(max_steps=12),
    ),
    # Too large for one thread to pack its weights.
    "gru large": TrainConfig(
        data=DataConfig(batch_size=50, window=6, validation_fraction=0.2),
        network=NetworkConfig(cell=Cell.GRU, hidden_size=150, layers=2, embedding_size=20),
        optimizer=OptimizerConfig(schedule=Schedule.COSINE),
        limits=LimitsConfig(max_steps=6),
    ),
    "rnn one shard": TrainConfig(
        data=DataConfig(batch_size=7, window=6, validation_fraction=0.2),
        network=NetworkConfig(cell=Cell.RNN, hidden_size=11, embedding_size=3),
        limits=LimitsConfig(max_steps=20),
    ),
}
if not BF16_MISSING:
    MORE["lstm bf16"] = TrainConfig(
        data=DataConfig(batch_size=33, window=7, validation_fraction=0.2),
        network=NetworkConfig(cell=Cell.LSTM, hidden_size=33, layers=2, embedding_size=5),
        optimizer=OptimizerConfig(precision=Precision.BF16, clip_value=0.02),
        limits=LimitsConfig(max_steps=12),
    )
CONFIGS = small_run.CONFIGS | {
    name: replace(config, report=ReportConfig(progress_interval_s=1e6), seed=11)
    for name, config in MORE.items()
}


@contextmanager
def without_time() -> Iterator[None]:
    """Gives runs a clock that their looks advance, so that checkpoints are equal to the byte."""
    looks = itertools.count()

    def clock() -> float:
        return next(looks) / 1000

    fake = SimpleNamespace(perf_counter=clock, monotonic=clock)
    with ExitStack() as stack:
        for module in (trainer, evaluation):
            stack.enter_context(patch.object(module, "time", fake))
        stack.enter_context(patch.object(trainer, "resident_bytes", lambda: 1))
        yield


def results(
    names: list[str],
    threads: int = 1,
    stop: int | None = None,
    folder: str = "",
    interrupt: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Trains networks; with `interrupt`, every fourth look drops the step."""
    return {name: _run(name, threads, stop, folder, interrupt, ranks) for name in names}


def _run(
    name: str,
    threads: int,
    stop: int | None,
    folder: str,
    interrupt: bool,
    ranks: Ranks | None,
) -> dict[str, Any]:
    looks = itertools.count()
    text = WORDS if name == "lstm many words" else small_run.TEXT
    run = Trainer(text.encode(), CONFIGS[name], threads, ranks=ranks)
    state = Path(folder, f"{name}.state") if folder else None
    if state is not None and stop is None:
        assert run.restore_state(state)
    with without_time():
        progresses = list(
            run.run(
                between=lambda: stop is not None and run.steps >= stop,
                # Not while a sample is drawn, which would pause the run.
                interrupted=lambda: interrupt and not run._between_steps and next(looks) % 4 == 3,
            )
        )
    if stop is not None:
        assert state is not None
        run.save_state(state)
        return {"checkpoint": hashlib.sha256(state.read_bytes()).hexdigest()}
    model = run.finish()
    assert model.training is not None
    return {
        "reports": [small_run.reported(progress) for progress in progresses],
        "weights": hashlib.sha256(model.parameters.flat.tobytes()).hexdigest(),
        "loss": float(model.training.valid_loss or 0).hex(),
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    ranks = join()
    if ranks is not None and not ranks.leads:
        follow_to_the_end(ranks)
        return
    try:
        json.dump(results(**asked, ranks=ranks), sys.stdout)
    finally:
        if ranks is not None:
            ranks.leave()


if __name__ == "__main__":
    main()
