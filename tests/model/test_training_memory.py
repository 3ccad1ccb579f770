"""The estimated memory of a run is near the measured one, and too large a run is refused."""

from __future__ import annotations

import gc
import mmap
import tracemalloc
from pathlib import Path

import pytest
from small_models import model_of

from treadle.kernels import structs
from treadle.kernels.dropout import keep_bytes
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.data.corpus import CorpusFile
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, TokenizerKind
from treadle.model.errors import ConfigError, CorpusError, TrainingError
from treadle.model.network.memory_estimate import FLOAT_BYTES, scorer_bytes
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import allocate_workspace
from treadle.model.online.config import LearningConfig
from treadle.model.online.learner import Learner
from treadle.model.online.memory_estimate import learner_bytes, snapshot_bytes
from treadle.model.scoring.text_scorer import TextScorer
from treadle.model.training.trainer import Trainer
from treadle.model.training_memory import check_memory, resident_bytes, training_bytes

CORPUS = b"abcdefghijklmnopqrstuvwxyz" * 400


@pytest.mark.jit
@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("kind", OptimizerKind)
@pytest.mark.parametrize(("hidden", "layers", "rows"), [(160, 2, 16), (64, 1, 96)])
def test_a_run_takes_about_what_was_estimated(
    cell: Cell, kind: OptimizerKind, hidden: int, layers: int, rows: int
) -> None:
    config = TrainConfig(
        network=NetworkConfig(cell=cell, hidden_size=hidden, layers=layers),
        data=DataConfig(batch_size=rows, window=32),
        optimizer=OptimizerConfig(kind=kind),
        limits=LimitsConfig(max_steps=2),
        report=ReportConfig(sample_tokens=2),
    )
    list(Trainer(CORPUS, config).run())  # loads the kernels, which is memory too
    tracemalloc.start()
    trainer = Trainer(CORPUS, config)
    tracemalloc.reset_peak()  # what the n-gram took is given back by now
    list(trainer.run())
    assert trainer.model.parameter_count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    estimate = training_bytes(Shape.of(config.network, 26), rows, 32, kind)
    assert 0.6 * peak < estimate < 1.7 * peak


@pytest.mark.jit
@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("embedding", "layers"), [(8, 1), (0, 2)])
def test_a_learner_takes_about_what_was_estimated(
    cell: Cell, optimizer: str, embedding: int, layers: int
) -> None:
    model = model_of(cell=cell, hidden_size=256, embedding_size=embedding, layers=layers)
    config = LearningConfig.from_json({"optimizer": optimizer, "window": 32})
    shape = model.parameters.shape
    text = "abc cab" * 20
    _ = model.weights
    list(Learner(model, config).feed(text))  # loads the kernels, which is memory too
    tracemalloc.start()
    learner = Learner(model, config)
    list(learner.feed(text))
    taken = tracemalloc.get_traced_memory()[0]
    learner.begin_unit()
    list(learner.feed(text))
    with_unit = tracemalloc.get_traced_memory()[0]
    learner.snapshot()
    with_both = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    estimate = learner_bytes(shape, config)
    assert 0.9 * taken < estimate < 1.2 * taken
    assert 0.9 * with_unit < learner_bytes(shape, config, units=True) < 1.2 * with_unit
    assert 0.9 * with_both < learner_bytes(shape, config, True) + snapshot_bytes(shape, config)


@pytest.mark.jit
@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 4), ("adam", 6)])
def test_a_learner_keeps_nothing_twice(optimizer: str, copies: int) -> None:
    """Weights, their gradient and two packed forms of them, and what the rule keeps."""
    model = model_of(hidden_size=384, embedding_size=384, layers=2)
    config = LearningConfig.from_json({"optimizer": optimizer})
    tracemalloc.start()
    learner = Learner(model, config)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert learner.updates == 0
    assert taken < (copies + 0.3) * 4 * model.parameter_count


@pytest.mark.parametrize("cell", Cell)
def test_a_scorer_takes_about_what_was_estimated(cell: Cell) -> None:
    model = model_of(cell=cell, hidden_size=256, layers=3)
    _ = model.weights
    TextScorer(model.trained)
    tracemalloc.start()
    scorer = TextScorer(model.trained)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert scorer is not None
    assert 0.9 * taken < scorer_bytes(model.parameters.shape) < 1.2 * taken


def test_dropout_takes_its_memory() -> None:
    """In addition to the rest: a copy of one layer's states, and a bit a unit."""
    for cell in Cell:
        shape = Shape(cell, V=26, E=8, H=64, L=3)
        estimates = [
            training_bytes(shape, 40, 32, OptimizerKind.SGD, drops) for drops in (False, True)
        ]
        workspaces = [
            allocate_workspace(shape, 32, 40, backward=True, drops=drops) for drops in (False, True)
        ]
        taken = [work.keep.nbytes + work.dropped.nbytes for work in workspaces]
        assert taken[0] == 0
        assert estimates[1] - estimates[0] == taken[1] > 0


def test_a_mean_of_the_weights_takes_their_memory() -> None:
    shape = Shape(Cell.GRU, V=26, E=8, H=64, L=2)
    estimates = [
        training_bytes(shape, 40, 32, OptimizerKind.SGD, averages=averages)
        for averages in (False, True)
    ]
    assert estimates[1] - estimates[0] == FLOAT_BYTES * shape.parameter_count


def test_dropout_before_the_output_takes_its_memory() -> None:
    """A bit a unit and token, and a copy of the states behind each shard's block of logits."""
    shape = Shape(Cell.GRU, V=26, E=8, H=64, L=2)
    estimates = [
        training_bytes(shape, 40, 32, OptimizerKind.SGD, drops_top=top) for top in (False, True)
    ]
    shards = 3
    logit_rows = structs.LOGIT_ROWS
    assert estimates[1] - estimates[0] == 40 * 32 * keep_bytes(64) + shards * logit_rows * 64 * 4
    config = TrainConfig(network=NetworkConfig(output_dropout=0.5))
    plain = Shape.of(config.network, 65)
    limit = training_bytes(plain, config.data.batch_size, config.data.window, OptimizerKind.ADAM)
    check_memory(TrainConfig(), 65, limit)
    with pytest.raises(ConfigError, match="training would take"):
        check_memory(config, 65, limit)


def test_what_cannot_fit_is_refused_by_the_setting_to_lower() -> None:
    huge = TrainConfig(network=NetworkConfig(hidden_size=4096, layers=8))
    with pytest.raises(ConfigError, match="GiB") as caught:
        check_memory(huge, 1, 2**32)
    assert caught.value.field == "network.hidden_size"
    wide = TrainConfig(data=DataConfig(batch_size=4096, window=4096))
    with pytest.raises(ConfigError, match=r"lower data\.batch_size or data\.window") as caught:
        check_memory(wide, 65, 2**32)
    assert caught.value.field == "data.batch_size"
    tiny = TrainConfig(limits=LimitsConfig(max_memory_bytes=1))
    with pytest.raises(
        ConfigError, match=r"may take 1 byte: raise limits\.max_memory_bytes, or low"
    ):
        check_memory(tiny, 65, 1)
    check_memory(TrainConfig(), 65, 2**28)


def test_a_trainer_refuses_before_it_allocates() -> None:
    with pytest.raises(ConfigError, match="training would take"):
        Trainer(CORPUS, TrainConfig(), memory_limit_bytes=100_000)
    Trainer(b"hello", TrainConfig(), memory_limit_bytes=8_000_000)  # the batch as shrunk counts


def test_the_limit_of_the_settings_holds_as_well() -> None:
    small = TrainConfig(limits=LimitsConfig(max_memory_bytes=100_000))
    for limit in (None, 2**40):
        with pytest.raises(ConfigError, match="training would take"):
            Trainer(CORPUS, small, memory_limit_bytes=limit)
    roomy = TrainConfig(limits=LimitsConfig(max_memory_bytes=2**40))
    with pytest.raises(ConfigError, match="training would take"):
        Trainer(CORPUS, roomy, memory_limit_bytes=100_000)


def test_the_memory_of_a_process_is_measured() -> None:
    size = 2**26
    page = bytes(mmap.PAGESIZE)
    gc.collect()
    before = resident_bytes()
    # Pages of its own: an array may get memory that earlier tests have freed.
    with mmap.mmap(-1, size) as pages:
        for _ in range(size // mmap.PAGESIZE):
            pages.write(page)
        taken = resident_bytes() - before
    assert 0.9 * size < taken < 2 * size


def test_a_run_that_grows_too_large_ends_with_its_state_whole(tmp_path: Path) -> None:
    network = NetworkConfig(Cell.RNN, hidden_size=4, embedding_size=0)
    limits = LimitsConfig(max_steps=30, max_memory_bytes=2**24)  # Python alone takes more
    config = TrainConfig(
        network=network,
        limits=limits,
        data=DataConfig(batch_size=2, window=4),
        report=ReportConfig(sample_tokens=0),
    )
    trainer = Trainer(CORPUS, config)
    running = trainer.run()
    assert next(running).memory_bytes > 2**24
    with pytest.raises(
        TrainingError,
        match=r"GiB of memory .* lower data\.batch_size, data\.window or network\.hid",
    ):
        next(running)
    trainer.save_state(tmp_path / "run")
    assert Trainer(CORPUS, config).restore_state(tmp_path / "run")


def test_a_vocabulary_that_no_file_holds_is_refused_at_once() -> None:
    words = " ".join(f"{number:06d}" + "x" * 2000 for number in range(23_000))
    tokenizer = TokenizerConfig(kind=TokenizerKind.WORDS, max_vocabulary_size=30_000)
    config = TrainConfig(tokenizer=tokenizer)
    with pytest.raises(CorpusError, match="lower max_vocabulary_size"):
        Trainer(words.encode(), config)


def test_the_items_of_a_corpus_count(tmp_path: Path) -> None:
    config = TrainConfig(
        network=NetworkConfig(hidden_size=2),
        data=DataConfig(CorpusLayout.LINES, batch_size=2, window=2),
    )
    path = tmp_path / "corpus"
    path.write_bytes(b"a\n" * 200_000)
    Trainer([CorpusFile(path)], config, memory_limit_bytes=20 << 20, folder=tmp_path)
    with pytest.raises(ConfigError, match="for the places and orders of the corpus' items"):
        Trainer([CorpusFile(path)], config, memory_limit_bytes=10 << 20, folder=tmp_path)
