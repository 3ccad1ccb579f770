"""Runs that begin from a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_runs import NAMES, QUIET, TEXT, config_of, run, weights_of

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import Corpus, read_corpus
from treadle.model.enums import Cell, CorpusLayout, Schedule, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.model import Model
from treadle.model.training.fine_tuning import take_over
from treadle.model.training.trainer import Trainer, train

NETWORK = NetworkConfig(Cell.GRU, hidden_size=6, layers=2, embedding_size=4, dropout=0.25)
FREE = TrainConfig(
    data=DataConfig(batch_size=3, window=5), report=QUIET, limits=LimitsConfig(max_steps=8)
)
"""Settings that say nothing of the network."""


@pytest.fixture(scope="module")
def model() -> Model:
    limits = LimitsConfig(max_steps=60)
    optimizer = OptimizerConfig(learning_rate=0.03)
    return train(TEXT[:600], config_of(network=NETWORK, limits=limits, optimizer=optimizer))


def corpus() -> Corpus:
    """Another text of the same vocabulary."""
    text = TEXT[:600].decode()
    return read_corpus(" ".join(reversed(text.split(" "))).encode())


def test_a_run_begins_with_the_models_weights_and_a_fresh_optimizer(model: Model) -> None:
    trainer = Trainer(corpus(), FREE, init_from=model)
    assert weights_of(trainer.model) == weights_of(model)
    assert trainer.started.config.network == model.network
    assert trainer.steps == 0
    assert trainer._state.optimizer.means is not None
    assert not trainer._state.optimizer.means.flat.any()
    before = weights_of(model)
    run(trainer)
    assert weights_of(model) == before != weights_of(trainer.model), "no memory is shared"


def test_what_was_learned_helps(model: Model) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-6, schedule=Schedule.CONSTANT)
    config = replace(FREE, optimizer=optimizer)
    tuned = Trainer(corpus(), config, init_from=model)
    cold = Trainer(corpus(), replace(config, network=NETWORK))
    first = run(tuned)[0].valid_loss
    other = run(cold)[0].valid_loss
    assert first is not None
    assert other is not None
    assert first < other - 0.2


def test_a_run_from_a_model_continues_without_it(model: Model, tmp_path: Any) -> None:
    whole = Trainer(corpus(), FREE, init_from=model)
    run(whole)
    part = Trainer(corpus(), FREE, init_from=model)
    list(part.run(between=lambda: part.steps == 3))
    part.save_state(tmp_path / "run")
    rest = Trainer(corpus(), part.started.config)
    assert rest.restore_state(tmp_path / "run")
    run(rest)
    assert weights_of(rest.model) == weights_of(whole.model)


def test_dropout_may_differ(model: Model) -> None:
    def dropout(**settings: Any) -> float:
        config = replace(FREE, **settings)
        return Trainer(corpus(), config, init_from=model).started.config.network.dropout

    assert dropout() == 0.25
    assert dropout(network=replace(NETWORK, dropout=0.5)) == 0.5
    assert dropout(given=("network.dropout",)) == 0


@pytest.mark.parametrize(
    ("network", "given", "field"),
    [
        (NetworkConfig(cell=Cell.RNN), (), "network.cell"),
        (NetworkConfig(hidden_size=7), (), "network.hidden_size"),
        (NetworkConfig(layers=3), (), "network.layers"),
        (NetworkConfig(embedding_size=0), (), "network.embedding_size"),
        (NetworkConfig(), ("network.hidden_size",), "network.hidden_size"),
        (NetworkConfig(), ("network.cell",), "network.cell"),
    ],
)
def test_another_network_is_refused_by_name(
    network: NetworkConfig, given: tuple[str, ...], field: str, model: Model
) -> None:
    with pytest.raises(ConfigError, match=r"of the base model is .*: leave") as caught:
        Trainer(corpus(), replace(FREE, network=network, given=given), init_from=model)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is ")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data": DataConfig(layout=CorpusLayout.LINES)}, "data.layout"),
        ({"tokenizer": TokenizerConfig(kind=TokenizerKind.WORDS)}, "tokenizer.kind"),
        ({"tokenizer": TokenizerConfig(lower_case=True)}, "tokenizer.lower_case"),
        ({"tokenizer": TokenizerConfig(min_frequency=2)}, "tokenizer.min_frequency"),
    ],
)
def test_another_way_of_reading_is_refused_by_name(
    change: dict[str, Any], field: str, model: Model
) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(corpus(), replace(FREE, **change), init_from=model)
    assert caught.value.field == field


def test_another_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="read it with the model's tokenizer") as caught:
        Trainer(read_corpus(TEXT[:600] + b"!"), FREE, init_from=model)
    assert caught.value.field == "tokenizer"
    unknown = TokenizerConfig(unknown_policy=UnknownPolicy.UNKNOWN)
    with pytest.raises(ConfigError, match=r"a vocabulary of 29 tokens .* model, of 28"):
        Trainer(read_corpus(TEXT[:600], unknown), FREE, init_from=model)
    for other in (
        read_corpus(TEXT[:600], TokenizerConfig(kind=TokenizerKind.BYTES)),
        read_corpus(NAMES, None, DataConfig(layout=CorpusLayout.LINES)),
    ):
        with pytest.raises(ConfigError):
            Trainer(other, FREE, init_from=model)


def test_the_tokenizer_is_the_models_and_the_policy_may_be_ones_own(model: Model) -> None:
    assert take_over(FREE, model).tokenizer == model.tokenizer.config
    skip = TokenizerConfig(unknown_policy=UnknownPolicy.SKIP)
    taken = take_over(replace(FREE, tokenizer=skip), model)
    assert taken.tokenizer == replace(model.tokenizer.config, unknown_policy=UnknownPolicy.SKIP)
    assert set(taken.given) >= {"network.cell", "network.hidden_size"}
    lines = config_of(data=DataConfig(CorpusLayout.LINES), limits=LimitsConfig(max_steps=1))
    assert take_over(FREE, train(NAMES, lines)).data.layout is CorpusLayout.LINES
