"""What a measured speed says of other networks, and that measuring takes the time it may."""

from __future__ import annotations

import time

import pytest

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import NetworkConfig, OptimizerConfig, TrainConfig
from treadle.model.enums import Cell, Precision
from treadle.model.network.shape import Shape
from treadle.model.training.auto import throughput
from treadle.model.training.auto.throughput import (
    Throughput,
    expected_throughput,
    measure_throughput,
    multiply_adds,
)


def lstm(units: int, layers: int = 1) -> Shape:
    return Shape(Cell.LSTM, V=65, E=64, H=units, L=layers)


def test_multiply_adds_by_hand() -> None:
    assert multiply_adds(Shape(Cell.RNN, V=5, E=2, H=3, L=1)) == 3 * (9 + 15)
    assert multiply_adds(Shape(Cell.GRU, V=5, E=2, H=3, L=2)) == 3 * (3 * 27 + 15)
    factored = Shape(Cell.RNN, V=500, E=2, H=3, L=1, clusters=(32, 64, 224))
    assert multiply_adds(factored) == 3 * (9 + 3 * (32 + 3 + 276))


def test_what_was_measured_is_expected() -> None:
    speeds = (
        Throughput(lstm(128), Precision.FP32, 9e4),
        Throughput(lstm(384), Precision.FP32, 1e4),
    )
    for speed in speeds:
        assert expected_throughput(speeds, speed.shape, Precision.FP32) == speed.tokens_per_second


def test_the_speeds_of_this_kind_of_machine_follow_from_one() -> None:
    """Measured: two cores, 64 x 64 tokens, thousands a second."""
    measured = {
        Precision.FP32: {384: 47, 512: 28, 640: 18},
        Precision.BF16: {384: 81, 512: 50, 640: 34},
    }
    for precision, by_units in measured.items():
        one = (Throughput(lstm(384), precision, 1000.0 * by_units[384]),)
        for units, thousands in by_units.items():
            expected = expected_throughput(one, lstm(units), precision)
            assert expected == pytest.approx(1000 * thousands, rel=0.06)


def test_the_nearest_size_of_the_same_precision_decides() -> None:
    small = Throughput(lstm(64), Precision.FP32, 1e6)
    large = Throughput(lstm(512), Precision.FP32, 1e3)
    pairs = Throughput(lstm(256), Precision.BF16, 7e4)
    speeds = (small, large, pairs)
    assert expected_throughput(speeds, lstm(400), Precision.FP32) < 2e3
    assert expected_throughput(speeds, lstm(70), Precision.FP32) > 5e5
    assert expected_throughput(speeds, lstm(256), Precision.BF16) == 7e4
    alone = (Throughput(lstm(256), Precision.FP32, 1e4),)
    assert expected_throughput(alone, lstm(256), Precision.BF16) == 1e4 * throughput.BF16_FACTOR
    alone = (Throughput(lstm(256), Precision.BF16, 1e4),)
    assert expected_throughput(alone, lstm(256), Precision.FP32) == 1e4 / throughput.BF16_FACTOR


@pytest.mark.jit
def test_a_short_run_is_measured_in_a_moment() -> None:
    config = TrainConfig(
        network=NetworkConfig(cell=Cell.GRU, hidden_size=3000), given=("network.cell",)
    )
    measure_throughput(config, 65, 1.0, False, 1)  # loads the kernels
    begin = time.process_time()
    (speed,) = measure_throughput(config, 65, 1.0, False, 1)
    assert time.process_time() - begin < 3
    assert speed.shape == Shape(Cell.GRU, V=65, E=64, H=128, L=1), "its own sizes, the cell given"
    assert speed.precision is Precision.FP32
    assert 1e3 < speed.tokens_per_second < 1e9


@pytest.mark.jit
@pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)
def test_the_precision_that_will_be_used_is_measured() -> None:
    (speed,) = measure_throughput(TrainConfig(), 10**6, 31.0, True, 1)
    assert (speed.precision, speed.shape.H, speed.shape.V) == (Precision.BF16, 384, 256)
    given = TrainConfig(
        optimizer=OptimizerConfig(precision=Precision.FP32), given=("optimizer.precision",)
    )
    (speed,) = measure_throughput(given, 65, 31.0, True, 1)
    assert speed.precision is Precision.FP32
