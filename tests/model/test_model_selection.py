"""What validations decide, alone and in a run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_runs import NAMES, QUIET, TEXT, config_of, run, weights_of

from treadle.model.config import DataConfig, LimitsConfig, OptimizerConfig, TrainConfig
from treadle.model.data.corpus import Corpus, TokenData, read_corpus
from treadle.model.enums import CorpusLayout, Keep, Schedule, Split
from treadle.model.errors import TrainingError
from treadle.model.model import Model
from treadle.model.training.model_selection import ModelSelection
from treadle.model.training.progress import Progress
from treadle.model.training.trainer import Trainer, train
from treadle.model.training_record import TrainingRecord, divergence_notices


def progress(step: int, loss: float) -> Progress:
    return Progress(step, 0, 0, 1.0, loss, 1, 1, None, 1, 1, None)


def offered(selection: ModelSelection, *losses: float) -> list[float]:
    """Offers one loss after the other; returns how far the rate was lowered after each."""
    lowered = []
    for step, loss in enumerate(losses):
        selection.offer(progress(step, loss), np.full(3, step, np.float32))
        lowered.append(selection.lowered)
    return lowered


def test_the_best_weights_are_a_copy_of_the_first_lowest() -> None:
    selection = ModelSelection(TrainConfig())
    assert (selection.best, selection.weights, selection.lowest(None)) == (None, None, None)
    weights = np.zeros(3, np.float32)
    selection.offer(progress(1, 3.0), weights)
    weights[:] = 9
    assert selection.weights is not None
    assert selection.weights.tolist() == [0, 0, 0]
    offered(selection, 2.0, 1.0, 1.0, 5.0)
    assert selection.best is not None
    assert (selection.best.step, selection.weights.tolist()) == (1, [1, 1, 1])
    assert (selection.lowest(None), selection.lowest(0.5), selection.lowest(2.0)) == (1, 0.5, 1)


def test_a_plateau_lowers_the_rate_after_its_patience_and_then_again() -> None:
    optimizer = OptimizerConfig(schedule=Schedule.PLATEAU, plateau_factor=0.25, plateau_patience=2)
    selection = ModelSelection(TrainConfig(optimizer=optimizer))
    losses = (5.0, 4.0, 4.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.5)
    expected = [1, 1, 1, 0.25, 0.25, 0.0625, 0.0625, 0.0625, 0.015625]
    assert offered(selection, *losses) == expected
    other = ModelSelection(TrainConfig(optimizer=replace(optimizer, schedule=Schedule.COSINE)))
    assert offered(other, *losses) == [1] * 9


def test_the_patience_of_early_stopping_counts_from_the_best() -> None:
    selection = ModelSelection(TrainConfig(limits=LimitsConfig(early_stopping_patience=3)))
    offered(selection, 5.0, 6.0, 6.0, 4.0, 4.0, 4.0)
    assert selection.over(6) == ""
    selection.offer(progress(6, 4.0), np.zeros(3, np.float32))
    assert selection.over(60) == (
        "early_stopping_patience reached after 60 steps: the lowest validation loss was that of "
        "step 3"
    )
    endless = ModelSelection(TrainConfig())
    offered(endless, *[1.0] * 50)
    assert endless.over(50) == ""


# ---------------------------------------------------------------- in a run


def rising(**sections: object) -> TrainConfig:
    """A run whose validation loss soon turns up: a rate too high for it, kept up."""
    optimizer = OptimizerConfig(learning_rate=50.0, schedule=Schedule.CONSTANT, warmup_steps=0)
    defaults = {
        "optimizer": optimizer,
        "limits": LimitsConfig(max_steps=40),
        "report": replace(QUIET, validation_interval_steps=2),
    }
    return config_of(**{**defaults, **sections})


def record_of(model: Model) -> TrainingRecord:
    assert model.training is not None
    return model.training


def test_the_best_model_is_that_of_the_lowest_loss_and_is_kept() -> None:
    trainer = Trainer(TEXT[:400], rising())
    assert trainer.best_model is None
    copies: dict[int, tuple[float, bytes, float]] = {}
    for p in trainer.run():
        assert p.valid_loss is not None
        copies[p.step] = (p.valid_loss, weights_of(trainer.model), p.train_loss)
        assert p.best_valid_loss == min(loss for loss, *_ in copies.values())
    step = min(copies, key=lambda step: copies[step][0])
    assert step < 40, "the loss is to rise in the end"
    best = trainer.best_model
    kept = trainer.finish()
    assert best is not None
    assert weights_of(best) == weights_of(kept) == copies[step][1] != weights_of(trainer.model)
    record = record_of(kept)
    last = record_of(trainer.model)
    assert (record.steps, record.weights_step) == (40, step)
    assert (record.valid_loss, record.train_loss) == (copies[step][0], copies[step][2])
    assert (last.steps, last.weights_step) == (40, 40)
    assert (last.valid_loss, last.train_loss) == (copies[40][0], copies[40][2])
    assert record.ended_by == last.ended_by == "max_steps reached after 40 steps"
    assert (record.tokens_seen, record.elapsed_s) == (last.tokens_seen, last.elapsed_s)


def test_what_is_kept_is_what_the_settings_say() -> None:
    best, last = (train(TEXT[:400], rising(keep=keep)) for keep in (Keep.BEST, Keep.LAST))
    assert record_of(last).weights_step == 40 > record_of(best).weights_step
    assert weights_of(last) != weights_of(best)
    nothing = train(TEXT[:400], rising(data=DataConfig(validation_fraction=0)))
    assert record_of(nothing).weights_step == 40
    assert record_of(nothing).valid_loss is None


def test_a_run_whose_loss_exploded_says_so_and_another_does_not() -> None:
    """Its numbers are finite, so it comes to an end, which is no success without a word."""
    for keep in (Keep.BEST, Keep.LAST):
        (notice,) = record_of(train(TEXT[:400], rising(keep=keep))).notices
        assert notice.startswith("the run diverged: at its end the loss was ")
        assert "lower the learning rate" in notice
    calm = rising(optimizer=OptimizerConfig())
    assert record_of(train(TEXT[:400], calm)).notices == ()
    assert divergence_notices(math.nan, 50) == divergence_notices(2 * math.log(50), 50) == ()


def test_between_validations_a_model_claims_no_loss_of_other_weights() -> None:
    trainer = Trainer(TEXT[:400], rising())
    claims: list[tuple[int, bool]] = []

    def between() -> None:
        record = record_of(trainer.model)
        claims.append((record.weights_step, record.valid_loss is not None))

    list(trainer.run(between=between))
    assert claims == [(step, step % 2 == 0) for step in range(1, 41)]


def test_a_run_without_a_better_loss_ends_early() -> None:
    limits = LimitsConfig(max_steps=1000, early_stopping_patience=4)
    trainer = Trainer(TEXT[:400], rising(limits=limits))
    seen = run(trainer)
    losses = [p.valid_loss for p in seen if p.valid_loss is not None]
    assert len(losses) == len(seen)
    best = losses.index(min(losses))
    assert len(losses) == best + 5
    assert trainer.ended_by == (
        f"early_stopping_patience reached after {seen[-1].step} steps: the lowest validation "
        f"loss was that of step {seen[best].step}"
    )
    assert weights_of(trainer.finish()) == weights_of(trainer.best_model or trainer.model)


def test_a_plateau_lowers_the_rate_of_the_next_step() -> None:
    optimizer = OptimizerConfig(
        learning_rate=0.5, schedule=Schedule.PLATEAU, warmup_steps=4, plateau_patience=1
    )
    report = replace(QUIET, validation_interval_steps=1)
    seen = run(Trainer(TEXT[:400], rising(optimizer=optimizer, report=report)))
    rate = 0.5
    best = math.inf
    for p in seen:
        assert p.learning_rate == rate * min(1.0, p.step / 5), "the warm-up holds"
        assert p.valid_loss is not None
        rate, best = (rate, p.valid_loss) if p.valid_loss < best else (rate * 0.5, best)
    assert rate <= 0.125


def test_what_waits_for_validations_says_that_there_are_none() -> None:
    optimizer = OptimizerConfig(schedule=Schedule.PLATEAU)
    limits = LimitsConfig(max_steps=3, early_stopping_patience=1)
    config = rising(optimizer=optimizer, limits=limits, data=DataConfig(validation_fraction=0))
    sentence = "{} has no effect: nothing is kept for validation; set validation_fraction above 0"
    notices = Trainer(TEXT[:400], config).started.notices
    assert sentence.format("early_stopping_patience") in notices
    assert sentence.format("the schedule plateau") in notices
    with_one = replace(config, data=DataConfig())
    assert not any("act on" in notice for notice in Trainer(TEXT[:400], with_one).started.notices)


# ---------------------------------------------------------------- the test part


def with_test_part(corpus: bytes, data: DataConfig) -> Corpus:
    """The validation part's first half for validation, the rest for the test."""
    whole = read_corpus(corpus, None, data)
    valid = whole.valid
    assert valid is not None
    if valid.offsets is None:
        half = valid.tokens.size // 2
        parts = TokenData(valid.tokens[:half]), TokenData(valid.tokens[half:])
        split = Split.TAIL
    else:
        half = valid.items // 2
        split = Split.ITEMS
        edge = int(valid.offsets[half])
        parts = (
            TokenData(valid.tokens[:edge], valid.offsets[: half + 1]),
            TokenData(valid.tokens[edge:], valid.offsets[half:] - edge),
        )
    return replace(
        whole,
        valid=parts[0],
        test=parts[1],
        valid_split=split,
        test_split=split,
        valid_characters=parts[0].tokens.size,
        test_characters=parts[1].tokens.size,
    )


@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("layout", CorpusLayout)
def test_the_test_loss_is_that_of_the_weights_that_are_kept(
    layout: CorpusLayout, keep: Keep
) -> None:
    data = DataConfig(layout, batch_size=3, window=5, validation_fraction=0.4)
    source = NAMES if layout is CorpusLayout.LINES else TEXT[:600]
    corpus = with_test_part(source, data)
    trainer = Trainer(corpus, rising(data=data, keep=keep))
    assert corpus.test is not None
    assert trainer.started.test_tokens == corpus.test.tokens.size
    assert trainer.started.test_split is trainer.started.valid_split is corpus.test_split
    seen = run(trainer)
    before = weights_of(trainer.model)
    model = trainer.finish()
    assert weights_of(trainer.model) == before
    items = [corpus.test.tokens]
    if corpus.test.offsets is not None:
        items = np.split(corpus.test.tokens, corpus.test.offsets[1:-1])
    scores = [model.score(corpus.tokenizer.decode(item)) for item in items]
    total = sum(score.total_log_probability for score in scores)
    count = sum(score.token_count for score in scores)
    record = record_of(model)
    assert record.test_loss == pytest.approx(-total / count, rel=1e-9)
    assert record.test_split is record.valid_split is corpus.test_split
    assert record_of(trainer.model).test_loss is None
    bits = seen[-1].valid_bits_per_character
    assert corpus.valid is not None
    assert seen[-1].valid_loss is not None
    ratio = corpus.valid.predicted / corpus.valid_characters
    assert bits == pytest.approx(seen[-1].valid_loss * ratio / math.log(2), rel=1e-12)
    assert seen[-1].valid_perplexity == pytest.approx(math.exp(seen[-1].valid_loss), rel=1e-12)


def test_a_run_in_haste_leaves_the_test_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.model.training.evaluation.STOP_PATIENCE_S", 0.0)
    corpus = with_test_part(TEXT[:600], DataConfig(validation_fraction=0.4))
    trainer = Trainer(corpus, rising())
    run(trainer)
    assert record_of(trainer.finish(lambda: True)).test_loss is None
    assert record_of(trainer.finish()).test_loss is not None


def test_weights_that_are_no_numbers_are_never_stored() -> None:
    trainer = Trainer(TEXT[:400], rising(keep=Keep.LAST))
    run(trainer)
    trainer._state.parameters.stacks.by[0] = math.nan
    assert np.isfinite(trainer.finish().parameters.flat).all(), "the best ones instead"
    nothing = Trainer(TEXT[:400], rising(data=DataConfig(validation_fraction=0)))
    nothing._state.parameters.stacks.by[0] = math.nan
    with pytest.raises(TrainingError, match="no finite weights to store; lower the learning rate"):
        nothing.finish()


def test_a_record_keeps_what_it_reports() -> None:
    corpus = with_test_part(TEXT[:600], DataConfig(validation_fraction=0.4))
    record = replace(record_of(train(corpus, rising())), baseline_loss=1.25)
    assert record.test_loss is not None
    assert TrainingRecord.from_json(record.to_json()) == record
    old = record.to_json()
    for name in ("weights_step", "valid_split", "test_loss", "test_split", "baseline_loss"):
        del old[name]
    again = TrainingRecord.from_json(old)
    assert (again.weights_step, again.test_loss, again.valid_split) == (again.steps, None, None)
