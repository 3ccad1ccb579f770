"""`measure_throughput` measures how fast this machine trains, and `expected_throughput` applies it.

A few steps are trained on random tokens. Nearly all of a step is matrix products, so the time of a
token grows with its multiply-adds, or with a power of them a little below 1 where small products
use a fast unit less (`_POWERS`). So one measured speed predicts that of other sizes; of several,
the nearest in size is taken.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell, Precision
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import Optimizer

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.network.ranks.ranks import Ranks

MOST_SECONDS = 1.5
"""Most seconds of a measurement."""
SHARE = 0.02
"""Largest share of the run's time for a measurement."""
BF16_FACTOR = 1.6
"""Speed of BF16 relative to FP32, used if only one of them was measured."""

_POWERS = {Precision.FP32: 1.0, Precision.BF16: 0.87}
"""The power of its multiply-adds that a token's time grows with: fitted to LSTMs of 384 to 640
units on Zen 4."""

_LONG = (384, 64)
_SHORT = (128, 16)
"""Units and steps that are measured: the second for short runs, whose networks are small."""
_LONG_RUN = 30.0
"""Seconds of a run that has time for the first."""
_VOCABULARY = 256
"""Most tokens of the measured network: a larger output layer is calculated, not measured."""


@dataclass(frozen=True)
class Throughput:
    """The measured speed of one network."""

    shape: Shape
    """Its sizes."""
    precision: Precision
    """The precision of its matrix products."""
    tokens_per_second: float
    """Tokens per second of whole steps."""


def multiply_adds(shape: Shape) -> float:
    """Returns the multiply-adds that a token costs, forward and backward."""
    H = shape.H
    G = shape.G
    recurrent = shape.L * H * G + (shape.L - 1) * H * G
    # Of a factored softmax at most the head, the clusters and the largest one of them.
    columns = shape.V
    if shape.clusters:
        columns = shape.clusters[0] + len(shape.clusters) + shape.logit_width
    return 3.0 * (recurrent + H * columns)


def expected_throughput(
    measured: Sequence[Throughput], shape: Shape, precision: Precision
) -> float:
    """Returns the tokens per second that a network will be trained on.

    Args:
        measured: One measurement or more.
        shape: The network's sizes.
        precision: The precision of its matrix products.
    """
    cost = multiply_adds(shape)

    def distance(one: Throughput) -> tuple[bool, float]:
        return one.precision is not precision, abs(math.log(multiply_adds(one.shape) / cost))

    nearest = min(measured, key=distance)
    factor = 1.0
    if nearest.precision is not precision:
        factor = BF16_FACTOR if precision is Precision.BF16 else 1 / BF16_FACTOR
    ratio = multiply_adds(nearest.shape) / cost
    return float(nearest.tokens_per_second * factor * ratio ** _POWERS[precision])


def measure_throughput(
    config: TrainConfig,
    vocabulary: int,
    seconds: float | None,
    has_bf16: bool,
    threads: int,
    ranks: Ranks | None = None,
) -> tuple[Throughput, ...]:
    """Trains for a moment on random tokens, after kernels were compiled or loaded.

    Args:
        config: The cell and the precision, if they are given.
        vocabulary: Tokens in the vocabulary.
        seconds: The time of the run, in seconds; None if it is not limited by time.
        has_bf16: Whether this process can train with BF16.
        threads: Threads that train, of every process.
        ranks: The processes that train; None: this one alone.

    Returns:
        One measurement.
    """
    units, steps = _LONG if seconds is None or seconds >= _LONG_RUN else _SHORT
    given = set(config.given)
    cell = config.network.cell if {"network", "network.cell"} & given else Cell.LSTM
    fast = has_bf16 and units == _LONG[0]
    precision = Precision.BF16 if fast else Precision.FP32
    if {"optimizer", "optimizer.precision"} & given:
        precision = config.optimizer.precision
    shape = Shape.of(NetworkConfig(cell, units, 1, 64), min(vocabulary, _VOCABULARY))
    limit = MOST_SECONDS if seconds is None else min(MOST_SECONDS, SHARE * seconds)
    speed = _tokens_per_second(config, shape, precision, steps, threads, limit, ranks)
    return (Throughput(shape, precision, speed),)


def _tokens_per_second(
    config: TrainConfig,
    shape: Shape,
    precision: Precision,
    steps: int,
    threads: int,
    limit: float,
    ranks: Ranks | None = None,
) -> float:
    """Returns the speed from the median of the steps that fit in `limit` seconds, at least one.

    The fastest step is one in which nothing else ran; a whole run is disturbed like its
    median step.
    """
    processes = 1 if ranks is None else ranks.size
    rows = max(32, min(16 * threads * processes, 128))
    pool = Pool(threads)
    try:
        parameters = Parameters.initial(shape, seed=0)
        if ranks is not None:
            ranks.command("resize", threads)
        engine = Engine(
            parameters, rows, steps, pool, precision=precision, output_dropout=0.3, ranks=ranks
        )
        optimizer = Optimizer(config.optimizer, parameters)
        if ranks is not None:
            optimizer.share(ranks)
        tokens = np.random.default_rng(0).integers(shape.V, size=(2, steps, rows), dtype=np.int32)
        fresh = np.zeros(rows, np.bool_)
        seconds: list[float] = []
        end = math.inf  # the first step, which compiles, is not counted
        while not seconds or time.perf_counter() < end:
            begin = time.perf_counter()
            engine.loss_and_gradient(tokens[0], tokens[1], fresh, optimizer.steps)
            optimizer.step(engine.gradient, 1e-3, pool)
            now = time.perf_counter()
            if end == math.inf:
                end = now + limit
            else:
                seconds.append(now - begin)
        engine.close()
    finally:
        pool.close()
    return steps * rows / statistics.median(seconds)
