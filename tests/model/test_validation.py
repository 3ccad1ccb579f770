"""What validations read and how they are left; what counts against the limits of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import NAMES, QUIET, TEXT, config_of, run, weights_of

from treadle.model.config import DataConfig, LimitsConfig, TokenizerConfig, TrainConfig
from treadle.model.data.corpus import TokenData, read_corpus
from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import CorpusLayout, CorpusRole, Keep, Precision
from treadle.model.training import evaluation, validation_plan
from treadle.model.training.evaluation import Loss
from treadle.model.training.metrics import Metrics
from treadle.model.training.progress import Progress, Validation
from treadle.model.training.trainer import Trainer
from treadle.model.training.validation_plan import (
    FINAL_SHARE,
    LEAST_TOKENS,
    ValidationPlan,
    reserve,
    sample_tokens,
)

# ---------------------------------------------------------------- what a sample is


def text_of(count: int) -> TokenData:
    return TokenData(np.arange(count, dtype=np.uint16))


def predicted(batches: ValidationBatches) -> list[int]:
    """The targets of all batches, in the order of reading."""
    return [int(t) for batch in batches for t in batch.targets[batch.targets >= 0].tolist()]


TOKENIZER = read_corpus(NAMES, TokenizerConfig(), DataConfig(CorpusLayout.LINES)).tokenizer


@pytest.mark.parametrize("at_most", [1, 7, 100, 499, 998])
def test_a_sample_of_a_text_is_the_beginning_of_every_row(at_most: int) -> None:
    whole = ValidationBatches(text_of(1000), TOKENIZER, 5, 20, 20)
    sample = ValidationBatches(text_of(1000), TOKENIZER, 5, 20, 20, at_most)
    seen = predicted(sample)
    assert len(seen) == len(set(seen)) == sample.tokens
    assert at_most <= sample.tokens < at_most + 5
    assert predicted(sample) == seen, "the same each time"
    per_row = -(-at_most // 5)
    starts = np.arange(5) * 999 // 5 + 1
    assert set(seen) == {int(start) + n for start in starts for n in range(per_row)}
    assert set(seen) <= set(predicted(whole))
    for one, other in zip(sample, whole, strict=False):
        both = (one.targets >= 0) & (other.targets >= 0)
        assert (one.targets[both] == other.targets[both]).all()
        assert (one.tokens[both] == other.tokens[both]).all()


@pytest.mark.parametrize("at_most", [999, 1000, 10**9])
def test_a_sample_of_everything_is_the_whole_part(at_most: int) -> None:
    whole = ValidationBatches(text_of(1000), TOKENIZER, 5, 20, 20)
    sample = ValidationBatches(text_of(1000), TOKENIZER, 5, 20, 20, at_most)
    assert whole.tokens == sample.tokens == 999
    for one, other in itertools.zip_longest(whole, sample):
        assert (one.tokens == other.tokens).all()
        assert (one.targets == other.targets).all()


def test_a_sample_of_items_has_short_and_long_ones() -> None:
    lengths = np.random.default_rng(3).permutation(400) % 40 + 1
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    data = TokenData(np.arange(int(offsets[-1]), dtype=np.uint16), offsets)
    whole = ValidationBatches(data, TOKENIZER, 8, 16, 0)
    sample = ValidationBatches(data, TOKENIZER, 8, 16, 0, data.predicted // 5)
    assert whole.tokens == data.predicted
    seen = predicted(sample)
    assert len(seen) == sample.tokens
    assert 0.9 < sample.tokens / (data.predicted / 5) < 1.3
    inside = np.array([token for token in seen if token != TOKENIZER.end])
    items = np.searchsorted(offsets, np.unique(inside), side="right") - 1
    chosen = np.unique(items)
    mean = lengths[chosen].mean()
    assert abs(mean - lengths.mean()) < 2
    assert lengths[chosen].min() < 6
    assert lengths[chosen].max() > 35
    assert ValidationBatches(data, TOKENIZER, 8, 16, 0, data.predicted).tokens == data.predicted


# ---------------------------------------------------------------- how large it is


def test_validations_take_a_tenth_of_the_work() -> None:
    """Ten of them, at a third of the work a token, or 0.6 where training is in BF16."""
    config = TrainConfig()
    assert sample_tokens(config, 100, 10**6, 0.1) == 300_000
    bf16 = replace(config, optimizer=replace(config.optimizer, precision=Precision.BF16))
    assert sample_tokens(bf16, 100, 10**6, 0.1) == pytest.approx(166_666, abs=1)
    often = replace(config, report=replace(QUIET, validation_interval_steps=5))
    assert sample_tokens(often, 100, 10**6, 0.1) == 15_000
    assert sample_tokens(config, 1, 100, 0.5) == LEAST_TOKENS


def few(monkeypatch: pytest.MonkeyPatch, tokens: int = 64) -> None:
    """Lets a sample be as small as a tiny run needs it."""
    monkeypatch.setattr(validation_plan, "LEAST_TOKENS", tokens)


def sampled(**sections: object) -> TrainConfig:
    """A run of 12 steps that validates every 3, with half of the text to validate."""
    defaults = {
        "data": DataConfig(batch_size=3, window=5, validation_fraction=0.5),
        "limits": LimitsConfig(max_steps=12),
        "report": replace(QUIET, validation_interval_steps=3),
    }
    return config_of(**{**defaults, **sections})


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("keep", Keep)
def test_a_run_samples_on_the_way_and_reads_all_at_the_end(
    keep: Keep, layout: CorpusLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(layout, batch_size=3, window=5, validation_fraction=0.5)
    corpus = NAMES * 4 if layout is CorpusLayout.LINES else TEXT
    config = sampled(keep=keep, data=data)
    everything = Trainer(corpus, config)
    losses = [p.valid_loss for p in run(everything)]
    few(monkeypatch)
    trainer = Trainer(corpus, config)
    seen = run(trainer)
    assert [p.step for p in seen] == [3, 6, 9, 12]
    part = trainer._state.corpus.valid
    assert part is not None
    (tokens,) = {p.valid_tokens for p in seen}
    assert 64 <= tokens < part.predicted / 2
    assert [p.valid_loss for p in seen] != losses
    record = trainer.finish().training
    whole = everything.finish().training
    assert record is not None
    assert whole is not None
    assert record.valid_tokens == whole.valid_tokens == part.predicted
    if record.weights_step == whole.weights_step:
        assert record.valid_loss == whole.valid_loss, "bit for bit"
    assert record.valid_loss == losses[record.weights_step // 3 - 1]
    assert weights_of(trainer.model) == weights_of(everything.model)
    again = Trainer(corpus, config)
    assert [p.valid_loss for p in run(again)] == [p.valid_loss for p in seen]


# ---------------------------------------------------------------- leaving one


class LeftError(Exception):
    """What a caller leaves a validation with."""


def leave_at(
    trainer: Trainer, step: int, batch: int, *, final: bool = False
) -> evaluation.ValidationHook:
    """Leaves the validation of a step before one of its batches, counted from 0."""
    seen = itertools.count()

    def during(at: Validation) -> None:
        if trainer.steps == step and at.is_final is final and next(seen) == batch:
            raise LeftError

    return during


Row = tuple[int, float, float | None, int]


def row(p: Progress) -> Row:
    return p.step, p.train_loss, p.valid_loss, p.valid_tokens


@pytest.mark.parametrize(("step", "batch"), [(3, 0), (3, 1), (6, 1), (12, 0), (12, 1)])
def test_a_validation_left_in_the_middle_is_made_again_to_the_same_bits(
    step: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    whole = Trainer(TEXT, sampled())
    expected = [row(p) for p in run(whole)]
    first = Trainer(TEXT, sampled())
    seen: list[Row] = []
    leaving = first.run(during=leave_at(first, step, batch))
    with pytest.raises(LeftError):
        seen.extend(row(p) for p in leaving)
    assert first.steps == step
    first.save_state(tmp_path / "run")
    second = Trainer(TEXT, sampled())
    assert second.restore_state(tmp_path / "run")
    for trainer in (first, second):  # the one that was left, and one from its state
        rest = [row(p) for p in run(trainer)]
        assert seen + rest == expected
        one = trainer.finish()
        other = whole.finish()
        assert weights_of(one) == weights_of(other)
        assert one.training is not None
        assert other.training is not None
        assert one.training.valid_loss == other.training.valid_loss


def test_the_pass_at_the_end_may_be_left_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    trainer = Trainer(TEXT, sampled())
    run(trainer)
    trainer.save_state(tmp_path / "run")
    with pytest.raises(LeftError):
        trainer.finish(during=leave_at(trainer, 12, 2, final=True))
    again = Trainer(TEXT, sampled())
    again.restore_state(tmp_path / "run")
    assert run(again) == []
    assert again.ended_by == "max_steps reached after 12 steps"
    one = again.finish().training
    other = trainer.finish().training
    assert one is not None
    assert other is not None
    assert one.valid_loss == other.valid_loss
    assert one.valid_tokens == other.valid_tokens == 899


def stop_when(
    reached: Callable[[], bool],
) -> tuple[Callable[[], bool], evaluation.ValidationHook, list[int]]:
    """A stop that comes in the middle of a validation, and the batches that are read after it."""
    stopped = [False]
    after: list[int] = []

    def during(at: Validation) -> None:
        if stopped[0]:
            after.append(at.tokens_done)
        stopped[0] = stopped[0] or (reached() and at.tokens_done > 0)

    return lambda: stopped[0], during, after


def test_a_stop_in_a_validation_is_heeded_before_the_next_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    monkeypatch.setattr(evaluation, "STOP_PATIENCE_S", -1.0)
    trainer = Trainer(TEXT, sampled())
    stop, during, after = stop_when(lambda: trainer.steps == 6)
    seen = list(trainer.run(stop, during=during))
    assert [(p.step, p.valid_loss is None) for p in seen] == [(3, False), (6, True)]
    assert trainer.ended_by == "stopped on request"
    record = trainer.finish(stop, during).training
    assert record is not None
    assert (record.weights_step, record.valid_tokens) == (3, seen[0].valid_tokens)
    assert record.valid_loss == seen[0].valid_loss, "of the sample: there was no time for more"
    assert len(after) <= 2, "one question for each pass that was not made"


def test_a_validation_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    data = DataConfig(batch_size=3, window=5, validation_fraction=0.4, test_fraction=0.2)
    trainer = Trainer(TEXT, sampled(data=data))
    reports: list[Validation] = []
    seen = list(trainer.run(during=reports.append))
    trainer.finish(during=reports.append)
    ends = [-1, *(n for n, at in enumerate(reports[1:]) if not at.tokens_done), len(reports) - 1]
    passes = [reports[a + 1 : b + 1] for a, b in itertools.pairwise(ends)]
    assert [p[0].is_final for p in passes] == [False] * 4 + [True] * 2
    assert [p[0].role for p in passes] == [CorpusRole.VALID] * 5 + [CorpusRole.TEST]
    for one in passes:
        done = [at.tokens_done for at in one]
        assert done[0] == 0
        assert done == sorted(done)
        assert {at.tokens_total for at in one} == {one[0].tokens_total}
        assert done[-1] < one[0].tokens_total
    assert passes[0][0].tokens_total == seen[0].valid_tokens
    corpus = trainer._state.corpus
    assert corpus.valid is not None
    assert corpus.test is not None
    assert passes[4][0].tokens_total == corpus.valid.predicted
    assert passes[5][0].tokens_total == corpus.test.predicted


# ---------------------------------------------------------------- a limit of time


def test_what_is_kept_back_for_the_end() -> None:
    assert reserve(100, 4) == (4, 1)
    seconds, share = reserve(100, 40)
    assert (seconds, share) == (100 * FINAL_SHARE, 0.25)


def timed(seconds: float, **limits: float) -> TrainConfig:
    return sampled(limits=LimitsConfig(max_time_s=seconds, **limits))  # type: ignore[arg-type]


@pytest.mark.usefixtures("clock")
def test_time_for_the_end_is_kept_back_and_what_it_is_too_short_for_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    trainer = Trainer(TEXT, timed(100))
    state = trainer._state
    steps = [p.step for p in trainer.run(between=lambda: trainer.steps == 3)]
    assert steps == [3]
    state.metrics.validation_plan = replace(state.validation_plan(), reserve_s=None)
    state.reserve_time(Loss(1.0, 70, seconds_per_token=0.05))  # 45 s for all of it
    plan = state.validation_plan()
    assert plan == ValidationPlan(plan.sample_tokens, 10.0, plan.final_share)
    assert plan.final_share == pytest.approx(10 / 44.95)
    state.reserve_time(Loss(1.0, 70, seconds_per_token=9.0))
    assert state.validation_plan() == plan, "decided once"
    last = run(trainer)[-1]
    assert 90 <= last.elapsed_s <= 93, "the rest of the hundred is for the pass at the end"
    assert trainer.ended_by.startswith("max_time_s reached")
    record = trainer.finish().training
    assert record is not None
    assert record.valid_tokens == pytest.approx(899 * 10 / 44.95, abs=32)
    assert Metrics.from_json(state.metrics.to_json()) == state.metrics


def test_nothing_is_kept_back_where_validations_read_all_or_no_time_ends_the_run() -> None:
    for config in (timed(0.05), sampled()):
        trainer = Trainer(TEXT, config)
        run(trainer)
        plan = trainer._state.validation_plan()
        assert (plan.reserve_s, plan.final_share) == (0.0, 1.0)
