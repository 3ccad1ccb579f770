"""RTNeural's JSON computes what the model computes; `Interpreter` follows RTNeural's arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import TEXT, model_of

from treadle.model.errors import LayerError
from treadle.model.export import Dense, write_rtneural, write_rtneural_layers
from treadle.model.network.layer import RecurrentLayer

Array = NDArray[np.float32]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


class Interpreter:
    """Plain NumPy in the order of `forward` in RTNeural's dense.h, gru.h and lstm.h."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text("utf-8"))
        self.inputs = content["in_shape"][-1]
        self.layers = content["layers"]
        self.states = [np.zeros((2, each["shape"][-1]), np.float32) for each in self.layers]

    def forward(self, x: Array) -> Array:
        assert x.shape == (self.inputs,)
        for layer, state in zip(self.layers, self.states, strict=True):
            x = getattr(self, "_" + layer["type"])(x, layer, state)
            assert x.shape == (layer["shape"][-1],)
            assert x.dtype == np.float32
        return x

    @staticmethod
    def _dense(x: Array, layer: dict[str, Any], _: Array) -> Array:
        W, b = (np.array(array, np.float32) for array in layer["weights"])
        return ACTIVATIONS[layer["activation"]](x @ W + b)

    @staticmethod
    def _lstm(x: Array, layer: dict[str, Any], state: Array) -> Array:
        W, U, b = (np.array(array, np.float32) for array in layer["weights"])
        i, f, g, o = np.split(x @ W + state[0] @ U + b, 4)
        state[1] = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        state[0] = sigmoid(o) * np.tanh(state[1])
        return np.array(state[0])

    @staticmethod
    def _gru(x: Array, layer: dict[str, Any], state: Array) -> Array:
        W, U, b = (np.array(array, np.float32) for array in layer["weights"])
        zx, rx, nx = np.split(x @ W, 3)
        zh, rh, nh = np.split(state[0] @ U, 3)
        bz, br, bn = np.split(b, 3, axis=1)
        z = sigmoid(zh + (bz[0] + bz[1]) + zx)
        r = sigmoid(rh + (br[0] + br[1]) + rx)
        n = np.tanh(r * (nh + bn[1]) + bn[0] + nx)
        state[0] = (1 - z) * n + z * state[0]
        return np.array(state[0])


INPUTS: dict[str, dict[str, Any]] = {
    "embedding": {"embedding_size": 4},
    "one-hot": {"embedding_size": 0},
    "tied": {"embedding_size": 7, "tied_weights": True},
}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_model_computes_the_same(cell: str, layers: int, given: str, tmp_path: Path) -> None:
    model = model_of(cell=cell, layers=layers, hidden_size=7, **INPUTS[given])
    write_rtneural(model, tmp_path / "model.json")
    network = Interpreter(tmp_path / "model.json")
    tokens = model.tokenizer.encode(TEXT)
    one_hot = np.eye(model.vocabulary_size, dtype=np.float32)
    logits = np.array([network.forward(one_hot[token]) for token in tokens[:-1]])
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    assert np.abs(chosen - np.array(model.score(TEXT).log_probabilities)).max() < 2e-5
    header = json.loads((tmp_path / "model.json").read_text("utf-8"))["treadle"]
    assert header["tokenizer"] == model.tokenizer.to_json()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_layers_of_real_numbers_compute_the_same(cell: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lower = RecurrentLayer(cell, input_size=1, hidden_size=6, seed=1)
    upper = RecurrentLayer(cell, input_size=6, hidden_size=5, seed=2)
    head = Dense(rng.normal(size=(5, 2)).astype(np.float32), np.ones(2, np.float32), "tanh")
    write_rtneural_layers([lower, upper, head], tmp_path / "amp.json")
    network = Interpreter(tmp_path / "amp.json")
    xs = rng.normal(size=(300, 1, 1)).astype(np.float32)
    hs = upper.forward(lower.forward(xs)[0][1:])[0][1:, 0]
    expected = np.tanh(hs @ head.W + head.b)
    assert np.abs(np.array([network.forward(x[0]) for x in xs]) - expected).max() < 1e-5


def test_numbers_keep_their_bits(tmp_path: Path) -> None:
    layer = RecurrentLayer("lstm", input_size=3, hidden_size=4)
    layer.parameters["b"][:4] = [1e-45, -0.0, 3.4028235e38, 1 / 3]
    write_rtneural_layers([layer], tmp_path / "layer.json")
    weights = json.loads((tmp_path / "layer.json").read_text("utf-8"))["layers"][0]["weights"]
    for read, name in zip(weights, ("Wx", "Wh", "b"), strict=True):
        assert np.array(read, np.float32).tobytes() == layer.parameters[name].tobytes()


def test_layers_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    layer = RecurrentLayer("gru", input_size=1, hidden_size=4)
    odd = Dense(np.zeros((3, 1), np.float32), np.zeros(1, np.float32))
    broken = RecurrentLayer("gru", input_size=1, hidden_size=4)
    broken.flat[0] = np.nan
    cases: list[tuple[list[RecurrentLayer | Dense], str]] = [
        ([], "there is no layer to export"),
        ([layer, odd], "layer 1 takes 3 inputs, but layer 0 has 4 outputs"),
        ([Dense(odd.W, odd.W)], r"weights of shape \(3, 1\) and a bias of shape \(3, 1\)"),
        ([Dense(odd.W, odd.b, "gelu")], "activation 'gelu', which RTNeural does not know"),
        ([broken], "layer 0 has a number that is not finite"),
    ]
    for layers, message in cases:
        with pytest.raises(LayerError, match=message):
            write_rtneural_layers(layers, tmp_path / "layers.json")
    assert list(tmp_path.iterdir()) == []
