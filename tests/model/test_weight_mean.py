"""The mean of the weights is that of the formula, and it is what a run evaluates and stores."""

from __future__ import annotations

import numpy as np
import pytest
from small_runs import TEXT, config_of

from treadle.model.config import LimitsConfig, OptimizerConfig
from treadle.model.enums import Cell, Keep, Schedule
from treadle.model.network.parallel import PART, Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import AVERAGED_EVERY, WeightMean
from treadle.model.training.trainer import Trainer

SHAPE = Shape(Cell.RNN, V=5, E=2, H=3, L=1)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_later_weights_count_more_by_the_power(power: float) -> None:
    """With the power 1 the n-th weights count n, with the power 2 they count n (n + 1) / 2."""
    weights = Parameters(SHAPE)
    mean = WeightMean(power, SHAPE)
    values = [3.0, -1.0, 4.0, 1.5]
    for step in range(AVERAGED_EVERY, 4 * AVERAGED_EVERY + 3):
        # Only steps 8, 16, 24 and 32 count.
        number, rest = divmod(step, AVERAGED_EVERY)
        weights.flat[:] = np.nan if rest else values[number - 1]
        mean.add(weights, step, Pool(1))
    shares = np.array([n if power == 1 else n * (n + 1) / 2 for n in (1, 2, 3, 4)])
    assert mean.parameters.flat == pytest.approx(np.dot(values, shares) / shares.sum())


def test_the_mean_of_a_short_run_is_its_last_weights() -> None:
    weights = Parameters(SHAPE)
    mean = WeightMean(8.0, SHAPE)
    for step in range(1, AVERAGED_EVERY + 1):
        weights.flat[:] = np.float32(1.1) ** np.float32(step)
        mean.add(weights, step, Pool(1))
        assert mean.parameters.flat.tobytes() == weights.flat.tobytes()


@pytest.mark.jit
def test_threads_change_no_bit() -> None:
    shape = Shape(Cell.LSTM, V=5, E=2, H=PART // 1024, L=2)
    means = []
    for threads in (1, 3):
        weights = Parameters.initial(shape, seed=1)
        assert weights.flat.size > PART
        pool = Pool(threads)
        mean = WeightMean(4.0, shape)
        for step in (AVERAGED_EVERY, 2 * AVERAGED_EVERY):
            weights.flat[:] *= np.float32(1.1)
            mean.add(weights, step, pool)
        pool.close()
        means.append(mean.parameters.flat.tobytes())
    assert means[0] == means[1]


def trained(averaging: float, keep: Keep = Keep.LAST) -> Trainer:
    config = config_of(
        optimizer=OptimizerConfig(
            learning_rate=0.05, schedule=Schedule.CONSTANT, averaging=averaging
        ),
        limits=LimitsConfig(max_steps=4 * AVERAGED_EVERY + 1),
        keep=keep,
    )
    return Trainer(TEXT, config)


@pytest.mark.parametrize("keep", list(Keep))
def test_a_run_evaluates_and_stores_the_mean(keep: Keep) -> None:
    plain = trained(0.0)
    mean = WeightMean(2.0, plain.model.parameters.shape)

    def between() -> None:
        mean.add(plain.model.parameters, plain.steps, Pool(1))

    list(plain.run(between=between))
    averaged = trained(2.0, keep)
    last = list(averaged.run())[-1]
    assert averaged.model.parameters.flat.tobytes() == mean.parameters.flat.tobytes()
    stored = averaged.finish()
    assert stored.training is not None
    assert last.valid_loss == stored.training.valid_loss
    assert stored.parameters.flat.tobytes() == mean.parameters.flat.tobytes()
    assert last.train_loss == plain.finish().training.train_loss  # type: ignore[union-attr]


def test_before_the_first_step_the_model_is_the_initial_one() -> None:
    assert (
        trained(2.0).model.parameters.flat.tobytes() == trained(0.0).model.parameters.flat.tobytes()
    )
