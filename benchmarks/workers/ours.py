"""`load` measures Treadle itself: the trainer's step, the decoder, the scorer, the processor."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from treadle.benchmarks.peak import multiply_adds
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import Maker, Options, Step
from treadle.model import Cell, OptimizerConfig, Precision, SamplingConfig, TrainConfig
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

TOTAL_STEPS = 10_000
"""Where the learning rate's schedule thinks that the run ends."""


def shape_of(case: Case) -> Shape:
    """Returns the sizes of a case's network."""
    return Shape(Cell(case.cell), case.vocabulary, case.embedding, case.hidden, case.layers)


def make_train(case: Case, options: Options) -> Step:
    """Makes a step as `treadle.model.training.trainer` does: batch, loss, gradient, clip, Adam."""
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


def make_decode(case: Case, options: Options) -> Step:
    """Returns a step that samples a chunk at temperature 1, for as many sequences as rows."""
    shape = shape_of(case)
    weights = pack_for_inference(Parameters.initial(shape, seed=0))
    initial = SessionState.fresh(shape, token=0)
    sampling = ResolvedSampling(SamplingConfig())
    joining = [
        SequenceSlot(sampling, replace(initial, seed=row), end=-1) for row in range(case.rows)
    ]
    slots = SlotArrays(shape, weights)
    slots.replace((), joining)

    def step() -> float:
        return sum(map(len, slots.decode(case.steps).tokens))

    return step


def make_score(case: Case, options: Options) -> Step:
    """Scores a batch: forward pass, and the log-probability of every target."""
    shape = shape_of(case)
    weights = pack_for_inference(Parameters.initial(shape, seed=0))
    scorer = Scorer(shape, weights, case.rows, case.steps, Pool(case.threads))
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(case.vocabulary, size=(2, case.steps, case.rows), dtype=np.int32)
    fresh = np.zeros(case.rows, np.bool_)

    def step() -> float:
        return scorer.log_probabilities(tokens, targets, fresh).size

    return step


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
