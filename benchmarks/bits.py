"""`digest` trains small networks and returns digests of their weights, by cell and threads.

    python -m treadle.benchmarks.bits 1 2 3

Run for another processor (NUMBA_CPU_NAME=haswell) it must print the same. Sizes are odd: whole
panels and parts of them, three shards of which the last has one row.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from treadle.model import Cell, OptimizerConfig
from treadle.model.data.batching import TextBatches
from treadle.model.data.corpus import TokenData
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import Optimizer, learning_rate

STEPS = 200
ROWS = 33
WINDOW = 13


def digest(cell: str, threads: int) -> str:
    """Trains for STEPS steps; returns the SHA-256 of the weights."""
    parameters = Parameters.initial(Shape(Cell(cell), V=37, E=5, H=33, L=2), seed=7)
    tokens = np.random.default_rng(8).integers(37, size=ROWS * WINDOW * 20 + 1, dtype=np.int32)
    batches = TextBatches(TokenData(tokens), ROWS, WINDOW)
    pool = Pool(threads)
    engine = Engine(parameters, ROWS, WINDOW, pool)
    config = OptimizerConfig()
    optimizer = Optimizer(config, parameters)
    for number in range(STEPS):
        batch = next(batches)
        window = slice(batch.steps)
        engine.loss_and_gradient(batch.tokens[window], batch.targets[window], batch.fresh)
        optimizer.step(engine.gradient, learning_rate(config, number, number / STEPS, 20))
    pool.close()
    return hashlib.sha256(parameters.flat.tobytes()).hexdigest()


def main() -> None:
    """Prints the digests."""
    threads = [int(argument) for argument in sys.argv[1:]]
    digests = {cell: {str(n): digest(cell, n) for n in threads} for cell in ("rnn", "gru", "lstm")}
    json.dump(digests, sys.stdout)


if __name__ == "__main__":
    main()
