"""The gradient of several batches as if they were one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_runs import NAMES, TEXT, config_of, run, weights_of

from treadle.model.config import DataConfig, LimitsConfig, NetworkConfig, OptimizerConfig
from treadle.model.data.batching import Batches, make_batches
from treadle.model.data.corpus import read_corpus
from treadle.model.enums import Cell, CorpusLayout
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.training.steps.accumulation import Accumulation
from treadle.model.training.trainer import Trainer
from treadle.model.training_memory import training_bytes

NETWORK = NetworkConfig(Cell.GRU, hidden_size=5, layers=2, embedding_size=3, dropout=0.4)


def prepared(layout: CorpusLayout, threads: int = 1) -> tuple[Engine, Batches]:
    data = DataConfig(layout, batch_size=18, window=3, validation_fraction=0)
    corpus = read_corpus(NAMES if layout is CorpusLayout.LINES else TEXT[:400], None, data)
    batches = make_batches(corpus.train, data, corpus.tokenizer, seed=1)
    parameters = Parameters.initial(Shape.of(NETWORK, corpus.tokenizer.vocabulary_size), seed=2)
    pool = Pool(threads)
    return Engine(parameters, batches.batch_size, batches.window, pool, 0.4, seed=3), batches


@pytest.mark.parametrize("layout", CorpusLayout)
def test_the_gradient_is_that_of_the_mean_over_all_targets(layout: CorpusLayout) -> None:
    engine, batches = prepared(layout)
    losses = []
    counts = []
    gradients = []
    for number, batch in enumerate(itertools.islice(batches, 12)):
        tokens = batch.tokens[: batch.steps]
        targets = batch.targets[: batch.steps]
        loss, count = engine.loss_and_gradient(tokens, targets, batch.fresh, number)
        losses.append(loss)
        counts.append(count)
        gradients.append(engine.gradient.flat.astype(np.float64) * count)
    if layout is CorpusLayout.LINES:
        assert len(set(counts)) > 1, "batches are to weigh differently"
    accumulation = Accumulation(*prepared(layout), 4)
    for step in range(3):
        loss, count = accumulation.run(step)
        part = slice(4 * step, 4 * step + 4)
        assert (loss, count) == (sum(losses[part]), sum(counts[part]))
        expected = sum(gradients[part]) / count
        np.testing.assert_allclose(accumulation.gradient.flat, expected, atol=1e-7)


def test_one_batch_a_step_is_the_engines_own_gradient() -> None:
    engine, batches = prepared(CorpusLayout.TEXT)
    assert Accumulation(engine, batches, 1).gradient is engine.gradient


def test_no_two_batches_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batches = prepared(CorpusLayout.TEXT)
    seen: list[int] = []
    compute = engine.loss_and_gradient

    def watched(*arrays: Any) -> tuple[float, int]:
        seen.append(arrays[3])
        return compute(*arrays)

    monkeypatch.setattr(engine, "loss_and_gradient", watched)
    accumulation = Accumulation(engine, batches, 3)
    for step in range(4):
        accumulation.run(step)
    assert seen == list(range(12))


def test_threads_do_not_change_a_bit() -> None:
    made = set()
    for threads in (1, 2, 3):
        accumulation = Accumulation(*prepared(CorpusLayout.LINES, threads), 3)
        accumulation.run(0)
        made.add(accumulation.gradient.flat.tobytes())
    assert len(made) == 1


def test_a_step_reads_so_many_batches_and_the_limits_count_them() -> None:
    data = DataConfig(batch_size=1, window=2, validation_fraction=0)
    optimizer = OptimizerConfig(accumulation_steps=4)
    config = config_of(data=data, optimizer=optimizer, limits=LimitsConfig(max_epochs=1))
    trainer = Trainer(b"ab" * 100 + b"a", config)  # 100 batches an epoch
    assert trainer.started.total_steps == 25
    last = run(trainer)[-1]
    assert (last.step, last.epoch, last.tokens_seen) == (25, 1, 200)
    free = Trainer(b"ab" * 200 + b"a", replace(config, limits=LimitsConfig()))
    assert free.started.total_steps == 500, "ten passes"


def test_four_small_batches_step_like_one_of_their_size() -> None:
    """Lines that fit the window: no state is carried, and the same lines are in both."""
    lines = b"".join(bytes([65 + n, 97 + n]) + b"\n" for n in range(16))

    def weights(batch_size: int, together: int) -> np.ndarray[Any, Any]:
        config = config_of(
            data=DataConfig(CorpusLayout.LINES, 0, batch_size, window=3),
            optimizer=OptimizerConfig(accumulation_steps=together, learning_rate=0.01),
            limits=LimitsConfig(max_steps=5),
        )
        trainer = Trainer(lines, config)
        assert Counter(p.step for p in run(trainer)) == Counter(range(1, 6))
        return np.frombuffer(weights_of(trainer.model), np.float32)

    np.testing.assert_allclose(weights(4, 4), weights(16, 1), atol=2e-5)


def test_the_sum_takes_its_memory() -> None:
    shape = Shape.of(NETWORK, 26)
    sizes = [
        training_bytes(shape, 4, 4, OptimizerConfig().kind, accumulates=more)
        for more in (False, True)
    ]
    assert sizes[1] - sizes[0] == 4 * shape.parameter_count
