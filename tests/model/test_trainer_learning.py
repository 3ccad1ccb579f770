from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_networks import dropout_masks
from small_runs import (
    NAMES,
    QUIET,
    TEXT,
    TINY,
    config_of,
    run,
    weights_of,
)

from treadle.kernels import reference
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.batching import make_batches
from treadle.model.data.corpus import read_corpus
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, TokenizerKind, UnknownPolicy
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.training.trainer import Trainer, train

# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("cell", Cell)
def test_the_seed_decides_every_bit(cell: Cell) -> None:
    network = NetworkConfig(cell=cell, hidden_size=4, embedding_size=3)
    data = DataConfig(layout=CorpusLayout.LINES, batch_size=4, window=5)
    config = config_of(network=network, data=data, limits=LimitsConfig(max_steps=12), seed=1)
    one = train(NAMES, config)
    same = train(NAMES, config)
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
        "dropout 0.25 has no effect: it acts between layers, and the network has one; "
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
    expected: reference.Parameters = {**weights}
    means = {name: np.zeros_like(a) for name, a in weights.items()}
    squares = {name: np.zeros_like(a) for name, a in weights.items()}
    hs, cs = reference.zero_states(expected, cell, batches.batch_size)
    for step, batch in enumerate(itertools.islice(batches, 14)):
        for states in (hs, cs):
            if states is not None:
                states[:, batch.fresh] = 0
        tokens = batch.tokens[: batch.steps]
        targets = batch.targets[: batch.steps]
        masks = dropout_masks(dropout, config.seed, step, (1, *tokens.shape, 3))
        _, _, gradients, (hs, cs) = reference.network_loss_and_gradients(
            expected, cell, tokens, targets, (hs, cs), masks if dropout else None
        )
        reference.clip_by_global_norm(gradients, 0.5)
        rate = 0.02 * 0.5 * (1 + math.cos(math.pi * step / 14)) * min(1, (step + 1) / 2)
        for name, gradient in gradients.items():
            reference.adam_step(
                expected[name],
                gradient,
                means[name],
                squares[name],
                step + 1,
                rate,
                weight_decay=0.01,
            )
    for name, array in trainer.model.parameters.named().items():
        np.testing.assert_allclose(array, expected[name], atol=2e-5, err_msg=name)


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
    spaced = kind in (TokenizerKind.EVENTS, TokenizerKind.WHITESPACE)
    symbol = "a " if spaced else " "
    trainer = Trainer(symbol.encode() * 50, config)
    assert math.isfinite(run(trainer)[-1].train_loss)
    text = trainer.model.generate(temperature=0, max_new_tokens=4)
    assert set(text) <= set(symbol)
    if layout is CorpusLayout.TEXT and kind is TokenizerKind.CHARACTERS:
        assert trainer.started.vocabulary_size == 1
        assert trainer.model.score("   ").total_log_probability == 0


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
