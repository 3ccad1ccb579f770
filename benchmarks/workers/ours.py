"""`load` measures Treadle itself: the trainer's step, the decoder, the scorer, the processor."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from treadle.benchmarks.answers import FIRST_TOKEN, MOST_ROWS
from treadle.benchmarks.networks import network_weights, scored_tokens
from treadle.benchmarks.peak import multiply_adds
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step
from treadle.kernels import structs
from treadle.model import (
    Cell,
    InferencePrecision,
    OptimizerConfig,
    Precision,
    SamplingConfig,
    TrainConfig,
)
from treadle.model.data.batching import TextBatches
from treadle.model.data.corpus import TokenData
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.precision import check_precision
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import Scorer
from treadle.model.training.optimizer import Optimizer, learning_rate
from treadle.model.training.steps.series import StepSeries

TOTAL_STEPS = 10_000
"""Where the learning rate's schedule thinks that the run ends."""


def shape_of(case: Case) -> Shape:
    """Returns the sizes of a case's network."""
    return Shape(Cell(case.cell), case.vocabulary, case.embedding, case.hidden, case.layers)


def make_train(case: Case, options: Options) -> Step:
    """Makes a step as `treadle.model.training.trainer` does: batch, loss, gradient, clip, Adam.

    Args:
        case: The network and the batch.
        options: The precision.

    Returns:
        The step; of a small network, the few steps that the trainer takes in one call.
    """
    tokens = np.random.default_rng(0).integers(
        case.vocabulary, size=case.rows * case.steps * 16 + 1, dtype=np.int32
    )
    batches = TextBatches(TokenData(tokens), case.rows, case.steps)
    parameters = Parameters.initial(shape_of(case), seed=0)
    # Adam, clipped at a global norm of 1
    config = OptimizerConfig(precision=options.get("precision", Precision.FP32))
    check_precision(TrainConfig(optimizer=config))
    pool = Pool(case.threads)
    engine = Engine(parameters, case.rows, case.steps, pool, precision=config.precision)
    optimizer = Optimizer(config, parameters)

    series = StepSeries(engine, optimizer, batches)

    def steps() -> float:
        coming, counts = series.next(series.most_steps)
        done = range(optimizer.steps, optimizer.steps + counts.size)
        rates = [learning_rate(config, number, number / TOTAL_STEPS, 100) for number in done]
        if len(series.run(coming, counts, rates)) < counts.size:
            raise ArithmeticError("the loss is no finite number")
        return float(counts.sum())

    if series.most_steps:
        return steps

    def step() -> float:
        batch = next(batches)
        rate = learning_rate(config, optimizer.steps, optimizer.steps / TOTAL_STEPS, 100)
        tokens = batch.tokens[: batch.steps]
        targets = batch.targets[: batch.steps]
        loss, count = engine.loss_and_gradient(tokens, targets, batch.fresh)
        if not math.isfinite(loss):
            raise ArithmeticError("the loss is no finite number")
        optimizer.step(engine.gradient, rate, engine.pool)
        return count

    return step


def packed(case: Case, options: Options) -> structs.Weights:
    """Returns the weights that all sides compute with, packed in float32 or in int8."""
    parameters = Parameters.from_named(shape_of(case), network_weights(case))
    precision = InferencePrecision.INT8 if options.get("int8") else InferencePrecision.FP32
    return pack_for_inference(parameters, precision)


def make_decode(case: Case, options: Options) -> Step:
    """Returns a step that samples a chunk at temperature 1, for as many sequences as rows."""
    shape = shape_of(case)
    weights = packed(case, options)
    initial = SessionState.fresh(shape, FIRST_TOKEN)
    sampling = ResolvedSampling(SamplingConfig())

    def from_the_beginning(rows: int) -> SlotArrays:
        slots = SlotArrays(shape, weights)
        joining = [SequenceSlot(sampling, replace(initial, seed=row), -1) for row in range(rows)]
        slots.replace((), joining)
        return slots

    slots = from_the_beginning(case.rows)

    def step() -> float:
        return sum(map(len, slots.decode(case.steps).tokens))

    def answers() -> dict[str, Any]:
        drawn = from_the_beginning(case.rows).decode(case.steps).drawn
        return {
            "tokens": drawn.tokens[:, :MOST_ROWS].tolist(),
            "log_probabilities": drawn.log_probabilities[:, :MOST_ROWS].tolist(),
        }

    return CheckedStep(step, answers)


def make_score(case: Case, options: Options) -> Step:
    """Scores a batch: forward pass, and the log-probability of every target."""
    shape = shape_of(case)
    scorer = Scorer(shape, packed(case, options), case.rows, case.steps, Pool(case.threads))
    tokens = scored_tokens(case)
    targets = np.roll(tokens, -1, axis=0)
    carried = np.zeros(case.rows, np.bool_)
    fresh = np.ones(case.rows, np.bool_)

    def step() -> float:
        return scorer.log_probabilities(tokens, targets, carried).size

    def answers() -> dict[str, Any]:
        found = scorer.log_probabilities(tokens, targets, fresh)[:-1, :MOST_ROWS]
        return {"tokens": tokens[:, :MOST_ROWS].tolist(), "log_probabilities": found.tolist()}

    return CheckedStep(step, answers)


def make_peak(case: Case, options: Options) -> Step:
    """Multiplies and adds in registers alone, on every thread; the work is FLOPs."""
    pool = Pool(case.threads)

    def step() -> float:
        return math.fsum(pool.map(multiply_adds, [100_000] * case.threads))

    return step


MAKERS: dict[str, Maker] = {
    "train": make_train,
    "decode": make_decode,
    "score": make_score,
    "peak": make_peak,
}


def load() -> tuple[str, Maker]:
    """Returns the version and what makes cases."""
    try:
        ours = version("treadle")
    except PackageNotFoundError:
        ours = "a checkout that is not installed"
    return ours, lambda case, options: MAKERS[case.kind](case, options)
