"""A setting that has no effect because of another one is noticed when a run starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_runs import NAMES, TEXT, config_of

from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import CorpusFile, read_corpus
from treadle.model.enums import (
    CorpusFormat,
    CorpusLayout,
    CorpusRole,
    MissingPolicy,
    OptimizerKind,
    Schedule,
    TokenizerKind,
)
from treadle.model.training.trainer import Trainer
from treadle.model.unused_settings import unused_settings

ONE_STEP = LimitsConfig(max_steps=1)


def unused(config: TrainConfig, corpus: Any = TEXT[:400]) -> list[str]:
    notices = Trainer(corpus, config).started.notices
    return [notice for notice in notices if " has no effect: " in notice]


@pytest.mark.parametrize("kind", OptimizerKind)
def test_the_decays_of_adam(kind: OptimizerKind) -> None:
    optimizer = OptimizerConfig(kind, beta1=0.8, beta2=0.95)
    found = unused(config_of(optimizer=optimizer, limits=ONE_STEP))
    sentence = "{} has no effect: the optimizer '{}' does not use it; set optimizer.kind to 'adam'"
    expected = [sentence.format(each, kind) for each in ("beta1 0.8", "beta2 0.95")]
    assert found == ([] if kind is OptimizerKind.ADAM else expected)


@pytest.mark.parametrize("schedule", Schedule)
def test_the_settings_of_a_schedule(schedule: Schedule) -> None:
    optimizer = OptimizerConfig(
        schedule=schedule, final_rate=0.2, plateau_factor=0.1, plateau_patience=3
    )
    sentence = "{} has no effect: the schedule '{}' does not use it; set schedule to '{}'"
    users = {
        "final_rate 0.2": Schedule.COSINE,
        "plateau_factor 0.1": Schedule.PLATEAU,
        "plateau_patience 3": Schedule.PLATEAU,
    }
    assert unused(config_of(optimizer=optimizer, limits=ONE_STEP)) == [
        sentence.format(setting, schedule, user)
        for setting, user in users.items()
        if user is not schedule
    ]


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        (TokenizerKind.BYTES, ["max_vocabulary_size 300", "min_frequency 2", "lower_case True"]),
        (TokenizerKind.CHARACTERS, ["max_vocabulary_size 300"]),
        (TokenizerKind.SUBWORDS, ["min_frequency 2"]),
        (TokenizerKind.WORDS, []),
    ],
)
def test_the_settings_of_a_vocabulary(kind: TokenizerKind, ignored: list[str]) -> None:
    if kind is TokenizerKind.SUBWORDS:
        pytest.importorskip("tokenizers")
    tokenizer = TokenizerConfig(kind, 300, min_frequency=2, lower_case=True)
    assert unused(config_of(tokenizer=tokenizer, limits=ONE_STEP)) == [
        f"{setting} has no effect: the tokenizer '{kind}' does not use it; leave it out"
        for setting in ignored
    ]


def test_the_settings_of_rows() -> None:
    rows = DataConfig(
        validation_fraction=0, column="name", missing=MissingPolicy.SKIP, encoding="ascii"
    )
    sentence = "{} has no effect: the format 'plain' has no columns; set format to 'jsonl' or 'csv'"
    plain = config_of(data=rows, limits=ONE_STEP)
    found = [sentence.format(setting) for setting in ("column 'name'", "missing 'skip'")]
    assert unused(plain) == found
    csv = replace(plain, data=replace(rows, format=CorpusFormat.CSV))
    assert unused(csv, b"name\n" + NAMES) == []
    as_bytes = replace(plain, tokenizer=TokenizerConfig(TokenizerKind.BYTES))
    assert unused(as_bytes) == [
        *found,
        "encoding 'ascii' has no effect: the tokenizer 'bytes' decodes no text; leave it out",
    ]


@pytest.mark.parametrize(("fraction", "is_noticed"), [(0.25, True), (0.1, False), (0.0, False)])
def test_shares_of_parts_that_have_files(fraction: float, is_noticed: bool) -> None:
    data = DataConfig(validation_fraction=fraction, test_fraction=0.3)
    config = config_of(data=data, limits=ONE_STEP)
    files = [CorpusFile(TEXT[:400]), CorpusFile(TEXT[400:600], role=CorpusRole.VALID)]
    sentence = "{} has no effect: the corpus has files for that part; leave it out"
    assert unused(config, files) == [sentence.format("validation_fraction 0.25")] * is_noticed
    files.append(CorpusFile(TEXT[600:800], role=CorpusRole.TEST))
    assert unused(config, files)[-1] == sentence.format("test_fraction 0.3")


def test_the_settings_of_reading_where_the_corpus_is_already_read() -> None:
    tokenizer = TokenizerConfig(TokenizerKind.WORDS, lower_case=True)
    data = DataConfig(CorpusLayout.LINES, batch_size=3, window=5)
    config = config_of(tokenizer=tokenizer, data=data, limits=ONE_STEP)
    sentence = "{} has no effect: the corpus is already read, with {}; read it with this setting"
    assert unused(config, read_corpus(TEXT[:400])) == [
        sentence.format("kind 'words'", "'characters'"),
        sentence.format("lower_case True", "False"),
        sentence.format("layout 'lines'", "'text'"),
    ]
    assert unused(config, read_corpus(NAMES, tokenizer, data)) == unused(config, NAMES) == []


def test_what_a_preset_chooses_was_not_given() -> None:
    corpus = read_corpus(TEXT[:400])
    given = TrainConfig(optimizer=OptimizerConfig(schedule=Schedule.CONSTANT))
    used = replace(given, optimizer=replace(given.optimizer, final_rate=0.2))
    assert unused_settings(given, used, corpus) == ()
    assert len(unused_settings(used, used, corpus)) == 1
