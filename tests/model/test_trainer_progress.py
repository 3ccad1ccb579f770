from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from small_runs import (
    QUIET,
    TEXT,
    config_of,
    hundred_batches,
    run,
    stop_after,
    weights_of,
)

from treadle.model.config import DataConfig, LimitsConfig, OptimizerConfig, ReportConfig
from treadle.model.enums import OptimizerKind, Schedule
from treadle.model.errors import TrainingError
from treadle.model.training.optimizer import learning_rate
from treadle.model.training.plan import Plan
from treadle.model.training.progress import Progress
from treadle.model.training.trainer import Trainer

# ---------------------------------------------------------------- progress


@pytest.mark.usefixtures("clock")
def test_progress_counts_steps_tokens_and_seconds() -> None:
    report = ReportConfig(progress_interval_s=2, validation_interval_steps=1000, sample_tokens=0)
    data = DataConfig(batch_size=2, window=4, validation_fraction=0)
    limits = LimitsConfig(max_steps=7)
    trainer = Trainer(b"abcde" * 10, config_of(data=data, report=report, limits=limits))
    progress = run(trainer)
    assert [p.step for p in progress] == [2, 4, 6, 7]
    assert [p.elapsed_s for p in progress] == [2, 4, 6, 7]
    assert [p.time_left_s for p in progress] == [5, 3, 1, 0]
    # 49 transitions in rows of 24 and 25 steps, in 7 even batches: an epoch
    seen = [p.tokens_seen for p in progress]
    assert seen[-1] == 49
    assert [p.epoch for p in progress] == [count / 49 for count in seen]
    spoken = np.diff([0, *seen])
    assert [p.tokens_per_second for p in progress] == [*(spoken[:3] / 2), spoken[3]]
    assert all(p.gradient_norm > 0 for p in progress)
    assert [p.valid_loss for p in progress] == [None] * 4
    assert [p.sample for p in progress] == [None] * 4


@pytest.mark.usefixtures("clock")
def test_the_train_loss_is_the_mean_since_the_last_progress() -> None:
    limits = LimitsConfig(max_steps=6)
    every = ReportConfig(progress_interval_s=1, validation_interval_steps=99, sample_tokens=0)
    alone = run(hundred_batches(limits=limits, report=every))
    paired = run(hundred_batches(limits=limits, report=replace(every, progress_interval_s=2)))
    means = [
        (one.train_loss + two.train_loss) / 2
        for one, two in zip(alone[::2], alone[1::2], strict=True)
    ]
    assert [p.train_loss for p in paired] == pytest.approx(means, rel=1e-12)


@pytest.mark.usefixtures("clock")
def test_time_left_follows_the_nearest_limit() -> None:
    report = ReportConfig(progress_interval_s=1, validation_interval_steps=99, sample_tokens=0)
    limits = LimitsConfig(max_steps=50, max_time_s=4)
    progress = run(hundred_batches(limits=limits, report=report))
    assert [p.time_left_s for p in progress] == [3, 2, 1, 0]
    limits = LimitsConfig(max_steps=3, max_time_s=40)
    progress = run(hundred_batches(limits=limits, report=report))
    assert [p.time_left_s for p in progress] == [2, 1, 0]


@pytest.mark.usefixtures("clock")
def test_the_learning_rate_reported_is_the_one_used() -> None:
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    report = ReportConfig(progress_interval_s=1, validation_interval_steps=99, sample_tokens=0)
    trainer = hundred_batches(optimizer=optimizer, report=report, limits=LimitsConfig(max_steps=8))
    expected = [learning_rate(optimizer, step, step / 8, 2) for step in range(8)]
    assert [p.learning_rate for p in run(trainer)] == expected
    # A run of 4 seconds sinks as fast as one of 4 steps, where a step takes a second.
    timed = hundred_batches(optimizer=optimizer, report=report, limits=LimitsConfig(max_time_s=4))
    expected = [learning_rate(optimizer, step, step / 4, 2) for step in range(4)]
    assert [p.learning_rate for p in run(timed)] == expected


@pytest.mark.parametrize(
    ("limits", "warmup"),
    [
        (LimitsConfig(max_steps=2000), 100),
        (LimitsConfig(max_steps=90), 9),
        (LimitsConfig(max_steps=9), 0),
        (LimitsConfig(max_time_s=9), 100),
    ],
)
def test_the_warm_up_is_a_hundred_steps_or_a_tenth(limits: LimitsConfig, warmup: int) -> None:
    assert hundred_batches(limits=limits).started.config.optimizer.warmup_steps == warmup


def test_a_run_validates_at_every_tenth_of_its_steps() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=30)))
    progress = run(trainer)
    assert [p.step for p in progress] == list(range(3, 31, 3))
    assert all(p.valid_loss is not None for p in progress)


def test_tenths_are_those_of_whole_numbers() -> None:
    batches = hundred_batches()._state.batches
    for total in range(10, 400):
        plan = Plan(config_of(limits=LimitsConfig(max_steps=total)), batches)
        counts = [plan.evaluations_due(step, 0) for step in range(total + 1)]
        due = [step for step in range(1, total + 1) if counts[step] > counts[step - 1]]
        assert due == [-(-total * part // 10) for part in range(1, 11)]


def test_a_run_of_few_steps_validates_at_each() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=3)))
    assert [p.step for p in run(trainer)] == [1, 2, 3]


@pytest.mark.usefixtures("clock")
def test_validation_and_samples_come_at_the_steps_asked_for_and_at_the_end() -> None:
    report = ReportConfig(progress_interval_s=1, validation_interval_steps=4, sample_tokens=6)
    config = config_of(limits=LimitsConfig(max_steps=10), report=report)
    progress = run(Trainer(TEXT[:400], config))
    assert [p.step for p in progress] == list(range(1, 11))
    assert [p.step for p in progress if p.valid_loss is not None] == [4, 8, 10]
    assert [p.step for p in progress if p.sample is not None] == [4, 8, 10]
    assert all(len(p.sample) == 6 for p in progress if p.sample is not None)


@pytest.mark.usefixtures("clock")
def test_by_time_a_run_validates_at_every_tenth() -> None:
    """A validation takes a second, as a step does, and counts as they do."""
    config = config_of(limits=LimitsConfig(max_time_s=200))
    seen = run(Trainer(TEXT[:400], config))
    assert [p.step for p in seen] == list(range(20, 192, 19))
    assert [p.elapsed_s for p in seen] == list(range(21, 202, 20))


def test_a_sample_is_what_the_model_generates_at_that_moment() -> None:
    report = ReportConfig(sample_tokens=12, validation_interval_steps=2)
    config = config_of(limits=LimitsConfig(max_steps=4), report=report, seed=3)
    trainer = Trainer(TEXT, config)
    for progress in trainer.run():
        assert progress.sample == trainer.model.generate(max_new_tokens=12, seed=3)
    assert progress.step == 4


def test_without_a_validation_part_there_is_a_sample_and_no_loss() -> None:
    report = ReportConfig(sample_tokens=5)
    trainer = hundred_batches(limits=LimitsConfig(max_steps=2), report=report)
    progress = run(trainer)
    assert [p.valid_loss for p in progress] == [None, None]
    assert all(p.sample for p in progress)
    assert trainer.started.valid_tokens == 0
    assert trainer.model.training is not None
    assert trainer.model.training.valid_loss is None


def test_the_model_in_the_middle_is_a_copy() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=3)))
    running = trainer.run()
    next(running)
    model = trainer.model
    before = weights_of(model)
    assert model.training is not None
    assert (model.training.steps, model.training.ended_by) == (1, "not ended yet")
    for _ in running:
        pass
    assert weights_of(model) == before != weights_of(trainer.model)


def test_the_record_reports_the_run() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=3)))
    last = run(trainer)[-1]
    record = trainer.model.training
    assert record is not None
    assert record.config == trainer.started.config
    assert (record.steps, record.tokens_seen) == (3, last.tokens_seen)
    assert (record.train_loss, record.valid_loss) == (last.train_loss, last.valid_loss)
    assert record.elapsed_s == last.elapsed_s


# ---------------------------------------------------------------- runs that go wrong


def exploding(steps: int) -> Trainer:
    optimizer = OptimizerConfig(
        kind=OptimizerKind.SGD, learning_rate=1e38, clip_norm=0, schedule=Schedule.CONSTANT
    )
    config = config_of(optimizer=optimizer, limits=LimitsConfig(max_steps=steps), report=QUIET)
    return Trainer(b"hello world " * 20, config)


@pytest.mark.jit  # as plain Python, NumPy warns of what is found out a moment later
def test_a_rate_that_explodes_ends_the_run_before_it_harms_the_model() -> None:
    trainer = exploding(50)
    with pytest.raises(TrainingError, match=r"at step \d+; lower the .*state is") as caught:
        run(trainer)
    record = trainer.model.training
    assert record is not None
    assert f"at step {record.steps + 1};" in str(caught.value)
    shorter = exploding(50)
    run_until(shorter.run(stop_after(record.steps)))
    assert weights_of(trainer.model) == weights_of(shorter.model)
    assert np.isfinite(trainer.model.parameters.flat).all()


def run_until(progress: Iterator[Progress]) -> None:
    """Reads a run that may fail at its last report."""
    try:
        for _ in progress:
            pass
    except TrainingError:
        pass


@pytest.mark.jit
def test_a_loss_that_is_no_number_ends_the_run_though_its_gradient_is_one() -> None:
    trainer = hundred_batches(limits=LimitsConfig(max_steps=3))
    trainer._state.parameters.stacks.by[:] = 3e38, -3e38
    before = weights_of(trainer.model)
    with pytest.raises(
        TrainingError,
        match=r"the loss became inf at step 1; .* \(gradient norm .*; the last good state",
    ):
        run(trainer)
    assert weights_of(trainer.model) == before


@pytest.mark.jit
@pytest.mark.parametrize("kind", OptimizerKind)
def test_a_weight_that_became_infinite_is_no_model(kind: OptimizerKind) -> None:
    optimizer = OptimizerConfig(kind=kind, learning_rate=1e300, weight_decay=1e300, clip_norm=0)
    config = config_of(optimizer=optimizer, limits=LimitsConfig(max_steps=1))
    trainer = Trainer(b"hello world " * 20, config)
    with pytest.raises(
        TrainingError,
        match=r"infinite by step 1; lower .* \(gradient norm .*that of step 0\)",
    ):
        run(trainer)
