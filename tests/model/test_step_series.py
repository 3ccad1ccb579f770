"""Several training steps in one call are those steps one by one, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import NAMES, QUIET, TEXT, config_of, stop_after, weights_of

from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.structs import Parameters
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.model.data.batching import Batches, TextBatches, make_batches
from treadle.model.data.corpus import TokenData
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, Precision, Schedule
from treadle.model.errors import TrainingError
from treadle.model.training.steps import series as series_module
from treadle.model.training.steps.series import StepSeries
from treadle.model.training.trainer import Trainer

STEPS = 30

Outcome = tuple[bytes, bytes, bytes, list[tuple[int, float, float | None, float]]]


def config(
    cell: Cell = Cell.LSTM,
    layout: CorpusLayout = CorpusLayout.TEXT,
    rows: int = 18,
    embedding: int = 2,
    **optimizer: Any,
) -> TrainConfig:
    """Two shards, the second of two rows, dropout everywhere, a validation every 7 steps."""
    return config_of(
        network=NetworkConfig(
            cell, 3, 2, embedding_size=embedding, dropout=0.3, output_dropout=0.2
        ),
        data=DataConfig(layout, batch_size=rows, window=3, validation_fraction=0.2),
        optimizer=OptimizerConfig(**{"learning_rate": 0.05, **optimizer}),
        limits=LimitsConfig(max_steps=STEPS),
        report=replace(QUIET, validation_interval_steps=7),
        seed=5,
    )


def corpus_of(settings: TrainConfig) -> bytes:
    return NAMES if settings.data.layout is CorpusLayout.LINES else TEXT[:420]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of steps of every call."""
    seen: list[int] = []
    run = StepSeries.run

    def counted(self: StepSeries, batches: Any, counts: Any, rates: Any) -> Any:
        seen.append(len(rates))
        return run(self, batches, counts, rates)

    monkeypatch.setattr(StepSeries, "run", counted)
    return seen


def outcome(settings: TrainConfig, threads: int = 1, *, in_series: bool) -> Outcome:
    trainer = Trainer(corpus_of(settings), settings, threads)
    seen = [
        (p.step, p.train_loss, p.valid_loss, p.gradient_norm)
        for p in trainer.run(in_series=in_series)
    ]
    assert trainer.steps == STEPS
    best = trainer.best_model
    assert best is not None
    carried = trainer._state.carried
    assert carried is not None
    states = b"".join(part.tobytes() for part in carried)
    return weights_of(trainer.model), weights_of(best), states, seen


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("cell", Cell)
def test_a_series_has_the_bits_of_its_steps(
    cell: Cell, layout: CorpusLayout, threads: int, calls: list[int]
) -> None:
    settings = config(cell, layout)
    alone = outcome(settings, in_series=False)
    assert calls == []
    assert outcome(settings, threads, in_series=True) == alone
    assert sum(calls) == STEPS
    assert max(calls) > 1


@pytest.mark.jit
@pytest.mark.parametrize("rows", [1, 5, 32])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": OptimizerKind.SGD, "learning_rate": 0.5, "clip_norm": 0.01},
        {"kind": OptimizerKind.ADAGRAD, "clip_norm": 0.0},
        {"kind": OptimizerKind.ADAM, "weight_decay": 0.1, "clip_value": 0.01},
        {"schedule": Schedule.PLATEAU, "averaging": 2.5, "plateau_patience": 1},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_every_optimizer_takes_series(
    optimizer: dict[str, Any], rows: int, calls: list[int]
) -> None:
    settings = config(Cell.RNN, rows=rows, embedding=0, **optimizer)
    alone = outcome(settings, in_series=False)
    assert outcome(settings, 2, in_series=True) == alone
    assert max(calls) > 1


@pytest.mark.jit
def test_limits_of_tokens_and_epochs_end_at_the_same_step() -> None:
    for limits in (LimitsConfig(max_tokens=777), LimitsConfig(max_epochs=1.5)):
        settings = replace(config(), limits=limits)
        one, several = (Trainer(corpus_of(settings), settings) for _ in range(2))
        steps = [p.step for p in one.run()]
        assert [p.step for p in several.run(in_series=True)] == steps
        assert weights_of(several.model) == weights_of(one.model)
        assert several.ended_by == one.ended_by


@pytest.mark.jit
@pytest.mark.parametrize(
    "change",
    [
        {"rows": 33},
        {"accumulation_steps": 2},
        pytest.param(
            {"precision": Precision.BF16},
            marks=pytest.mark.skipif(bool(BF16_MISSING), reason="needs AVX512_BF16"),
        ),
    ],
    ids=str,
)
def test_other_runs_take_one_step_a_call(change: dict[str, Any], calls: list[int]) -> None:
    settings = config(**change)
    assert outcome(settings, in_series=True) == outcome(settings, in_series=False)
    assert calls == []


@pytest.mark.jit
def test_a_run_is_left_between_two_calls(calls: list[int]) -> None:
    settings = config()
    trainer = Trainer(corpus_of(settings), settings)
    for _ in trainer.run(stop_after(2), in_series=True):
        pass
    assert trainer.steps == sum(calls) < STEPS
    rest = [p.step for p in trainer.run(in_series=True)]
    assert rest[-1] == STEPS
    assert weights_of(trainer.model) == outcome(settings, in_series=False)[0]


@pytest.mark.jit
def test_a_series_is_interrupted_before_it_begins(calls: list[int]) -> None:
    settings = config()
    asked = [0]

    def interrupted() -> bool:
        asked[0] += 1
        return asked[0] % 3 != 0

    trainer = Trainer(corpus_of(settings), settings)
    list(trainer.run(interrupted=interrupted, in_series=True))
    assert asked[0] >= 3 * len(calls) > 0
    assert weights_of(trainer.model) == outcome(settings, in_series=False)[0]


def with_large_biases(stacks: Parameters) -> None:
    stacks.by[::2] = 3e38
    stacks.by[1::2] = -3e38


def with_large_output_weights(stacks: Parameters) -> None:
    """Makes gradients of states overflow, and logits not."""
    for stack in stacks:
        stack *= np.float32(0.01)
    stacks.Wh[:] = 4
    stacks.Wy[:, ::2] = 3.3e38
    stacks.Wy[:, 1::2] = -3.3e38


@pytest.mark.jit
@pytest.mark.parametrize(
    ("rate", "prepare", "what"),
    [
        (0.05, with_large_biases, "the loss became inf at step 1;"),
        (3e38, lambda stacks: None, "the loss became inf at step [3-9];"),
        (0.05, with_large_output_weights, "the gradient's norm became (inf|nan) at step [1-9];"),
    ],
)
def test_what_is_not_finite_ends_the_run_in_the_same_words(
    rate: float, prepare: Callable[[Parameters], None], what: str
) -> None:
    settings = config(Cell.RNN, rows=1, kind=OptimizerKind.SGD, learning_rate=rate, clip_norm=0.0)
    settings = replace(settings, report=replace(settings.report, validation_interval_steps=100))
    words = []
    for in_series in (False, True):
        trainer = Trainer(corpus_of(settings), settings)
        prepare(trainer._state.parameters.stacks)
        with pytest.raises(TrainingError, match=what) as caught:
            list(trainer.run(in_series=in_series))
        words.append((str(caught.value), trainer.steps, trainer._state.parameters.flat.tobytes()))
    assert words[0] == words[1]


@pytest.mark.parametrize("most", ["MOST_WORK", "MOST_TOKENS"])
def test_calls_are_shorter_for_larger_networks_and_batches(
    most: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config()
    monkeypatch.setattr(series_module, most, 1)
    trainer = Trainer(corpus_of(settings), settings)
    seen = [p.step for p in trainer.run(in_series=True)]
    assert seen[-1] == STEPS
    assert calls == [1] * STEPS


@pytest.mark.jit
def test_a_series_continues_from_a_checkpoint(tmp_path: Path) -> None:
    settings = config()
    whole = outcome(settings, in_series=True)
    first = Trainer(corpus_of(settings), settings)
    for _ in first.run(in_series=True, between=lambda: first.steps >= STEPS // 2):
        pass
    assert 0 < first.steps < STEPS
    first.save_state(tmp_path / "state")
    second = Trainer(corpus_of(settings), settings)
    assert second.restore_state(tmp_path / "state")
    list(second.run(in_series=True))
    assert second.steps == STEPS
    assert weights_of(second.model) == whole[0]


def batches_of(layout: CorpusLayout) -> Iterator[Batches]:
    """Two sequences of the same batches."""
    for _ in range(2):
        settings = config(layout=layout)
        corpus = Trainer(corpus_of(settings), settings)._state.corpus
        yield make_batches(corpus.train, settings.data, corpus.tokenizer, settings.seed)


@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_series_of_batches_is_the_batches(layout: CorpusLayout) -> None:
    one, several = batches_of(layout)
    for _ in range(9):
        series = several.series(5)
        first = 0
        for n, length in enumerate(series.lengths.tolist()):
            batch = next(one)
            assert batch.steps == length
            part = slice(first, first + length)
            same(series.tokens[part], batch.tokens[:length])
            same(series.targets[part], batch.targets[:length])
            same(series.fresh[n], batch.fresh)
            first += length
        assert first == len(series.tokens)
        assert several.position == one.position


def test_a_series_of_a_text_ends_with_its_epoch() -> None:
    batches = TextBatches(TokenData(np.arange(22, dtype=np.int32)), 3, 3)
    assert [batches.series(2).lengths.tolist() for _ in range(3)] == [[2, 2], [3], [2, 2]]


def same(a: NDArray[Any], b: NDArray[Any]) -> None:
    assert a.dtype == b.dtype
    assert a.tobytes() == b.tobytes()
