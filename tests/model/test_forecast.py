"""AUTO's second look at the speed of a run, and what it says of the limit that ended it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import QUIET, TEXT, config_of, run, weights_of

from treadle.model.config import LimitsConfig, TrainConfig
from treadle.model.enums import Cell, Precision, Preset
from treadle.model.network.shape import Shape
from treadle.model.training.auto import preset, throughput
from treadle.model.training.auto.forecast import (
    CHECK_AFTER,
    Forecast,
    check_speed,
    count,
    duration,
    judge_limit,
)
from treadle.model.training.auto.throughput import Throughput
from treadle.model.training.trainer import Trainer

EXPECTED = Forecast(
    seconds=100, tokens=10_000, weights=5_000, readable=90_000, passes=9, speed=1_000, right_s=500
)


def test_a_second_look_waits_until_there_is_something_to_see() -> None:
    assert check_speed(EXPECTED, 100, 100 * CHECK_AFTER - 0.01, 10) is None
    assert check_speed(EXPECTED, 2, 50, 10) is None
    assert check_speed(EXPECTED, 3, 50, 50_000) == ""
    assert check_speed(EXPECTED, 3, 50, 25_000) == "", "half of it is near enough"


def test_a_run_of_less_than_half_the_speed_gets_a_notice() -> None:
    notice = check_speed(EXPECTED, 10, 2, 500)
    assert notice is not None
    assert "reads 250 tokens per second, and 1,000 were measured" in notice
    assert notice.endswith("about 33 minutes would be right for this corpus")
    long = check_speed(replace(EXPECTED, right_s=20.0), 10, 2, 500)
    assert long is not None
    assert "right" not in long, "there is more time than that"


def test_nothing_is_said_without_a_limit_of_time() -> None:
    unlimited = replace(EXPECTED, seconds=None)
    assert check_speed(unlimited, 100, 100, 1) == ""
    assert judge_limit(unlimited, "max_steps reached after 9 steps", 9, 9, 9, 9) == ()


@pytest.mark.parametrize(
    ("ended_by", "tokens", "best_step", "said"),
    [
        ("max_time_s reached after 100 steps", 100_000, 100, "time was the limit: about 8 minutes"),
        ("max_wall_time_s reached after 100 steps", 100_000, 90, "time was the limit"),
        ("max_time_s reached after 100 steps", 100_000, 40, "the corpus, not time, was the limit"),
        ("max_epochs reached after 100 steps", 100_000, 100, "the corpus, not time, was the limit"),
        ("early_stopping_patience reached after 100 steps: ...", 9, 50, "came after about 50 sec"),
        ("max_time_s reached after 100 steps", 900_000, 100, "time and corpus were in balance"),
    ],
)
def test_the_limit_that_ended_a_run_is_judged(
    ended_by: str, tokens: int, best_step: int, said: str
) -> None:
    (notice,) = judge_limit(EXPECTED, ended_by, 100, tokens, 100, best_step)
    assert notice.startswith("auto: ")
    assert said in notice


def test_a_limit_of_the_callers_own_is_not_judged() -> None:
    for ended_by in ("max_steps reached after 9 steps", "stopped on request", "cancelled"):
        assert judge_limit(EXPECTED, ended_by, 100, 9, 9, 9) == ()


def test_numbers_are_said_as_people_say_them() -> None:
    seconds = (0.2, 1, 31.4, 89, 90, 1500, 5400, 12_000, 90_000, 200_000, 10**7)
    assert [duration(s) for s in seconds] == [
        "about 1 second",
        "about 1 second",
        "about 31 seconds",
        "about 89 seconds",
        "about 1.5 minutes",
        "about 25 minutes",
        "about 1.5 hours",
        "about 3 hours",
        "about 25 hours",
        "about 2.3 days",
        "about 120 days",
    ]
    assert [count(n) for n in (12, 999_999, 2_340_000, 5e9)] == [
        "12",
        "999,999",
        "2.3 million",
        "5.0 billion",
    ]


# ---------------------------------------------------------------- in a run


def auto_run(monkeypatch: pytest.MonkeyPatch, speed: float) -> TrainConfig:
    """A run of a hundred ticks of the clock, on a machine of which a speed was measured."""
    measured = Throughput(Shape(Cell.RNN, 29, 0, 4, 1), Precision.FP32, speed)
    monkeypatch.setattr(preset, "measure_throughput", lambda *_: (measured,))
    config = config_of(preset=Preset.AUTO, limits=LimitsConfig(max_time_s=100), report=QUIET)
    return replace(config, given=("network", "data", "optimizer", "limits"))


@pytest.mark.usefixtures("clock")
def test_a_slow_run_gets_one_notice_however_often_it_is_paused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = auto_run(monkeypatch, speed=1e6)
    trainer = Trainer(TEXT, config)
    assert any("auto:" in notice for notice in trainer.started.notices)
    first = list(trainer.run(between=lambda: trainer.steps == 5))
    trainer.save_state(tmp_path / "run")
    settings = replace(trainer.started.config, preset=None)
    again = Trainer(TEXT, settings)
    assert not any("auto:" in notice for notice in again.started.notices), "it was picked once"
    again.restore_state(tmp_path / "run")
    seen = first + run(again)
    notices = [notice for p in seen for notice in p.notices]
    assert len(notices) == 1
    assert "tokens per second" in notices[0]
    record = again.finish().training
    assert record is not None
    (notice,) = record.notices
    assert notice.startswith("auto: ")
    assert "limit" in notice or "balance" in notice
    whole = Trainer(TEXT, config)
    assert [notice for p in run(whole) for notice in p.notices] == notices
    assert weights_of(whole.model) == weights_of(again.model)


@pytest.mark.usefixtures("clock")
def test_a_run_of_the_expected_speed_gets_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run(Trainer(TEXT, auto_run(monkeypatch, speed=1e-3)))
    assert [notice for p in seen for notice in p.notices] == []


def test_the_speed_is_that_of_the_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps of 1, 4, 4, 4 and 9 seconds, after one that is not counted: 4, not 1."""
    lengths = iter([7.0, 1.0, 4.0, 9.0, 4.0, 4.0])
    now = [0.0]

    class Engine:
        def __init__(self, *_: object, **__: object) -> None:
            self.gradient = None

        def loss_and_gradient(self, *_: object) -> None:
            now[0] += next(lengths)

        def close(self) -> None:
            pass

    class Optimizer:
        steps = 0

        def __init__(self, *_: object) -> None:
            pass

        def step(self, *_: object) -> None:
            pass

    class Time:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    monkeypatch.setattr(throughput, "Engine", Engine)
    monkeypatch.setattr(throughput, "Optimizer", Optimizer)
    monkeypatch.setattr(throughput, "time", Time)
    shape = Shape(Cell.LSTM, 65, 64, 8, 1)
    speed = throughput._tokens_per_second(TrainConfig(), shape, Precision.FP32, 16, 1, 22.0)
    assert speed == 16 * 32 / 4
