from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from golden_files import FOLDER as GOLDEN_FOLDER
from numpy.typing import NDArray

from treadle.kernels import reference
from treadle.model.config import OptimizerConfig
from treadle.model.enums import Cell, OptimizerKind, Schedule
from treadle.model.errors import TrainingError
from treadle.model.network.parallel import PART, Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import Optimizer, half_cosine, learning_rate

SHAPE = Shape(Cell.GRU, V=5, E=2, H=3, L=2)
Arrays = dict[str, NDArray[np.floating[Any]]]


def constant(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig(schedule=Schedule.CONSTANT, **settings)


def gradients(count: int, size: float = 1.0) -> list[Parameters]:
    """Random gradients, each of another size."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        gradient = Parameters(SHAPE)
        for view in gradient.named().values():
            view[...] = rng.standard_normal(view.shape) * size * (number + 1)
        made.append(gradient)
    return made


def widen(parameters: Parameters) -> Arrays:
    return {name: array.astype(np.float64) for name, array in parameters.named().items()}


# ---------------------------------------------------------------- the learning rate


def test_a_constant_rate_stays() -> None:
    config = constant(learning_rate=0.25)
    assert [learning_rate(config, step, step / 9, 0) for step in range(10)] == [0.25] * 10


def test_the_rate_rises_over_the_warm_up_in_equal_steps() -> None:
    config = constant(learning_rate=0.3)
    rates = [learning_rate(config, step, 0.0, 4) for step in range(7)]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3, 0.3, 0.3])


def test_the_cosine_ends_at_the_final_rate() -> None:
    config = OptimizerConfig(learning_rate=2.0, final_rate=0.25)
    rates = [learning_rate(config, 9, progress, 0) for progress in (0.0, 0.5, 1.0, 2.0)]
    assert rates == pytest.approx([2.0, 1.25, 0.5, 0.5])


def test_the_cosine_falls_from_the_whole_rate_to_nothing() -> None:
    config = OptimizerConfig(learning_rate=2.0)
    rates = [learning_rate(config, 1000, share, 0) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0])
    assert learning_rate(config, 1000, 1.5, 0) == pytest.approx(0.0)


def test_the_cosine_falls_during_the_warm_up_as_well() -> None:
    config = OptimizerConfig(learning_rate=1.0)
    assert learning_rate(config, 1, 0.5, 3) == pytest.approx(0.5 * 2 / 4)


@pytest.mark.parametrize(("kind", "rate"), [("adam", 0.003), ("adagrad", 0.1), ("sgd", 0.5)])
def test_every_rule_has_a_rate_of_its_own(kind: str, rate: float) -> None:
    config = constant(kind=kind)
    assert learning_rate(config, 0, 0.0, 0) == rate


# ---------------------------------------------------------------- the rules


def take_reference_step(
    config: OptimizerConfig, weights: Arrays, state: dict[str, Arrays], gradient: Arrays, step: int
) -> None:
    for name, weight in weights.items():
        g = gradient[name]
        lr = config.rate
        if config.kind is OptimizerKind.ADAM:
            reference.adam_step(
                weight,
                g,
                state["m"][name],
                state["v"][name],
                step,
                lr,
                config.beta1,
                config.beta2,
                weight_decay=config.weight_decay,
            )
        elif config.kind is OptimizerKind.ADAGRAD:
            decay = config.weight_decay
            reference.adagrad_step(weight, g, state["v"][name], lr, weight_decay=decay)
        else:
            reference.sgd_step(weight, g + config.weight_decay * weight, lr)


@pytest.mark.parametrize("clipping", [{"clip_norm": 0}, {"clip_norm": 2.5, "clip_value": 1.25}])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", OptimizerKind)
def test_steps_are_those_of_the_reference(
    kind: OptimizerKind, weight_decay: float, clipping: dict[str, float]
) -> None:
    config = constant(kind=kind, weight_decay=weight_decay, beta1=0.8, beta2=0.95, **clipping)
    parameters = Parameters.initial(SHAPE, seed=0)
    optimizer = Optimizer(config, parameters)
    weights = widen(parameters)
    state = {key: {name: np.zeros_like(w) for name, w in weights.items()} for key in "mv"}
    for step, gradient in enumerate(gradients(5), start=1):
        wide = widen(gradient)
        if config.clip_value:
            reference.clip_by_value(wide, config.clip_value)
        norm = reference.clip_by_global_norm(wide, config.clip_norm or math.inf)
        take_reference_step(config, weights, state, wide, step)
        assert optimizer.step(gradient, config.rate) == pytest.approx(norm, rel=1e-6)
        assert optimizer.steps == step
        for name, array in parameters.named().items():
            np.testing.assert_allclose(array, weights[name], rtol=1e-5, atol=1e-6, err_msg=name)


PYTORCH = json.loads((GOLDEN_FOLDER / "optimizers.json").read_text())


@pytest.mark.parametrize("name", PYTORCH["results"])
def test_steps_are_those_of_pytorch(name: str) -> None:
    """Also where 1 - beta is far below what float32 keeps of 1."""
    settings = PYTORCH["results"][name]["settings"]
    beta1, beta2 = settings.get("betas", (0.9, 0.99))
    config = constant(
        kind=name.partition(",")[0],
        learning_rate=settings["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=settings.get("weight_decay", 0.0),
        clip_norm=0,
    )
    parameters = Parameters(SHAPE)
    gradient = Parameters(SHAPE)
    weights = parameters.flat
    size = len(PYTORCH["start"])
    weights[:size] = PYTORCH["start"]
    optimizer = Optimizer(config, parameters)
    for each in PYTORCH["gradients"]:
        gradient.flat[:size] = each
        optimizer.step(gradient, config.rate)
    np.testing.assert_allclose(
        weights[:size], PYTORCH["results"][name]["weights"], rtol=2e-5, atol=2e-6
    )
    assert not np.allclose(weights[:size], PYTORCH["start"], rtol=0.01)


def test_the_rate_given_is_the_one_used() -> None:
    parameters = Parameters(SHAPE)
    (gradient,) = gradients(1)
    step = gradient.flat * np.float32(-0.125)
    Optimizer(constant(kind="sgd", clip_norm=0), parameters).step(gradient, 0.125)
    assert np.array_equal(parameters.flat, step)


def test_a_gradient_within_its_limits_is_left_as_it_is() -> None:
    (gradient,) = gradients(1)
    before = gradient.flat.copy()
    norm = float(np.linalg.norm(before.astype(np.float64)))
    highest = float(np.abs(before).max())
    config = constant(kind="sgd", clip_norm=norm * 1.001, clip_value=highest)
    assert Optimizer(config, Parameters(SHAPE)).step(gradient, 0.1) == pytest.approx(norm)
    assert gradient.flat.tobytes() == before.tobytes()


def test_a_longer_gradient_is_shortened_and_keeps_its_direction() -> None:
    parameters = Parameters(SHAPE)
    (gradient,) = gradients(1)
    Optimizer(constant(kind="sgd", clip_norm=0.5), parameters).step(gradient, -1.0)
    step = parameters.flat
    used = gradient.flat != 0
    assert float(np.linalg.norm(step)) == pytest.approx(0.5, rel=1e-6)
    ratio = step[used] / gradient.flat[used]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


@pytest.mark.jit
@pytest.mark.parametrize("kind", OptimizerKind)
def test_threads_do_not_change_a_bit(kind: OptimizerKind) -> None:
    shape = Shape(Cell.RNN, V=3, E=0, H=700, L=1)  # of several parts, the last one not whole
    assert shape.parameter_count > 3 * PART
    results = []
    for threads in (1, 2, 3):
        parameters = Parameters(shape)
        gradient = Parameters(shape)
        pool = Pool(threads)
        optimizer = Optimizer(constant(kind=kind, clip_value=2.0, clip_norm=0.5), parameters)
        for seed in (1, 2):
            gradient.flat[:] = np.random.default_rng(seed).standard_normal(gradient.flat.size)
            optimizer.step(gradient, 0.1, pool)
        results.append(parameters.flat.tobytes())
        pool.close()
    assert results[0] == results[1] == results[2]


def test_limits_beyond_float32_clip_nothing() -> None:
    (gradient,) = gradients(1)
    before = gradient.flat.copy()
    config = constant(kind="sgd", clip_norm=1e300, clip_value=1e300)
    Optimizer(config, Parameters(SHAPE)).step(gradient, 0.1)
    assert gradient.flat.tobytes() == before.tobytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", OptimizerKind)
def test_a_gradient_that_is_no_number_changes_nothing(kind: OptimizerKind, bad: float) -> None:
    parameters = Parameters.initial(SHAPE, seed=0)
    optimizer = Optimizer(constant(kind=kind), parameters)
    first, second = gradients(2)
    optimizer.step(first, 0.01)
    kept = [parameters, *(b for b in (optimizer.means, optimizer.squares) if b is not None)]
    before = [buffer.flat.tobytes() for buffer in kept]
    second.stacks.Wh[1, 2, 3] = bad
    with pytest.raises(TrainingError, match="at step 2; lower the learning rate"):
        optimizer.step(second, 0.01)
    assert [buffer.flat.tobytes() for buffer in kept] == before
    assert optimizer.steps == 1


def test_an_infinite_gradient_can_be_clipped_by_value() -> None:
    parameters = Parameters(SHAPE)
    (gradient,) = gradients(1)
    gradient.stacks.by[0] = math.inf
    Optimizer(constant(kind="sgd", clip_value=1.0, clip_norm=0), parameters).step(gradient, 0.5)
    assert parameters.stacks.by[0] == -0.5
    assert np.isfinite(parameters.flat).all()


@pytest.mark.parametrize("kind", OptimizerKind)
def test_no_gradient_is_no_step(kind: OptimizerKind) -> None:
    parameters = Parameters.initial(SHAPE, seed=0)
    before = parameters.flat.tobytes()
    optimizer = Optimizer(constant(kind=kind), parameters)
    assert [optimizer.step(Parameters(SHAPE), 0.5) for _ in range(3)] == [0.0] * 3
    assert parameters.flat.tobytes() == before


@pytest.mark.parametrize("kind", OptimizerKind)
def test_padding_between_arrays_stays_zero(kind: OptimizerKind) -> None:
    parameters = Parameters.initial(SHAPE, seed=0)
    optimizer = Optimizer(constant(kind=kind, weight_decay=0.1, clip_value=1), parameters)
    for gradient in gradients(3):
        optimizer.step(gradient, 0.1)
    assert np.count_nonzero(parameters.flat) <= SHAPE.parameter_count


def test_settings_beyond_float32_are_taken_as_its_largest() -> None:
    parameters = Parameters(SHAPE)
    (gradient,) = gradients(1)
    gradient.flat[:] = np.float32(1)
    Optimizer(constant(kind="sgd", clip_norm=0), parameters).step(gradient, 1e300)
    assert np.all(parameters.flat == -np.finfo(np.float32).max)


def test_half_a_cosine_wave_is_the_cosine() -> None:
    places = np.linspace(0, 1, 4001)
    values = [half_cosine(float(place)) for place in places]
    np.testing.assert_allclose(values, 0.5 * (1 + np.cos(np.pi * places)), rtol=0, atol=3e-16)
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1, abs=1e-15)
    assert values[-1] == pytest.approx(0, abs=1e-15)
