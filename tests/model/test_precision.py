"""Training with BF16 products: near FP32's, the same for any threads, refused elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_networks import CELLS, make_batch, make_network, relative_error, same_bytes

from treadle.kernels.jit import BF16_MISSING
from treadle.model import (
    Cell,
    ConfigError,
    DataConfig,
    LimitsConfig,
    Model,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    TrainConfig,
    Trainer,
    train,
)
from treadle.model.network import precision
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool

needs_bf16 = pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)

TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n % 97}; " for n in range(90, 0, -1))

CONFIG = TrainConfig(
    network=NetworkConfig(hidden_size=33, layers=2, embedding_size=5, dropout=0.2),
    data=DataConfig(batch_size=33, window=13, validation_fraction=0.2),
    optimizer=OptimizerConfig(precision=Precision.BF16),
    limits=LimitsConfig(max_steps=30),
    seed=3,
)


def gradients(cell: str, layers: int, kind: Precision) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and gradients of a batch in three shards, the last of one row."""
    network = make_network(cell, V=17, E=5, H=19, L=layers)
    tokens, targets = make_batch(17, 7, 33)
    engine = Engine(network.parameters, 33, 7, Pool(1), precision=kind)
    loss, _ = engine.loss_and_gradient(tokens, targets, np.ones(33, np.bool_))
    return loss, engine.gradient.named()


@needs_bf16
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_near_those_of_fp32(cell: str, layers: int) -> None:
    loss, expected = gradients(cell, layers, Precision.FP32)
    ours_loss, ours = gradients(cell, layers, Precision.BF16)
    assert ours_loss == pytest.approx(loss, rel=1e-3)
    assert ours_loss != loss
    for name, array in expected.items():
        assert relative_error(ours[name], array.astype(np.float64)) < 2e-2, name
        assert not same_bytes(ours[name], array), name


@needs_bf16
@pytest.mark.jit
@pytest.mark.parametrize("cell", Cell)
def test_training_reaches_nearly_the_same_loss(cell: Cell) -> None:
    config = replace(CONFIG, network=replace(CONFIG.network, cell=cell, dropout=0))
    config = replace(config, limits=LimitsConfig(max_steps=150))
    single = replace(config, optimizer=OptimizerConfig())
    losses = []
    for each in (config, single):
        record = train(TEXT, each).training
        assert record is not None
        losses.append(record.valid_loss)
    assert losses[0] == pytest.approx(losses[1], abs=0.03)


@needs_bf16
@pytest.mark.jit
@pytest.mark.parametrize("cell", Cell)
def test_threads_do_not_matter(cell: Cell) -> None:
    config = replace(CONFIG, network=replace(CONFIG.network, cell=cell))
    one, two, three = (train(TEXT, config, threads).parameters.flat for threads in (1, 2, 3))
    assert same_bytes(one, two)
    assert same_bytes(one, three)


@needs_bf16
@pytest.mark.jit
def test_a_model_is_an_ordinary_one(tmp_path: object) -> None:
    model = train(TEXT, CONFIG)
    assert model.parameters.flat.dtype == np.float32
    path = f"{tmp_path}/model.safetensors"
    model.save(path)
    loaded = Model.load(path)
    assert loaded.training is not None
    assert loaded.training.config.optimizer.precision is Precision.BF16
    assert same_bytes(loaded.parameters.flat, model.parameters.flat)
    assert loaded.score("9 green") == model.score("9 green")


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "BF16_MISSING", "this processor lacks AVX512_BF16")
    with pytest.raises(ConfigError) as caught:
        Trainer(TEXT.encode(), CONFIG)
    assert caught.value.field == "optimizer.precision"
    assert str(caught.value) == (
        "optimizer.precision cannot be bf16: this processor lacks AVX512_BF16; "
        "set precision to fp32"
    )
    Trainer(TEXT.encode(), replace(CONFIG, optimizer=OptimizerConfig()))


@pytest.mark.parametrize(
    "environment",
    [
        {"TREADLE_CPU_TARGET": "portable"},
        {"NUMBA_CPU_NAME": "haswell"},
        {"NUMBA_CPU_NAME": "skylake-avx512"},
    ],
)
def test_the_target_must_have_it_too(environment: dict[str, str]) -> None:
    script = "from treadle.kernels.jit import BF16_MISSING; print(BF16_MISSING)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )
    assert "lacks AVX512_BF16" in done.stdout


@needs_bf16
def test_a_target_may_be_named_that_has_it() -> None:
    script = "from treadle.kernels.jit import BF16_MISSING; print(BF16_MISSING or 'there')"
    environment = {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": "+avx512bf16"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )
    assert done.stdout.strip() == "there"
