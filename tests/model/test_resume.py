"""A run that is left and gone on with ends with the bits of one that never was."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import NAMES, QUIET, TEXT, config_of, weights_of

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, CorpusLayout, OptimizerKind, Precision, Schedule
from treadle.model.errors import LoadError, TrainingError
from treadle.model.model import Model
from treadle.model.training import checkpoint
from treadle.model.training.checkpoint import saved_config
from treadle.model.training.metrics import Metrics
from treadle.model.training.trainer import Trainer

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
STEPS = 24
LEFT_AT = (1, 4, 9, 16, 17, STEPS)
"""In a pass and at its end, at a validation and between two, twice in a row, at the very end."""

Outcome = tuple[bytes, bytes | None, list[tuple[int, float, float | None]]]


def config(
    cell: Cell = Cell.LSTM,
    layout: CorpusLayout = CorpusLayout.TEXT,
    layers: int = 2,
    **optimizer: Any,
) -> TrainConfig:
    """Two shards of rows, lines longer than the window, dropout, a validation every 4 steps."""
    return config_of(
        network=NetworkConfig(cell, 3, layers, embedding_size=2, dropout=0.3),
        data=DataConfig(layout, batch_size=18, window=3, validation_fraction=0.2),
        optimizer=OptimizerConfig(**{"learning_rate": 0.05, **optimizer}),
        limits=LimitsConfig(max_steps=STEPS),
        report=replace(QUIET, validation_interval_steps=4),
        seed=5,
    )


def corpus_of(settings: TrainConfig) -> bytes:
    return NAMES if settings.data.layout is CorpusLayout.LINES else TEXT[:420]


def outcome(trainer: Trainer, seen: list[tuple[int, float, float | None]]) -> Outcome:
    best = trainer.best_model
    return weights_of(trainer.model), None if best is None else weights_of(best), seen


def undisturbed(settings: TrainConfig) -> Outcome:
    trainer = Trainer(corpus_of(settings), settings)
    seen = [(p.step, p.train_loss, p.valid_loss) for p in trainer.run()]
    assert seen[-1][0] == STEPS
    return outcome(trainer, seen)


def leave_at(trainer: Trainer, step: int, path: Path) -> Callable[[], bool]:
    def between() -> bool:
        if trainer.steps == step:
            trainer.save_state(path)
        return trainer.steps == step

    return between


def interrupted(settings: TrainConfig, path: Path, threads: tuple[int, ...] = (1,)) -> Outcome:
    seen: list[tuple[int, float, float | None]] = []
    for number, step in enumerate((*LEFT_AT, -1)):
        trainer = Trainer(corpus_of(settings), settings, threads[number % len(threads)])
        assert trainer.restore_state(path) == (number > 0)
        run = trainer.run(between=leave_at(trainer, step, path))
        seen += [(p.step, p.train_loss, p.valid_loss) for p in run]
        assert trainer.steps == (STEPS if step == -1 else step)
    assert trainer.ended_by == f"max_steps reached after {STEPS} steps"
    return outcome(trainer, seen)


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("cell", Cell)
def test_a_run_left_and_gone_on_with_has_the_same_bits(
    cell: Cell, layout: CorpusLayout, tmp_path: Path
) -> None:
    settings = config(cell, layout)
    assert interrupted(settings, tmp_path / "run") == undisturbed(settings)


@pytest.mark.jit
@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": OptimizerKind.SGD, "learning_rate": 0.5},
        {"kind": OptimizerKind.ADAGRAD},
        {"kind": OptimizerKind.ADAM, "weight_decay": 0.1, "clip_value": 0.01},
        {"accumulation_steps": 3},
        {"schedule": Schedule.CONSTANT, "warmup_steps": 20},
        {"schedule": Schedule.PLATEAU, "averaging": 2.5},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_every_optimizer_and_schedule_continues(optimizer: dict[str, Any], tmp_path: Path) -> None:
    settings = config(**optimizer)
    assert interrupted(settings, tmp_path / "run") == undisturbed(settings)


@pytest.mark.jit
@pytest.mark.skipif(bool(BF16_MISSING), reason="needs AVX512_BF16")
def test_a_run_of_bfloat16_products_continues(tmp_path: Path) -> None:
    settings = config(precision=Precision.BF16)
    assert interrupted(settings, tmp_path / "run", (1, 2)) == undisturbed(settings)


def test_a_run_continues_with_other_threads(tmp_path: Path) -> None:
    settings = config()
    assert interrupted(settings, tmp_path / "run", (2, 1, 3)) == undisturbed(settings)


def test_a_trainer_that_was_left_continues_itself(tmp_path: Path) -> None:
    settings = config()
    trainer = Trainer(corpus_of(settings), settings)
    seen = []
    for step in (*LEFT_AT, -1):
        run = trainer.run(between=leave_at(trainer, step, tmp_path / "run"))
        seen += [(p.step, p.train_loss, p.valid_loss) for p in run]
        assert trainer.ended_by == ("" if step != -1 else f"max_steps reached after {STEPS} steps")
    assert outcome(trainer, seen) == undisturbed(settings)


def test_a_state_saved_where_progress_is_read_continues(tmp_path: Path) -> None:
    """And twice from the same state, which a run that continues leaves alone."""
    settings = config()
    whole = undisturbed(settings)
    first = Trainer(corpus_of(settings), settings)
    seen = []
    for progress in first.run():
        seen.append((progress.step, progress.train_loss, progress.valid_loss))
        if progress.step == 8:
            break
    first.save_state(tmp_path / "run")
    for _ in range(2):
        trainer = Trainer(corpus_of(settings), settings)
        assert trainer.restore_state(tmp_path / "run")
        rest = [(p.step, p.train_loss, p.valid_loss) for p in trainer.run()]
        assert outcome(trainer, seen + rest) == whole


def test_saving_and_copying_do_not_change_a_bit(tmp_path: Path) -> None:
    settings = config()
    trainer = Trainer(corpus_of(settings), settings)
    copies: list[Model] = []

    def between() -> None:
        trainer.save_state(tmp_path / "run")
        copies.append(trainer.model)
        copies[-1].generate(max_new_tokens=5, seed=1)
        trainer.threads = 1 + trainer.steps % 3

    seen = [(p.step, p.train_loss, p.valid_loss) for p in trainer.run(between=between)]
    assert len({weights_of(copy) for copy in copies}) == STEPS
    assert outcome(trainer, seen) == undisturbed(settings)


@pytest.mark.jit
def test_plateaus_count_on_over_a_stop(tmp_path: Path) -> None:
    settings = config(schedule=Schedule.PLATEAU, learning_rate=2.0, warmup_steps=0)
    settings = replace(settings, report=replace(QUIET, validation_interval_steps=1))
    whole = Trainer(corpus_of(settings), settings)
    lowered = [whole._state.selection.lowered for _ in whole.run()]
    assert {1.0, 0.5, 0.25} <= set(lowered)
    drop = lowered.index(0.5) + 1  # the step whose validation lowered the rate
    again = []
    for step in (drop - 1, drop, -1):
        trainer = Trainer(corpus_of(settings), settings)
        trainer.restore_state(tmp_path / "run")
        again += list(trainer.run(between=leave_at(trainer, step, tmp_path / "run")))
    assert [p.step for p in again] == list(range(1, STEPS + 1))
    assert weights_of(trainer.model) == weights_of(whole.model)
    assert trainer._state.selection.to_json().items() >= {"lowered": lowered[-1]}.items()


@pytest.mark.jit
def test_early_stopping_counts_on_over_a_stop(tmp_path: Path) -> None:
    settings = config(learning_rate=0.9, schedule=Schedule.CONSTANT)
    limits = LimitsConfig(max_steps=400, early_stopping_patience=3)
    settings = replace(settings, limits=limits)
    whole = Trainer(corpus_of(settings), settings)
    seen = [(p.step, p.train_loss, p.valid_loss) for p in whole.run()]
    assert whole.ended_by.startswith(f"early_stopping_patience reached after {whole.steps} steps")
    again = []
    for step in (whole.steps - 5, whole.steps - 4, whole.steps):
        trainer = Trainer(corpus_of(settings), settings)
        trainer.restore_state(tmp_path / "run")
        run = trainer.run(between=leave_at(trainer, step, tmp_path / "run"))
        again += [(p.step, p.train_loss, p.valid_loss) for p in run]
    trainer = Trainer(corpus_of(settings), settings)
    assert trainer.restore_state(tmp_path / "run")
    assert list(trainer.run()) == []
    assert trainer.ended_by == whole.ended_by
    assert outcome(trainer, again) == outcome(whole, seen)


def test_clocks_and_counts_continue(tmp_path: Path) -> None:
    settings = config()
    trainer = Trainer(corpus_of(settings), settings)
    list(trainer.run(between=leave_at(trainer, 10, tmp_path / "run")))
    again = Trainer(corpus_of(settings), settings)
    again.restore_state(tmp_path / "run")
    before = trainer._state
    after = again._state
    assert after.metrics == before.metrics
    assert after.metrics.wall_s >= after.metrics.elapsed_s > 0
    assert after.optimizer.corrections.powers == before.optimizer.corrections.powers != (1, 1)
    assert after.selection.to_json() == before.selection.to_json()
    assert after.batches.position == before.batches.position
    wall = after.metrics.wall_s
    list(again.run())
    assert after.metrics.wall_s > wall
    record = again.model.training
    old = trainer.model.training
    assert record is not None
    assert old is not None
    assert record.elapsed_s > old.elapsed_s
    assert record.tokens_seen > old.tokens_seen


def test_the_settings_as_filled_in_are_in_the_state(tmp_path: Path) -> None:
    assert saved_config(tmp_path / "run") is None
    settings = replace(config(), limits=LimitsConfig(max_epochs=1), given=("network.cell",))
    trainer = Trainer(corpus_of(settings), settings)
    trainer.save_state(tmp_path / "run")
    assert saved_config(tmp_path / "run") == trainer.started.config != settings
    assert Trainer(corpus_of(settings), trainer.started.config).restore_state(tmp_path / "run")


@pytest.mark.jit
def test_the_page_about_training_shows_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    first, again = (block for block in blocks if "Trainer(" in block)
    scope: dict[str, Any] = {}
    exec(first, scope)
    whole = weights_of(scope["trainer"].model)
    for left in (200, 300):
        exec(again, scope)
        assert scope["trainer"].steps == left
    assert weights_of(scope["trainer"].model) == whole
    assert "300 " in capsys.readouterr().out


# ---------------------------------------------------------------- a process that is killed

CHILD = """
import json, sys
from pathlib import Path
from treadle.model.config import TrainConfig
from treadle.model.training.trainer import Trainer
folder = Path(sys.argv[1])
settings = TrainConfig.from_json(json.loads((folder / "config").read_text()))
trainer = Trainer(folder / "corpus", settings)
trainer.restore_state(folder / "run")
def between():
    print(trainer.steps, flush=True)
    if trainer.steps % 3 == 0:
        trainer.save_state(folder / "run")
for _ in trainer.run(between=between):
    pass
(folder / "last").write_bytes(trainer.model.parameters.flat.tobytes())
(folder / "best").write_bytes(trainer.best_model.parameters.flat.tobytes())
"""


@pytest.mark.jit
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = replace(config(averaging=4.0), limits=LimitsConfig(max_steps=400))
    whole = Trainer(corpus_of(settings), settings)
    for _ in whole.run():
        pass
    (tmp_path / "corpus").write_bytes(corpus_of(settings))
    (tmp_path / "config").write_text(json.dumps(settings.to_json()))
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    for kills in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            if kills < 3:
                for _ in range(random.randint(20, 110)):  # steps: the run cannot end before
                    assert child.stdout.readline()
                child.send_signal(signal.SIGKILL)
            child.stdout.read()
        assert child.returncode == (-signal.SIGKILL if kills < 3 else 0)
    assert whole.best_model is not None
    assert (tmp_path / "last").read_bytes() == weights_of(whole.model)
    assert (tmp_path / "best").read_bytes() == weights_of(whole.best_model)
    leftovers = {path.name for path in tmp_path.iterdir()}
    assert leftovers == {"corpus", "config", "run", "run.previous", "last", "best"}


# ---------------------------------------------------------------- files that cannot be used


def saved(path: Path, *steps: int, settings: TrainConfig | None = None) -> Trainer:
    settings = settings or config()
    trainer = Trainer(corpus_of(settings), settings)
    for step in steps:
        list(trainer.run(between=leave_at(trainer, step, path)))
    return trainer


def test_without_a_state_nothing_is_restored(tmp_path: Path) -> None:
    trainer = Trainer(TEXT, config())
    assert not trainer.restore_state(tmp_path / "run")
    assert not trainer.restore_state(tmp_path / "no folder" / "run")
    assert trainer.steps == 0


@pytest.mark.parametrize("where", [0, 3, 40, 200, -2000, -300, -1])
def test_a_damaged_state_gives_way_to_the_one_before(where: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    saved(path, 4, 7)
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)
    trainer = Trainer(corpus_of(config()), config())
    assert trainer.restore_state(path)
    assert trainer.steps == 4
    trainer.save_state(path)  # the good one is not lost to the damaged one
    (tmp_path / "run").unlink()
    assert Trainer(corpus_of(config()), config()).restore_state(path)


def test_every_byte_counts(tmp_path: Path) -> None:
    """Whatever byte is damaged, the state is refused and never used."""
    path = tmp_path / "run"
    saved(path, 4)
    data = path.read_bytes()
    trainer = Trainer(corpus_of(config()), config())
    rng = random.Random(3)
    for where in [*range(16), *rng.sample(range(len(data)), 60)]:
        damaged = bytearray(data)
        damaged[where] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(LoadError, match=r"is damaged.*, and so is the one before it"):
            trainer.restore_state(path)
        assert trainer.steps == 0
    path.write_bytes(data)
    assert trainer.restore_state(path)


@pytest.mark.parametrize("size", [0, 7, 100, 3000])
def test_a_state_cut_short_is_damaged(size: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    saved(path, 4)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LoadError, match="is damaged"):
        Trainer(corpus_of(config()), config()).restore_state(path)


def test_a_crash_between_the_two_names_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    saved(path, 4, 7)
    path.replace(tmp_path / "run.previous")  # as far as write_atomically had come
    (tmp_path / ".run.0123abcd.tmp").write_bytes(b"half of it")
    trainer = Trainer(corpus_of(config()), config())
    assert trainer.restore_state(path)
    assert trainer.steps == 7
    assert os.listdir(tmp_path) == ["run.previous"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 6}, "see seed"),
        ({"limits": LimitsConfig(max_steps=25)}, r"see limits\.max_steps"),
        ({"optimizer": OptimizerConfig(beta1=0.8, learning_rate=0.05)}, r"see optimizer\.beta1"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(
    change: dict[str, Any], name: str, tmp_path: Path
) -> None:
    saved(tmp_path / "run", 4)
    other = Trainer(corpus_of(config()), replace(config(), **change))
    with pytest.raises(LoadError, match=name):
        other.restore_state(tmp_path / "run")
    assert other.steps == 0


def rewritten(path: Path, settings: dict[str, Any]) -> None:
    """Writes the state there again with other settings in it."""
    state = checkpoint.read(path)
    assert state is not None
    checkpoint.write(path, replace(state, content={**state.content, "config": settings}))


def test_a_state_of_a_treadle_with_fewer_settings_continues(tmp_path: Path) -> None:
    trainer = saved(tmp_path / "run", 4)
    older = trainer.started.config.to_json()
    del older["keep"], older["limits"]["max_wall_time_s"]
    rewritten(tmp_path / "run", older)
    again = Trainer(corpus_of(config()), config())
    assert again.restore_state(tmp_path / "run")
    list(again.run())
    assert weights_of(again.model) == undisturbed(config())[0]


def test_a_state_of_a_treadle_with_more_settings_is_refused(tmp_path: Path) -> None:
    trainer = saved(tmp_path / "run", 4)
    rewritten(tmp_path / "run", {**trainer.started.config.to_json(), "unheard_of": 1})
    for attempt in (trainer.restore_state, saved_config):
        with pytest.raises(
            LoadError, match=r"unheard_of .*; continue with the version of Treadle that w"
        ):
            attempt(tmp_path / "run")


@pytest.mark.parametrize("corpus", [TEXT[:420].upper(), TEXT[1:421], TEXT[:419] + b"s"])
def test_a_state_of_another_corpus_is_refused(corpus: bytes, tmp_path: Path) -> None:
    saved(tmp_path / "run", 4)
    with pytest.raises(LoadError, match="belongs to another corpus: continue with the corpus"):
        Trainer(corpus, config()).restore_state(tmp_path / "run")


def test_a_state_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "run", 4, 7)
    monkeypatch.setattr("treadle.model.training.checkpoint.FORMAT", "2")
    with pytest.raises(LoadError, match="has format '1', and this version of Treadle reads '2'"):
        Trainer(corpus_of(config()), config()).restore_state(tmp_path / "run")


# ---------------------------------------------------------------- states that cannot be written


def test_a_full_disk_leaves_the_old_state_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    trainer = saved(path, 4, 7)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"run", "run.previous"}

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_state(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.undo()
    list(trainer.run())
    assert weights_of(trainer.model) == undisturbed(config())[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_saved(bad: float, tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer = saved(path, 4)
    before = path.read_bytes()
    trainer._state.parameters.stacks.by[0] = bad
    with pytest.raises(TrainingError, match=r"infinite by step 4; .* good state is that of step 4"):
        trainer.save_state(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.jit
def test_a_run_that_failed_midway_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer = saved(path, 4)
    trainer._state.parameters.stacks.by[:] = 3e38
    trainer._state.parameters.stacks.by[1] = -3e38
    with pytest.raises(TrainingError, match=r"at step 5; .*last good state is that of step 4\)"):
        list(trainer.run())
    with pytest.raises(TrainingError, match="failed midway: continue from the last saved state"):
        trainer.save_state(path)
    with pytest.raises(TrainingError, match="failed midway: continue from the last saved state"):
        list(trainer.run())
    again = Trainer(corpus_of(config()), config())
    assert again.restore_state(path)
    list(again.run())
    assert weights_of(again.model) == undisturbed(config())[0]


@pytest.mark.jit
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_step_left_in_its_middle_is_made_again_to_the_same_bits(
    layout: CorpusLayout, threads: int, tmp_path: Path
) -> None:
    settings = config(layout=layout, accumulation_steps=5)
    path = tmp_path / "run"
    asked = [0]

    def interrupted() -> bool:
        asked[0] += 1
        return asked[0] >= 14

    def between() -> bool:
        left = asked[0] >= 14
        if left:
            trainer.save_state(path)
        return left

    seen: list[tuple[int, float, float | None]] = []
    dropped = 0
    for allowed in range(8):
        trainer = Trainer(corpus_of(settings), settings, threads)
        trainer.restore_state(path)
        before = trainer.steps
        asked[0] = -3 * allowed
        run = trainer.run(between=between, interrupted=interrupted)
        seen += [(p.step, p.train_loss, p.valid_loss) for p in run]
        dropped += asked[0] >= 14
        assert trainer.steps - before < STEPS
    assert dropped == 8
    trainer = Trainer(corpus_of(settings), settings, threads)
    trainer.restore_state(path)
    seen += [(p.step, p.train_loss, p.valid_loss) for p in trainer.run()]
    assert outcome(trainer, seen) == undisturbed(settings)


def test_a_run_stopped_in_the_middle_of_a_step_has_the_model_of_the_step_before() -> None:
    settings = config(accumulation_steps=5)
    asked = [0]

    def interrupted() -> bool:
        asked[0] += 1
        return asked[0] > 40

    trainer = Trainer(corpus_of(settings), settings)
    list(trainer.run(stop=lambda: asked[0] > 40, interrupted=interrupted))
    assert 0 < trainer.steps < STEPS
    calm = Trainer(corpus_of(settings), settings)
    list(calm.run(between=lambda: calm.steps == trainer.steps))
    assert weights_of(trainer.model) == weights_of(calm.model)


def test_a_checkpoint_keeps_the_stored_names_of_its_metrics() -> None:
    """A checkpoint of an older version has these names, and has to be read."""
    stored = {
        "tokens",
        "elapsed",
        "wall",
        "loss",
        "interval_tokens",
        "interval_seconds",
        "part",
        "examined",
        "norm",
        "rate",
        "valid_loss",
        "valid_step",
        "good_step",
        "last",
        "valid_tokens",
        "pending",
        "validation",
        "outlook",
        "looked",
        "notices",
    }
    assert set(Metrics().to_json()) == stored
    older = dict.fromkeys(stored) | {"elapsed": 2.5, "wall": 3.5, "loss": 4.5, "interval_tokens": 9}
    older |= {"tokens": 90, "interval_seconds": 0.5, "part": 3, "examined": False, "notices": ["x"]}
    older |= {"norm": 0.25, "rate": 0.125, "valid_step": 7, "good_step": 8, "valid_tokens": 6}
    older |= {"pending": True, "looked": True}
    metrics = Metrics.from_json(older)
    assert metrics.to_json() == older
    assert (metrics.elapsed_s, metrics.wall_s, metrics.interval_loss) == (2.5, 3.5, 4.5)
    assert (metrics.evaluations_due, metrics.evaluated) == (3, False)
