from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import (
    NAMES,
    QUIET,
    TEXT,
    config_of,
    hundred_batches,
    run,
    stop_after,
    weights_of,
)

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import read_corpus
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, CorpusError, EncodingError
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.tokenizers.characters import CharacterTokenizer
from treadle.model.training import evaluation
from treadle.model.training.optimizer import learning_rate
from treadle.model.training.progress import Progress
from treadle.model.training.trainer import Trainer, train

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


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


def test_started_reports_every_default_and_every_size() -> None:
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


def test_threads_that_a_batch_is_too_small_for_are_noticed() -> None:
    def noticed(rows: int, threads: int) -> tuple[str, ...]:
        config = config_of(data=DataConfig(batch_size=rows, window=4))
        notices = Trainer(TEXT, config, threads).started.notices
        return tuple(notice for notice in notices if "threads busy" in notice)

    assert noticed(32, 3) == (
        "a batch of 32 rows keeps 2 of 3 threads busy, with 16 rows each: batches of 48 rows would "
        "use them all",
    )
    assert noticed(33, 3) == noticed(16, 1) == ()
    assert noticed(32, 1000) == (), "the corpus has no rows for so many threads"


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
    ("limits", "steps", "name"),
    [
        (LimitsConfig(max_tokens=9), 5, "max_tokens"),  # 2 a step
        (LimitsConfig(max_tokens=10), 5, "max_tokens"),
        (LimitsConfig(max_tokens=10, max_steps=4), 4, "max_steps"),
        (LimitsConfig(max_tokens=8, max_steps=5), 4, "max_tokens"),
        (LimitsConfig(max_tokens=1), 1, "max_tokens"),
        (LimitsConfig(max_wall_time_s=1e-9), 1, "max_wall_time_s"),
        (LimitsConfig(max_wall_time_s=1e-9, max_tokens=2), 1, "max_tokens"),
    ],
)
def test_tokens_and_the_clock_end_a_run_too(limits: LimitsConfig, steps: int, name: str) -> None:
    trainer = hundred_batches(limits=limits)
    progress = run(trainer)
    assert progress[-1].step == steps
    assert progress[-1].time_left_s == 0
    assert trainer.ended_by == f"{name} reached after {steps} steps"
    assert trainer.started.total_steps == (limits.max_steps or 0)


@pytest.mark.usefixtures("clock")
def test_the_clock_counts_what_training_does_not() -> None:
    """A look at the clock takes a second: two a step and a validation, one at the start."""
    report = replace(QUIET, validation_interval_steps=2)
    config = config_of(limits=LimitsConfig(max_wall_time_s=10), report=report)
    trainer = Trainer(TEXT[:400], config)
    assert [p.step for p in run(trainer)] == [2, 4]
    assert trainer.ended_by == "max_wall_time_s reached after 4 steps"
    record = trainer.model.training
    assert record is not None
    assert record.elapsed_s == 6
    rare = replace(QUIET, validation_interval_steps=1000)
    timed = hundred_batches(limits=LimitsConfig(max_wall_time_s=10), report=rare)
    assert [p.elapsed_s for p in run(timed)] == [5]


def test_a_schedule_ends_with_the_tokens() -> None:
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=0)
    report = replace(QUIET, validation_interval_steps=1)
    limits = LimitsConfig(max_tokens=16)
    trainer = hundred_batches(optimizer=optimizer, report=report, limits=limits)
    expected = [learning_rate(optimizer, step, step / 8, 0) for step in range(8)]
    assert [p.learning_rate for p in run(trainer)] == expected
    assert hundred_batches(limits=LimitsConfig(max_tokens=180)).started.config.optimizer == replace(
        OptimizerConfig(), learning_rate=0.003, warmup_steps=9
    )


def test_limits_that_end_no_run_leave_the_default_one() -> None:
    limits = LimitsConfig(early_stopping_patience=5, max_memory_bytes=2**40)
    trainer = hundred_batches(limits=limits)
    assert trainer.started.config.limits == replace(limits, max_steps=1000)
    assert "no limit given: training for 1,000 steps" in trainer.started.notices


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


# ---------------------------------------------------------------- leaving and threads


def test_between_is_called_after_every_step_and_what_it_led_to() -> None:
    report = replace(QUIET, validation_interval_steps=2)
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=4), report=report))
    seen: list[str] = []

    def between() -> None:
        seen.append(f"step {trainer.steps}")

    seen.extend(f"progress {progress.step}" for progress in trainer.run(between=between))
    assert seen == ["step 1", "progress 2", "step 2", "step 3", "progress 4", "step 4"]


def test_a_run_that_is_left_is_neither_examined_nor_ended() -> None:
    trainer = Trainer(TEXT[:400], config_of(limits=LimitsConfig(max_steps=30)))
    before = set(threading.enumerate())
    trainer.threads = 2
    assert list(trainer.run(between=lambda: trainer.steps == 2)) == []
    assert (trainer.steps, trainer.ended_by) == (2, "")
    assert set(threading.enumerate()) == before
    assert [p.step for p in trainer.run(stop_after(1))] == [3]
    assert trainer.ended_by == "stopped on request"


def test_threads_may_change_between_steps() -> None:
    data = DataConfig(batch_size=40, window=5)
    config = config_of(data=data, limits=LimitsConfig(max_steps=9))
    alone = Trainer(TEXT, config)
    run(alone)
    trainer = Trainer(TEXT, config, threads=2)
    counts = []
    others = len(threading.enumerate())

    def between() -> None:
        counts.append(len(threading.enumerate()) - others + 1)
        trainer.threads = (2, 1, 3)[trainer.steps % 3]

    list(trainer.run(between=between))
    assert counts == [2, 1, 3] * 3
    assert weights_of(trainer.model) == weights_of(alone.model)


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
    monkeypatch.setattr(evaluation, "STOP_PATIENCE_S", 0.0)
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
