from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import dropout_masks

import treadle.model.trainer as trainer_module
from treadle.kernels import reference
from treadle.model import examination
from treadle.model.batches import make_batches
from treadle.model.config import (
    Cell,
    CorpusLayout,
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    OptimizerKind,
    ReportConfig,
    Schedule,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    UnknownPolicy,
)
from treadle.model.corpus import read_corpus
from treadle.model.errors import ConfigError, CorpusError, EncodingError, TrainingError
from treadle.model.model import Model
from treadle.model.optimizer import learning_rate
from treadle.model.parameters import Parameters, Shape
from treadle.model.plan import Plan
from treadle.model.progress import Progress
from treadle.model.tokenizer import CharacterTokenizer
from treadle.model.trainer import Trainer, train

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
TEXT = ("the quick brown fox jumps over the lazy dog; " * 40).encode()
NAMES = b"".join(name + b"\n" for name in (b"anna", b"bert", b"carla", b"dora", b"emil") * 8)
QUIET = ReportConfig(progress_interval_s=1e6, sample_tokens=0)
TINY = NetworkConfig(cell=Cell.RNN, hidden_size=4, embedding_size=0)


def config_of(**sections: Any) -> TrainConfig:
    """A tiny RNN on small batches that reports only at validations, without samples."""
    defaults: dict[str, Any] = {
        "network": TINY,
        "data": DataConfig(batch_size=3, window=5),
        "report": QUIET,
    }
    return TrainConfig(**{**defaults, **sections})


def hundred_batches(**sections: Any) -> Trainer:
    """A run with exactly 100 batches an epoch and nothing for validation."""
    data = DataConfig(batch_size=1, window=2, validation_fraction=0)
    return Trainer(b"ab" * 100 + b"a", config_of(data=data, **sections))


def run(trainer: Trainer, stop: Callable[[], bool] | None = None) -> list[Progress]:
    return list(trainer.run() if stop is None else trainer.run(stop))


def weights_of(model: Model) -> bytes:
    return model.parameters.flat.tobytes()


class Clock:
    """Stands in for `time`: every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes exactly one second."""
    monkeypatch.setattr(trainer_module, "time", Clock())


# ---------------------------------------------------------------- hello

HELLO_NOTICES = (
    "nothing kept for validation: it would leave 3 tokens to train on and 0 to validate with",
    "batch size 32 shrunk to 1: the corpus has 5 tokens to train on",
    "window 64 shrunk to 4: the corpus has 5 tokens to train on",
    "no limit given: training for 300 steps",
)


@pytest.mark.jit
@pytest.mark.parametrize("kind", OptimizerKind)
@pytest.mark.parametrize("embedding", [0, 8])
@pytest.mark.parametrize("cell", Cell)
def test_hello(cell: Cell, embedding: int, kind: OptimizerKind) -> None:
    network = NetworkConfig(cell=cell, hidden_size=32, embedding_size=embedding)
    trainer = Trainer(b"hello", TrainConfig(network=network, optimizer=OptimizerConfig(kind=kind)))
    progress = run(trainer)
    assert trainer.model.generate("h", temperature=0, max_new_tokens=4) == "ello"
    assert trainer.started.notices == HELLO_NOTICES
    assert trainer.started.total_steps == progress[-1].step == 300
    assert progress[-1].train_loss < 0.2
    assert trainer.ended_by == "max_steps reached after 300 steps"


def test_a_tiny_network_learns_hello() -> None:
    network = NetworkConfig(cell=Cell.RNN, hidden_size=8, embedding_size=0)
    config = config_of(network=network, optimizer=OptimizerConfig(learning_rate=0.05))
    model = train("hello", config, max_steps=100)
    assert model.generate("h", temperature=0, max_new_tokens=4) == "ello"


@pytest.mark.jit
def test_the_page_about_training_shows_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(PAGE.read_text().partition("```python\n")[2].partition("```")[0], {})
    assert "batch size 32 shrunk to 1" in capsys.readouterr().out
    assert Model.load("hello.safetensors").generate("h", temperature=0, max_new_tokens=4) == "ello"


# ---------------------------------------------------------------- what became of the settings


def test_started_tells_every_default_and_every_size() -> None:
    started = Trainer(b"hello").started
    config = started.config
    assert config.optimizer.learning_rate == 0.003
    assert config.optimizer.warmup_steps == 30
    assert config.tokenizer.unknown_policy is UnknownPolicy.ERROR
    assert (config.data.batch_size, config.data.window) == (1, 4)
    assert config.limits == LimitsConfig(max_steps=300)
    assert (started.train_tokens, started.valid_tokens) == (5, 0)
    assert started.vocabulary_size == 4
    shape = Shape(Cell.LSTM, V=4, E=64, H=128, L=1)
    assert started.parameter_count == shape.parameter_count
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_config_as_used_makes_the_same_model() -> None:
    first = Trainer(TEXT[:300], config_of(limits=LimitsConfig(max_epochs=1)))
    run(first)
    second = Trainer(TEXT[:300], first.started.config)
    run(second)
    assert weights_of(first.model) == weights_of(second.model)
    assert second.started.config == first.started.config


def test_nothing_is_noticed_where_nothing_was_changed() -> None:
    trainer = Trainer(TEXT, config_of(limits=LimitsConfig(max_steps=1)))
    assert trainer.started.notices == ()
    assert trainer.started.valid_tokens == len(TEXT) // 10
    assert trainer.started.train_tokens == len(TEXT) - len(TEXT) // 10


@pytest.mark.parametrize(("size", "steps"), [(2, 300), (51, 500), (3000, 20_000)])
def test_without_limits_the_corpus_decides(size: int, steps: int) -> None:
    data = DataConfig(batch_size=1, window=1, validation_fraction=0)
    trainer = Trainer(b"ab" * (size // 2) + b"a" * (size % 2), config_of(data=data))
    assert trainer.started.total_steps == steps
    assert trainer.started.config.limits == LimitsConfig(max_steps=steps)
    assert f"no limit given: training for {steps:,} steps" in trainer.started.notices


def test_a_corpus_that_was_read_brings_its_own_settings() -> None:
    tokenizer = TokenizerConfig(kind=TokenizerKind.WORDS, max_vocabulary_size=3)
    corpus = read_corpus(NAMES, tokenizer, DataConfig(layout=CorpusLayout.LINES))
    trainer = Trainer(corpus, config_of(limits=LimitsConfig(max_steps=1)))
    assert trainer.started.config.data.layout is CorpusLayout.LINES
    assert trainer.started.config.tokenizer == replace(
        tokenizer, unknown_policy=UnknownPolicy.UNKNOWN
    )
    run(trainer)
    assert trainer.model.tokenizer is corpus.tokenizer


@pytest.mark.parametrize("corpus", [b"", b"a"])
def test_a_corpus_too_small_is_refused(corpus: bytes) -> None:
    with pytest.raises(CorpusError):
        Trainer(corpus)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "steps", "name"),
    [
        (LimitsConfig(max_steps=3), 3, "max_steps"),
        (LimitsConfig(max_epochs=0.05), 5, "max_epochs"),
        (LimitsConfig(max_epochs=0.041), 5, "max_epochs"),
        (LimitsConfig(max_epochs=1e-9), 1, "max_epochs"),
        (LimitsConfig(max_steps=4, max_epochs=0.05), 4, "max_steps"),
        (LimitsConfig(max_steps=6, max_epochs=0.05), 5, "max_epochs"),
        (LimitsConfig(max_time_s=4), 4, "max_time_s"),
        (LimitsConfig(max_time_s=3.5), 4, "max_time_s"),
        (LimitsConfig(max_time_s=1e-9), 1, "max_time_s"),
        (LimitsConfig(max_steps=4, max_time_s=9), 4, "max_steps"),
        (LimitsConfig(max_steps=9, max_time_s=4), 4, "max_time_s"),
        (LimitsConfig(max_epochs=0.04, max_time_s=9, max_steps=9), 4, "max_epochs"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_the_first_limit_met_ends_the_run_and_is_named(
    limits: LimitsConfig, steps: int, name: str
) -> None:
    trainer = hundred_batches(limits=limits)
    progress = run(trainer)
    assert progress[-1].step == steps
    assert trainer.ended_by == f"{name} reached after {steps} steps"
    record = trainer.model.training
    assert record is not None
    assert (record.steps, record.ended_by) == (steps, trainer.ended_by)
    assert progress[-1].time_left_s == 0
    planned = steps if limits.max_steps or limits.max_epochs else 0
    assert trainer.started.total_steps == (
        planned if name != "max_time_s" else limits.max_steps or 0
    )


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 100), (1.1, 110), (2.3, 230), (0.291, 30), (1e300, 2**53)]
)
def test_epochs_are_counted_in_steps(epochs: float, steps: int) -> None:
    trainer = hundred_batches(limits=LimitsConfig(max_epochs=epochs))
    assert trainer.started.total_steps == pytest.approx(steps, rel=1e-9)
    assert trainer.started.total_steps < 2**64


def test_an_epoch_sees_every_token_once() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_epochs=1)))
    last = run(trainer)[-1]
    assert last.epoch == 1
    assert last.tokens_seen == trainer.started.train_tokens - 1
    lines = DataConfig(CorpusLayout.LINES, batch_size=3, window=5, validation_fraction=0)
    trainer = Trainer(NAMES, config_of(data=lines, limits=LimitsConfig(max_epochs=2)))
    last = run(trainer)[-1]
    assert last.epoch == 2
    assert last.tokens_seen == 2 * (trainer.started.train_tokens + 40), "40 items have 40 ends"


# ---------------------------------------------------------------- stopping


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= steps


def test_a_stop_in_the_middle_leaves_a_usable_model() -> None:
    config = config_of(limits=LimitsConfig(max_steps=1000), report=ReportConfig(sample_tokens=4))
    trainer = Trainer(TEXT, config)
    progress = run(trainer, stop_after(3))
    assert [p.step for p in progress] == [3]
    assert progress[0].valid_loss is not None
    assert progress[0].sample is not None
    assert trainer.ended_by == "stopped on request"
    record = trainer.model.training
    assert record is not None
    assert (record.steps, record.ended_by) == (3, "stopped on request")
    assert record.valid_loss == progress[0].valid_loss
    assert len(trainer.model.generate("the", max_new_tokens=5)) == 5


@pytest.mark.usefixtures("clock")
def test_a_stop_right_after_a_report_still_validates() -> None:
    report = ReportConfig(progress_interval_s=1, sample_tokens=3)
    config = config_of(limits=LimitsConfig(max_steps=1000), report=report)
    trainer = Trainer(TEXT, config)
    progress = run(trainer, stop_after(3))
    assert [p.step for p in progress] == [1, 2, 3, 3]
    assert [p.valid_loss is not None for p in progress] == [False, False, False, True]
    assert [p.sample is not None for p in progress] == [False, False, False, True]
    assert progress[3].train_loss == progress[2].train_loss > 0
    assert trainer.model.training is not None
    assert trainer.model.training.valid_loss == progress[3].valid_loss


def test_a_stop_right_after_a_validation_says_no_more() -> None:
    report = replace(QUIET, validation_interval_steps=3)
    trainer = Trainer(TEXT, config_of(limits=LimitsConfig(max_steps=1000), report=report))
    progress = run(trainer, stop_after(3))
    assert [p.step for p in progress] == [3]
    assert progress[0].valid_loss is not None


def test_a_stop_before_the_first_step_leaves_the_initial_model(tmp_path: Path) -> None:
    trainer = Trainer(TEXT, config_of(seed=9))
    assert run(trainer, lambda: True) == []
    assert trainer.ended_by == "stopped on request"
    model = trainer.model
    assert weights_of(model) == Parameters.initial(model.parameters.shape, 9).flat.tobytes()
    model.save(tmp_path / "initial")
    again = Model.load(tmp_path / "initial")
    assert again.training is not None
    assert again.training.steps == 0
    assert math.isnan(again.training.train_loss)


def test_a_limit_already_met_wins_over_a_stop() -> None:
    data = DataConfig(validation_fraction=0)
    trainer = Trainer(TEXT, config_of(limits=LimitsConfig(max_steps=3), data=data))
    run(trainer, stop_after(3))
    assert trainer.ended_by == "max_steps reached after 3 steps"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_run_that_nobody_reads_to_its_end_leaves_no_threads(threads: int) -> None:
    before = set(threading.enumerate())
    data = DataConfig(batch_size=40, window=5)
    report = replace(QUIET, validation_interval_steps=1)
    trainer = Trainer(TEXT, config_of(data=data, report=report), threads=threads)
    running = trainer.run()
    assert next(running).step == 1
    assert (len(set(threading.enumerate()) - before) > 0) == (threads > 1)
    del running
    assert set(threading.enumerate()) == before
    assert trainer.model.generate(max_new_tokens=3)


def test_a_run_that_fails_leaves_no_threads() -> None:
    before = set(threading.enumerate())
    data = DataConfig(batch_size=40, window=5)

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Trainer(TEXT, config_of(data=data), threads=2), stop)
    assert set(threading.enumerate()) == before


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
def test_the_learning_rate_told_is_the_one_used() -> None:
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    report = ReportConfig(progress_interval_s=1, validation_interval_steps=99, sample_tokens=0)
    trainer = hundred_batches(optimizer=optimizer, report=report, limits=LimitsConfig(max_steps=8))
    wanted = [learning_rate(optimizer, step, step / 8, 2) for step in range(8)]
    assert [p.learning_rate for p in run(trainer)] == wanted
    # A run of 4 seconds sinks as fast as one of 4 steps, where a step takes a second.
    timed = hundred_batches(optimizer=optimizer, report=report, limits=LimitsConfig(max_time_s=4))
    wanted = [learning_rate(optimizer, step, step / 4, 2) for step in range(4)]
    assert [p.learning_rate for p in run(timed)] == wanted


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
        due = [step for step in range(1, total + 1) if plan.part(step, 0) > plan.part(step - 1, 0)]
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
    config = config_of(limits=LimitsConfig(max_time_s=20))
    assert [p.step for p in run(Trainer(TEXT[:400], config))] == list(range(2, 21, 2))


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


def test_the_record_tells_the_run() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=3)))
    last = run(trainer)[-1]
    record = trainer.model.training
    assert record is not None
    assert record.config == trainer.started.config
    assert (record.steps, record.tokens_seen) == (3, last.tokens_seen)
    assert (record.train_loss, record.valid_loss) == (last.train_loss, last.valid_loss)
    assert record.elapsed_s == last.elapsed_s


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("cell", Cell)
def test_the_seed_decides_every_bit(cell: Cell) -> None:
    network = NetworkConfig(cell=cell, hidden_size=4, embedding_size=3)
    data = DataConfig(layout=CorpusLayout.LINES, batch_size=4, window=5)
    config = config_of(network=network, data=data, limits=LimitsConfig(max_steps=12), seed=1)
    one, same = train(NAMES, config), train(NAMES, config)
    other = train(NAMES, replace(config, seed=2))
    assert weights_of(one) == weights_of(same)
    assert weights_of(one) != weights_of(other)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_acts_on_training_alone(dropout: float) -> None:
    """One step, its rate 0: what is validated and drawn is the network without dropout."""
    network = NetworkConfig(Cell.GRU, hidden_size=4, layers=2, embedding_size=3, dropout=dropout)
    config = config_of(
        network=network,
        limits=LimitsConfig(max_steps=1),
        optimizer=OptimizerConfig(learning_rate=1e-30),
        report=replace(QUIET, sample_tokens=20),
    )
    (progress,) = run(trainer := Trainer(TEXT[:400], config))
    plain = replace(config, network=replace(network, dropout=0.0))
    (expected,) = run(Trainer(TEXT[:400], plain))
    assert progress.valid_loss == expected.valid_loss
    assert progress.sample == expected.sample
    assert (progress.train_loss == expected.train_loss) == (dropout == 0)
    assert trainer.model.network.dropout == dropout


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_in_one_layer_has_nothing_to_act_on(layers: int) -> None:
    network = replace(TINY, layers=layers, dropout=0.25)
    limits = LimitsConfig(max_steps=3)
    trainer = Trainer(TEXT[:400], config_of(network=network, limits=limits))
    run(trainer)
    sentence = (
        "dropout 0.25 has nothing to act on: it acts between layers, and the network has one; "
        "set layers to 2 or more"
    )
    assert (sentence in trainer.started.notices) == (layers == 1)
    without = train(TEXT[:400], config_of(network=replace(network, dropout=0), limits=limits))
    assert (weights_of(trainer.model) == weights_of(without)) == (layers == 1)


@pytest.mark.parametrize("layout", CorpusLayout)
def test_threads_do_not_change_a_bit(layout: CorpusLayout) -> None:
    data = DataConfig(layout=layout, batch_size=36, window=3)
    corpus = NAMES if layout is CorpusLayout.LINES else TEXT[:900]
    config = config_of(data=data, limits=LimitsConfig(max_steps=2))
    seen = []
    for threads in (1, 2, 3):
        trainer = Trainer(corpus, config, threads)
        assert trainer.started.config.data.batch_size == 36
        losses = [(p.train_loss, p.valid_loss, p.gradient_norm) for p in trainer.run()]
        seen.append((losses, weights_of(trainer.model)))
    assert seen[0] == seen[1] == seen[2]


def test_reports_do_not_change_a_bit() -> None:
    limits = LimitsConfig(max_steps=6)
    quiet = train(TEXT[:400], config_of(limits=limits))
    report = ReportConfig(0.05, validation_interval_steps=1, sample_tokens=9)
    assert weights_of(train(TEXT[:400], config_of(limits=limits, report=report))) == weights_of(
        quiet
    )


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("cell", Cell)
def test_a_run_is_the_references_step_after_step(
    cell: Cell, layout: CorpusLayout, dropout: float
) -> None:
    """Batches, states, dropout, clipping, schedule and Adam together, in float64."""
    optimizer = OptimizerConfig(learning_rate=0.02, clip_norm=0.5, weight_decay=0.01)
    config = config_of(
        network=NetworkConfig(cell, hidden_size=3, embedding_size=2, layers=2, dropout=dropout),
        data=DataConfig(layout=layout, batch_size=3, window=4),
        optimizer=optimizer,
        limits=LimitsConfig(max_steps=14),
        seed=4,
    )
    trainer = Trainer(NAMES, config)
    run(trainer)
    corpus = read_corpus(NAMES, config.tokenizer, config.data, config.seed)
    batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
    initial = Parameters.initial(trainer.model.parameters.shape, config.seed)
    weights = {name: a.astype(np.float64) for name, a in initial.named().items()}
    wanted: reference.Parameters = {**weights}
    means = {name: np.zeros_like(a) for name, a in weights.items()}
    squares = {name: np.zeros_like(a) for name, a in weights.items()}
    hs, cs = reference.zero_states(wanted, cell, batches.batch_size)
    for step, batch in enumerate(itertools.islice(batches, 14)):
        for states in (hs, cs):
            if states is not None:
                states[:, batch.fresh] = 0
        tokens, targets = batch.tokens[: batch.steps], batch.targets[: batch.steps]
        masks = dropout_masks(dropout, config.seed, step, (1, *tokens.shape, 3))
        _, _, gradients, (hs, cs) = reference.network_loss_and_gradients(
            wanted, cell, tokens, targets, (hs, cs), masks if dropout else None
        )
        reference.clip_by_global_norm(gradients, 0.5)
        rate = 0.02 * 0.5 * (1 + math.cos(math.pi * step / 14)) * min(1, (step + 1) / 2)
        for name, gradient in gradients.items():
            reference.adam_step(
                wanted[name], gradient, means[name], squares[name], step + 1, rate,
                weight_decay=0.01,
            )  # fmt: skip
    for name, array in trainer.model.parameters.named().items():
        np.testing.assert_allclose(array, wanted[name], atol=2e-5, err_msg=name)


def names_model(kind: TokenizerKind = TokenizerKind.CHARACTERS, **network: Any) -> Model:
    config = TrainConfig(
        tokenizer=TokenizerConfig(kind=kind),
        network=NetworkConfig(**{"hidden_size": 32, "embedding_size": 8, **network}),
        data=DataConfig(layout=CorpusLayout.LINES, validation_fraction=0),
        optimizer=OptimizerConfig(learning_rate=0.01),
        report=QUIET,
    )
    return train(NAMES, config, max_steps=800)


@pytest.mark.jit
@pytest.mark.parametrize("kind", TokenizerKind)
def test_lines_are_learned_and_end(kind: TokenizerKind) -> None:
    model = names_model(kind)
    made = set()
    for seed in range(20):
        *_, last = model.stream(seed=seed, max_new_tokens=40)
        assert last.result is not None
        assert last.result.stop_reason == "end_token"
        made.add(model.generate(seed=seed, max_new_tokens=40))
    names = set(NAMES.decode().split())
    assert len(made & names) >= 3
    assert len(made - names) <= 2


@pytest.mark.jit
def test_words_and_bytes_are_learned() -> None:
    text = "one two three, four five six.\n" * 30
    for kind in (TokenizerKind.WORDS, TokenizerKind.BYTES):
        config = TrainConfig(
            tokenizer=TokenizerConfig(kind=kind),
            network=NetworkConfig(cell=Cell.GRU, hidden_size=32, embedding_size=16),
            data=DataConfig(batch_size=4, window=16),
            optimizer=OptimizerConfig(learning_rate=0.01),
            report=QUIET,
        )
        model = train(text, config, max_steps=120)
        assert model.generate("one two", temperature=0, max_new_tokens=30).startswith(
            " three, four"
        )


@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_corpus_of_one_repeated_character_trains(
    layout: CorpusLayout, kind: TokenizerKind
) -> None:
    config = config_of(
        tokenizer=TokenizerConfig(kind=kind, unknown_policy=UnknownPolicy.ERROR),
        data=DataConfig(layout=layout, batch_size=2, window=3),
        optimizer=OptimizerConfig(learning_rate=0.1),
        limits=LimitsConfig(max_steps=5),
    )
    trainer = Trainer(b" " * 50, config)
    assert math.isfinite(run(trainer)[-1].train_loss)
    text = trainer.model.generate(temperature=0, max_new_tokens=4)
    assert set(text) <= {" "}
    if layout is CorpusLayout.TEXT and kind is TokenizerKind.CHARACTERS:
        assert trainer.started.vocabulary_size == 1
        assert trainer.model.score("   ").total_log_probability == 0


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
    with pytest.raises(TrainingError, match=r"at step \d+; lower the learning rate") as caught:
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
    with pytest.raises(TrainingError, match="the loss became inf at step 1; lower the learning"):
        run(trainer)
    assert weights_of(trainer.model) == before


@pytest.mark.jit
@pytest.mark.parametrize("kind", OptimizerKind)
def test_a_weight_that_became_infinite_is_no_model(kind: OptimizerKind) -> None:
    optimizer = OptimizerConfig(kind=kind, learning_rate=1e300, weight_decay=1e300, clip_norm=0)
    config = config_of(optimizer=optimizer, limits=LimitsConfig(max_steps=1))
    trainer = Trainer(b"hello world " * 20, config)
    with pytest.raises(TrainingError, match="infinite by step 1; lower the learning rate"):
        run(trainer)


# ---------------------------------------------------------------- validation


def split(corpus: bytes, fraction: float) -> str:
    text = corpus.decode()
    return text[int(len(text) * (1 - fraction)) :]


@pytest.mark.parametrize("cell", Cell)
def test_the_loss_of_a_short_validation_part_is_its_score(cell: Cell) -> None:
    """One stream, which begins cold as a score without context does."""
    network = NetworkConfig(cell=cell, hidden_size=4, embedding_size=3)
    data = DataConfig(batch_size=3, window=5, validation_fraction=0.2)
    limits = LimitsConfig(max_steps=3)
    trainer = Trainer(TEXT[:600], config_of(network=network, data=data, limits=limits))
    last = run(trainer)[-1]
    text = split(TEXT[:600], 0.2)
    assert len(text) == trainer.started.valid_tokens == 120
    score = trainer.model.score(text)
    assert score.token_count == 119
    assert last.valid_loss == pytest.approx(score.mean_nats, rel=1e-12)


@pytest.mark.jit
def test_many_warmed_streams_score_like_one_pass() -> None:
    config = TrainConfig(
        network=NetworkConfig(hidden_size=32, embedding_size=16),
        data=DataConfig(validation_fraction=0.5, batch_size=8, window=32),
        optimizer=OptimizerConfig(learning_rate=0.01),
        report=QUIET,
    )
    rng = np.random.default_rng(0)
    words = rng.choice(["alpha", "beta", "gamma", "delta"], 1200)
    corpus = " ".join(words.tolist()).encode()
    trainer = Trainer(corpus, replace(config, limits=LimitsConfig(max_steps=80)))
    last = run(trainer)[-1]
    assert trainer.started.valid_tokens > 32 * 64, "32 streams"
    one_pass = trainer.model.score(split(corpus, 0.5)).mean_nats
    assert last.valid_loss is not None
    assert one_pass is not None
    assert last.valid_loss == pytest.approx(one_pass, rel=0.01)
    assert last.valid_loss < 1


def test_the_loss_of_lines_counts_every_end() -> None:
    data = DataConfig(layout=CorpusLayout.LINES, batch_size=3, window=5, validation_fraction=0.4)
    trainer = Trainer(NAMES, config_of(data=data, limits=LimitsConfig(max_steps=3)))
    last = run(trainer)[-1]
    corpus = read_corpus(NAMES, TokenizerConfig(), data, seed=0)
    assert corpus.valid is not None
    assert corpus.valid.offsets is not None
    items = np.split(corpus.valid.tokens, corpus.valid.offsets[1:-1])
    scores = [trainer.model.score(corpus.tokenizer.decode(item)) for item in items]
    total = sum(score.total_log_probability for score in scores)
    count = sum(score.token_count for score in scores)
    assert count == corpus.valid.predicted
    assert last.valid_loss == pytest.approx(-total / count, rel=1e-12)


def test_validation_does_not_depend_on_the_batch() -> None:
    limits = LimitsConfig(max_steps=1)
    optimizer = OptimizerConfig(kind=OptimizerKind.SGD, learning_rate=1e-30)
    losses = set()
    for size, window in ((1, 2), (3, 5), (20, 7)):
        data = DataConfig(batch_size=size, window=window)
        config = config_of(data=data, limits=limits, optimizer=optimizer)
        losses.add(run(Trainer(TEXT, config))[-1].valid_loss)
    assert len(losses) == 1


# ---------------------------------------------------------------- the notebook helper


def test_train_takes_text_bytes_files_and_corpora(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(TEXT[:300])
    config = config_of(limits=LimitsConfig(max_steps=2))
    corpus = read_corpus(path, config.tokenizer, config.data, config.seed)
    sources: list[Any] = [TEXT[:300], TEXT[:300].decode(), path, corpus]
    models = [train(source, config) for source in sources]
    assert len({weights_of(model) for model in models}) == 1
    assert {model.vocabulary_size for model in models} == {corpus.tokenizer.vocabulary_size}


def test_a_text_is_never_taken_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello").write_bytes(b"xyz" * 100)
    tokenizer = train("hello", config_of(), max_steps=1).tokenizer
    assert isinstance(tokenizer, CharacterTokenizer)
    assert tokenizer.symbols == "ehlo"


def test_train_passes_progress_and_limits_on() -> None:
    seen: list[Progress] = []
    config = config_of(limits=LimitsConfig(max_steps=90, max_time_s=1e6))
    model = train(TEXT[:300], config, on_progress=seen.append, max_steps=2)
    assert seen[-1].step == 2
    assert model.training is not None
    assert model.training.config.limits == LimitsConfig(max_steps=2, max_time_s=1e6)
    with pytest.raises(ConfigError, match=r"limits\.max_steps"):
        train("hello", max_steps=0)
    with pytest.raises(TypeError, match="steps"):
        train("hello", steps=1)


def test_half_a_surrogate_pair_is_an_error_of_the_corpus() -> None:
    with pytest.raises(EncodingError, match="at offset 2"):
        train("ab\ud800c")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "nothing")


def test_a_stop_does_not_wait_for_a_long_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "STOP_PATIENCE_S", 0.0)
    report = ReportConfig(progress_interval_s=1e6, sample_tokens=50)
    trainer = Trainer(TEXT * 20, config_of(limits=LimitsConfig(max_steps=1000), report=report))
    progress = run(trainer, lambda: steps_of(trainer) >= 2)
    last = progress[-1]
    assert (last.step, last.valid_loss, last.sample) == (2, None, None)
    assert trainer.ended_by == "stopped on request"
    record = trainer.model.training
    assert record is not None
    assert (record.steps, record.valid_loss) == (2, None)
    assert len(trainer.model.generate("", max_new_tokens=3)) == 3


def steps_of(trainer: Trainer) -> int:
    record = trainer.model.training
    assert record is not None
    return record.steps
