"""What AUTO picks, from facts that are given; and once from this machine's own."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import read_corpus
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, Precision, Preset, Schedule
from treadle.model.network.shape import Shape
from treadle.model.training.auto import preset
from treadle.model.training.auto.forecast import duration
from treadle.model.training.auto.preset import PresetInputs, budget, pick, pick_for
from treadle.model.training.auto.throughput import Throughput

SPEEDS = (Throughput(Shape(Cell.LSTM, 65, 64, 384, 1), Precision.BF16, 81_000.0),)
HOURS = 3600.0
FIVE = (4, 0, 4)
NAMES = (228_000, 32_033, 28)
PLAYS = (1_003_853, 0, 65)
LARGE = (18 * 10**7, 0, 200)
WORDS = (10**7, 0, 10_000)
"""Tokens, items and vocabulary: five characters, names, tiny Shakespeare, 200 MB, words."""
SMALL = [FIVE, (40, 3, 9), (900, 0, 40), (18_000, 900, 60)]


def facts(
    corpus: tuple[int, int, int], seconds: float | None = 180.0, **changes: Any
) -> PresetInputs:
    return replace(PresetInputs(*corpus, seconds, SPEEDS, has_bf16=True, threads=2), **changes)


def asked(limits: LimitsConfig | None = None, **settings: Any) -> TrainConfig:
    return TrainConfig(preset=Preset.AUTO, limits=limits or LimitsConfig(), **settings)


def picked(
    corpus: tuple[int, int, int], seconds: float = 180.0, **changes: Any
) -> tuple[TrainConfig, tuple[str, ...]]:
    return pick_for(asked(LimitsConfig(max_time_s=seconds)), facts(corpus, seconds, **changes))[:2]


def units(corpus: tuple[int, int, int], seconds: float, **changes: Any) -> int:
    network = picked(corpus, seconds, **changes)[0].network
    return network.hidden_size * network.layers


def test_tiny_shakespeare_in_three_minutes() -> None:
    config, notices = picked(PLAYS)
    assert config.network == NetworkConfig(
        Cell.LSTM, hidden_size=512, layers=1, embedding_size=64, output_dropout=0.3
    )
    assert (config.data.batch_size, config.data.window) == (32, 32)
    assert config.optimizer.precision is Precision.BF16
    assert config.optimizer.schedule is Schedule.COSINE
    assert (config.optimizer.beta2, config.optimizer.final_rate) == (0.95, 0.2)
    assert config.optimizer.averaging == 8
    assert "a mean of the weights" in notices[2]
    assert "learning rate 0.008, cosine schedule down to 0.2 of it, beta2 0.95" in notices[2]
    assert "(averaging 8)" in notices[2]
    assert config.limits == LimitsConfig(max_time_s=180)
    assert config.preset is None
    assert "hidden size 512" in notices[0]
    assert "8.0 million tokens in 180 s" in notices[0]
    assert "read about 8 times" in notices[1]
    assert any("bf16" in notice for notice in notices)


def test_more_time_means_no_smaller_network_and_no_less_dropout() -> None:
    times = (1, 10, 60, 180, 600, HOURS, 10 * HOURS, 1000 * HOURS)
    for corpus in (FIVE, NAMES, PLAYS, LARGE):
        sizes = [units(corpus, seconds) for seconds in times]
        assert sizes == sorted(sizes)
    assert units(PLAYS, 1) < units(PLAYS, 60) < units(PLAYS, 180)
    assert units(LARGE, 10 * HOURS) > units(PLAYS, 10 * HOURS) > units(NAMES, 10 * HOURS)
    assert units(NAMES, 10 * HOURS) > units(FIVE, 10 * HOURS)
    drops = [picked(NAMES, seconds)[0].network.output_dropout for seconds in times]
    assert drops[0] < drops[-1]


def test_a_slower_machine_gets_a_smaller_network() -> None:
    slow = tuple(replace(speed, tokens_per_second=2_000.0) for speed in SPEEDS)
    assert units(PLAYS, 180, throughput=slow) < units(PLAYS, 180)
    config, _ = picked(PLAYS, has_bf16=False)
    assert config.optimizer.precision is Precision.FP32
    assert config.network.hidden_size < 512


@pytest.mark.parametrize("corpus", [*SMALL, NAMES, LARGE, WORDS])
@pytest.mark.parametrize("seconds", [0.01, 1, 60, 10 * HOURS])
def test_every_pick_is_legal_and_says_why(corpus: tuple[int, int, int], seconds: float) -> None:
    config, notices = picked(corpus, seconds)
    assert len(notices) >= 3
    for notice in notices:
        assert notice.startswith("auto: ")
        assert "nan" not in notice
    assert config.data.batch_size <= 256
    assert config.network.embedding_size <= config.network.hidden_size
    rows = config.data.batch_size
    tokens = corpus[0]
    assert rows <= 8 or rows * config.data.window <= max(tokens / 20, 16 * 64) or corpus[1]


def test_a_tiny_corpus_is_not_read_for_ten_hours() -> None:
    for corpus in (*SMALL, PLAYS):
        config, notices = picked(corpus, 10 * HOURS)
        assert config.limits.max_epochs is not None
        assert config.limits.max_epochs >= preset.MAX_PASSES
        assert config.limits.early_stopping_patience == preset.PATIENCE
        assert config.network.output_dropout == 0.4
        assert any("passes" in notice and "memorize" in notice for notice in notices)
        assert config.limits.max_time_s == 10 * HOURS
    assert picked(FIVE, 60)[0].limits.max_epochs == preset.MIN_STEPS
    assert picked(LARGE, 10 * HOURS)[0].limits == LimitsConfig(max_time_s=10 * HOURS)


def test_lines_have_rows_enough_for_their_length() -> None:
    short, _ = picked(NAMES)
    long, _ = picked((10_000_000, 50_000, 100))
    assert short.data.batch_size == 144, "of seven tokens each"
    assert long.data.batch_size == 16, "of two hundred"


def test_short_lines_are_read_more_slowly() -> None:
    """Names were read 26 times in a minute in which a text would have been read 43 times."""
    _, lines = picked(NAMES, 60)
    _, text = picked((NAMES[0], 0, NAMES[2]), 60)
    passes = [float(notices[1].split("about ")[1].split()[0]) for notices in (lines, text)]
    assert passes[0] == pytest.approx(0.6 * passes[1], rel=0.03)


def batch_of(corpus: tuple[int, int, int], tokens: int, threads: int) -> tuple[int, int]:
    limits = LimitsConfig(max_tokens=tokens)
    data = pick_for(asked(limits), facts(corpus, None, threads=threads))[0].data
    return data.batch_size, data.window


def test_a_batch_is_taken_where_there_are_steps_enough_for_it() -> None:
    for tokens in (10**5, 10**6, 3 * 10**6, 10**7, 10**8, 10**9, 10**10):
        rows, steps = batch_of(LARGE, tokens, threads=1)
        assert rows * steps == 256 or tokens / (rows * steps) >= 4_000
    sizes = [math.prod(batch_of(LARGE, 10**power, 1)) for power in range(5, 12)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (256, 128 * 128)
    # A novel of 3 MB read once took 32 x 64 and lost 0.08 bits per character by it.
    assert batch_of(LARGE, 3 * 10**6, threads=2) == (32, 16)
    assert batch_of(LARGE, 8 * 10**6, threads=2) == (32, 32)
    assert batch_of(LARGE, 10**5, threads=8) == (16, 16), "few steps for many threads"
    assert math.prod(batch_of(NAMES, 4 * 10**5, 2)) < math.prod(batch_of(NAMES, 10**7, 2))


def test_more_time_than_the_corpus_is_worth_feeds_a_larger_network() -> None:
    def core(seconds: float) -> float:
        network = picked(PLAYS, seconds)[0].network
        return 4 * network.hidden_size * (network.embedding_size + network.hidden_size + 2)

    assert core(600) <= 2 * PLAYS[0] < core(10 * HOURS) <= 4 * PLAYS[0]


def test_the_budget_is_judged() -> None:
    short, right, long = (picked(PLAYS, seconds)[1][-1] for seconds in (60, 400, 10 * HOURS))
    assert "time is the limit of this run: about" in short
    assert "would be right for this corpus" in short
    assert "time is right for this corpus" in right
    assert "the corpus, not time, is the limit of this run: about" in long


@pytest.mark.parametrize("corpus", [*SMALL, NAMES, PLAYS, LARGE])
def test_what_is_said_of_the_time_agrees_with_the_plan(corpus: tuple[int, int, int]) -> None:
    for seconds in (1, 60, 600, 10 * HOURS):
        config = asked(LimitsConfig(max_time_s=seconds))
        settings, notices, forecast = pick_for(config, facts(corpus, seconds))
        assert forecast is not None
        passes = settings.limits.max_epochs
        last = notices[-1]
        if passes is not None:
            assert "would be right" not in last, "the plan ends the run before its time"
            assert forecast.planned_s <= seconds
            if forecast.planned_s < 0.7 * seconds:
                count = f"about {forecast.passes:,.0f} passes over it take"
                assert last.endswith(f"{count} {duration(forecast.planned_s)}")
        elif "corpus, not time" in last:
            assert "passes over it fill the time" in last
            assert forecast.planned_s == pytest.approx(seconds)


def test_nothing_is_said_of_the_time_where_another_given_limit_ends_the_run() -> None:
    limits = LimitsConfig(max_time_s=HOURS, max_tokens=10**6)
    _, notices, _ = pick_for(asked(limits), facts(PLAYS, HOURS))
    assert not any("this corpus" in notice or "limit of this run" in notice for notice in notices)


def test_what_is_said_of_the_recipe_is_what_runs() -> None:
    plain = asked(
        LimitsConfig(max_time_s=60),
        optimizer=OptimizerConfig(OptimizerKind.SGD, schedule=Schedule.CONSTANT),
        network=NetworkConfig(layers=2),
        given=("optimizer.kind", "optimizer.schedule", "network.layers"),
    )
    _, notices, _ = pick_for(plain, facts(PLAYS, 60))
    assert "dropout 0.3 between layers" in notices[1]
    assert "constant schedule, the last weights: about" in notices[2]
    assert "beta2" not in notices[2]


def test_many_threads_have_rows_to_work_on() -> None:
    assert picked(LARGE, 600, threads=8)[0].data.batch_size == 128
    assert picked(LARGE, 600, threads=2)[0].data.batch_size < 128
    # Lines of 100 characters: 1,024 tokens of a batch would be ten of them.
    lines = (10**7, 10**5, 65)
    assert batch_of(lines, 10**8, threads=1)[0] == 16
    assert batch_of(lines, 10**8, threads=8)[0] == 128
    assert batch_of(lines, 10**7, threads=8)[0] == 16, "few steps for many threads"


def test_without_a_limit_it_takes_a_minute_and_says_so() -> None:
    config, notices, _ = pick_for(asked(), facts(PLAYS, budget(asked())))
    assert config.limits.max_time_s == preset.DEFAULT_SECONDS == 60
    assert "auto: no limit given: training for 60 s" in notices


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (LimitsConfig(), 60),
        (LimitsConfig(max_time_s=5), 5),
        (LimitsConfig(max_wall_time_s=100), 95),
        (LimitsConfig(max_time_s=50, max_wall_time_s=100), 50),
        (LimitsConfig(max_time_s=5, max_steps=7), 5),
        (LimitsConfig(max_steps=7), None),
        (LimitsConfig(max_epochs=1), None),
        (LimitsConfig(max_tokens=10), None),
        (LimitsConfig(early_stopping_patience=3, max_memory_bytes=10**9), 60),
    ],
)
def test_the_budget(limits: LimitsConfig, seconds: float | None) -> None:
    assert budget(asked(limits)) == seconds


@pytest.mark.parametrize(
    "limits",
    [
        LimitsConfig(max_steps=20_000),
        LimitsConfig(max_epochs=90.5),
        LimitsConfig(max_tokens=10**9),
        LimitsConfig(max_wall_time_s=7, early_stopping_patience=9),
    ],
)
def test_limits_that_are_given_stay(limits: LimitsConfig) -> None:
    config = pick_for(asked(limits), facts(NAMES, budget(asked(limits))))[0]
    for name in ("max_steps", "max_epochs", "max_tokens", "max_time_s", "max_wall_time_s"):
        assert getattr(config.limits, name) == getattr(limits, name)
    if limits.early_stopping_patience:
        assert config.limits.early_stopping_patience == limits.early_stopping_patience


def test_passes_that_are_asked_for_size_the_network() -> None:
    few, many = (
        pick_for(asked(LimitsConfig(max_epochs=passes)), facts(PLAYS, None))[0]
        for passes in (1, 15)
    )
    assert few.network.hidden_size < many.network.hidden_size
    assert few.network.output_dropout < many.network.output_dropout


GIVEN: dict[str, dict[str, Any]] = {
    "network": {
        "cell": Cell.GRU,
        "hidden_size": 77,
        "layers": 3,
        "embedding_size": 9,
        "dropout": 0.11,
        "output_dropout": 0.12,
    },
    "data": {"batch_size": 5, "window": 11},
    "optimizer": {
        "learning_rate": 0.0123,
        "weight_decay": 0.0321,
        "schedule": Schedule.CONSTANT,
        "beta2": 0.9,
        "final_rate": 0.1,
        "averaging": 1.5,
        "precision": Precision.FP32,
    },
    "limits": {"early_stopping_patience": 0, "max_epochs": None},
}
KINDS: dict[str, type] = {
    "network": NetworkConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "limits": LimitsConfig,
}


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section, settings in GIVEN.items() for name in settings],
)
def test_what_is_given_is_never_touched(section: str, name: str) -> None:
    value = GIVEN[section][name]
    base = asked(LimitsConfig(max_time_s=10 * HOURS))
    given = replace(getattr(base, section), **{name: value})
    config = replace(base, given=(f"{section}.{name}",), **{section: given})
    for corpus in (NAMES, PLAYS, LARGE):
        settings = pick_for(config, facts(corpus, 10 * HOURS))[0]
        assert getattr(getattr(settings, section), name) == value


def test_all_of_it_given_leaves_the_rest_alone() -> None:
    sections = {kind: KINDS[kind](**settings) for kind, settings in GIVEN.items()}
    given = tuple(f"{kind}.{name}" for kind, settings in GIVEN.items() for name in settings)
    config = TrainConfig(preset=Preset.AUTO, given=given, **sections)
    settings, notices, _ = pick_for(config, facts(PLAYS, 60))
    assert settings == replace(config, preset=None, limits=replace(config.limits, max_time_s=60.0))
    assert "GRU of 3 layers, hidden size 77" in notices[0]


def test_other_settings_are_kept() -> None:
    config = asked(
        LimitsConfig(max_time_s=60),
        seed=9,
        optimizer=OptimizerConfig(OptimizerKind.SGD, clip_norm=3.0, accumulation_steps=2),
        data=DataConfig(CorpusLayout.TEXT, 0.2),
    )
    settings = pick_for(config, facts(PLAYS, 60))[0]
    assert (settings.seed, settings.data.validation_fraction) == (9, 0.2)
    assert settings.optimizer.kind is OptimizerKind.SGD
    assert settings.optimizer.rate == OptimizerConfig(OptimizerKind.SGD).rate, "not Adam's rates"
    assert (settings.optimizer.clip_norm, settings.optimizer.accumulation_steps) == (3.0, 2)


@pytest.mark.parametrize("size", [None, "hidden_size", "embedding_size"])
def test_tied_weights_get_one_size(size: str | None) -> None:
    network = NetworkConfig(hidden_size=96, embedding_size=80, tied_weights=True)
    given = ("network.tied_weights", *([f"network.{size}"] if size else []))
    for seconds in (1.0, 180.0):
        config = asked(LimitsConfig(max_time_s=seconds), network=network, given=given)
        picked_network = pick_for(config, facts(PLAYS, seconds))[0].network
        assert picked_network.hidden_size == picked_network.embedding_size
        assert picked_network.tied_weights
        if size:
            assert picked_network.hidden_size == getattr(network, size)


def test_only_the_preset_picks() -> None:
    corpus = read_corpus(b"hello " * 30)
    config = TrainConfig(network=NetworkConfig(hidden_size=7))
    assert pick(config, corpus, 2) == (config, (), None)


def test_tables_go_down_to_everything() -> None:
    for (upper, *_), (lower, *_) in itertools.pairwise(preset._REGULARIZATION):
        assert upper > lower
    assert preset._REGULARIZATION[-1][0] == 0
    assert preset._BATCHES[-1][2] == 0
    shapes = [Shape(Cell.LSTM, 65, 64, units, layers) for units, layers, _ in preset._LADDER]
    counts = [shape.parameter_count for shape in shapes]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.jit
def test_this_machine_is_measured_and_used() -> None:
    corpus = read_corpus(b"to be or not to be, that is the question\n" * 50)
    config, notices, forecast = pick(asked(LimitsConfig(max_time_s=1.0)), corpus, 2)
    assert config.preset is None
    assert config.limits.max_time_s == 1
    assert len(notices) >= 3
    assert config.optimizer.precision is Precision.FP32 or not BF16_MISSING
    assert forecast is not None
    assert forecast.speed > 0
    assert pick(config, corpus, 2) == (config, (), None)
