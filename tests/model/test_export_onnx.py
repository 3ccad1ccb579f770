"""The ONNX form of a model computes in ONNX Runtime what the model computes here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from small_models import TEXT, model_of

from treadle.model import (
    Cell,
    CorpusLayout,
    DataConfig,
    Model,
    NetworkConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    build_tokenizer,
    train,
)
from treadle.model.enums import Softmax
from treadle.model.errors import ConfigError
from treadle.model.export import onnx_graph, write_onnx
from treadle.model.export.onnx_graph import onnx_model, state_names
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape

ROOT = Path(__file__).parents[2]
SHAKESPEARE = (ROOT / "examples" / "data" / "tinyshakespeare.txt").read_text("utf-8")
STEPS = 1000
INPUTS: dict[str, dict[str, Any]] = {
    "embedding": {"embedding_size": 9},
    "one-hot": {"embedding_size": 0},
    "tied": {"embedding_size": 24, "tied_weights": True},
}
ALL = np.array([0])
LAST = np.array([-1])


class Runtime:
    """A model in ONNX Runtime, with the states of a new text."""

    def __init__(self, model: Model, B: int = 1) -> None:
        self.session = onnxruntime.InferenceSession(onnx_model(model).SerializeToString())
        self.names = state_names(model.network.cell)
        shape = (model.network.layers, B, model.network.hidden_size)
        self.states = {name: np.zeros(shape, np.float32) for name in self.names}

    def read(self, tokens: NDArray[Any], from_step: NDArray[Any] = ALL) -> NDArray[np.float32]:
        inputs = {"tokens": tokens.astype(np.int64), "from_step": from_step, **self.states}
        outputs = ["log_probabilities", *self.names.values()]
        results, *states = self.session.run(outputs, inputs)
        self.states = dict(zip(self.names, states, strict=True))
        return np.asarray(results)


def random_model(cell: str, layers: int, given: str) -> Model:
    return model_of(cell=cell, layers=layers, hidden_size=24, **INPUTS[given])


def random_text(seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(sorted(set(TEXT)), 50))


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_thousand_steps_have_the_same_log_probabilities(
    cell: str, layers: int, given: str
) -> None:
    # Trained: a network of large random weights may be chaotic, and then no two roundings agree.
    network = NetworkConfig(Cell(cell), layers=layers, hidden_size=24, **INPUTS[given])
    model = train(SHAKESPEARE[:100_000], TrainConfig(network=network), max_steps=60)
    text = SHAKESPEARE[90_000 : 90_001 + STEPS]
    tokens = model.tokenizer.encode(text)
    expected = np.array(model.score(text).log_probabilities)
    assert expected.shape == (STEPS,)

    at_once = Runtime(model).read(tokens[np.newaxis, :-1])
    assert at_once.shape == (1, STEPS, model.vocabulary_size)
    assert np.abs(at_once[0, np.arange(STEPS), tokens[1:]] - expected).max() < 1e-5

    by_step = Runtime(model)
    prefill = by_step.read(tokens[np.newaxis, :500], LAST)  # one result, of the last step
    assert prefill.shape == (1, 1, model.vocabulary_size)
    results = [prefill[0, 0]]
    results += [
        by_step.read(tokens[np.newaxis, step : step + 1])[0, 0] for step in range(500, STEPS)
    ]
    chosen = np.array(results)[np.arange(STEPS - 499), tokens[500:]]
    assert np.abs(chosen - expected[499:]).max() < 1e-5


def test_a_factored_softmax_has_the_same_log_probabilities() -> None:
    alphabet = "".join(map(chr, range(0x100, 0x170)))
    network = NetworkConfig(
        hidden_size=8, embedding_size=4, softmax=Softmax.FACTORED, softmax_clusters=(32, 64, 96)
    )
    parameters = Parameters.initial(Shape.of(network, len(alphabet)), seed=3)
    model = Model(network, build_tokenizer(TokenizerConfig(), [alphabet]), parameters)
    tokens = model.tokenizer.encode(alphabet)
    found = Runtime(model).read(tokens[np.newaxis, :-1])
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-5)
    chosen = found[0, np.arange(len(alphabet) - 1), tokens[1:]]
    assert np.abs(chosen - np.array(model.score(alphabet).log_probabilities)).max() < 1e-5


def test_sequences_of_a_batch_do_not_meet() -> None:
    model = random_model("gru", 2, "embedding")
    rows = np.stack([model.tokenizer.encode(random_text(seed)) for seed in range(3)])
    batch = Runtime(model, B=3).read(rows)
    for row, results in zip(rows, batch, strict=True):
        assert np.abs(Runtime(model).read(row[np.newaxis])[0] - results).max() < 1e-5


def test_layers_may_be_eight() -> None:
    model = random_model("lstm", 8, "one-hot")
    text = random_text()[:20]
    tokens = model.tokenizer.encode(text)
    results = Runtime(model).read(tokens[np.newaxis, :-1])[0, np.arange(19), tokens[1:]]
    assert np.abs(results - np.array(model.score(text).log_probabilities)).max() < 1e-5


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_layer_is_one_operator(cell: str) -> None:
    made = onnx_model(random_model(cell, 3, "embedding"))
    operators = [node.op_type for node in made.graph.node]
    assert [name for name in operators if name in ("RNN", "GRU", "LSTM")] == [cell.upper()] * 3
    assert [(each.domain, each.version) for each in made.opset_import] == [("", 17)]


def test_the_file_has_each_weight_once() -> None:
    model = random_model("lstm", 2, "tied")
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx_model(model).graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT
    ]
    second_biases = 2 * 4 * 24  # those of PyTorch, which are zeros
    assert sum(array.size for array in weights) == model.parameter_count + second_biases


def test_the_metadata_describes_the_model() -> None:
    model = random_model("lstm", 1, "embedding")
    metadata = {each.key: each.value for each in onnx_model(model).metadata_props}
    header = json.loads(metadata["treadle"])
    assert header["tokenizer"] == model.tokenizer.to_json()
    assert header["network"] == model.network.to_json()
    assert bytes.fromhex(metadata["treadle.content_hash"]) == model.content_hash
    assert json.loads(metadata["treadle.states"]) == {
        "h": {"next": "h_next", "shape": [1, "B", 24]},
        "c": {"next": "c_next", "shape": [1, "B", 24]},
    }


def test_a_model_that_no_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_LARGEST", 1000)
    with pytest.raises(ConfigError, match="an ONNX file holds 1,000: export it as safetensors"):
        onnx_model(random_model("rnn", 1, "one-hot"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ConfigError, match=re.escape("pip install '.[onnx]' in a checkout of Treadle")
    ):
        write_onnx(random_model("rnn", 1, "one-hot"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    config = TrainConfig(network=NetworkConfig(hidden_size=48, layers=2))
    model = train(SHAKESPEARE[:200_000], config, max_steps=400)
    path = tmp_path_factory.mktemp("onnx") / "shakespeare.onnx"
    write_onnx(model, path)
    return model, path


def example(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "onnx" / "generate.py"), str(path), *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_example_writes_the_same_text(trained: tuple[Model, Path]) -> None:
    model, path = trained
    prompt = "First Citizen:\n"
    ours = model.generate(prompt, temperature=0, max_new_tokens=1000)
    done = example(path, "--prompt", prompt, "--temperature", "0", "--tokens", "1000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ours + "\n"
    assert len(ours) == 1000
    assert len(set(ours)) > 10


def test_the_example_draws_and_refuses(trained: tuple[Model, Path]) -> None:
    _, path = trained
    drawn = [example(path, "--tokens", "80", "--seed", seed).stdout for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 81
    done = example(path, "--prompt", "日")
    assert done.stderr == "generate.py: the vocabulary lacks '日': leave it out of --prompt\n"
    done = example(Path(__file__))
    assert done.stderr.startswith(f"generate.py: cannot read {__file__}: ")


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_the_example_reads_items(kind: str, tmp_path: Path) -> None:
    config = TrainConfig(
        tokenizer=TokenizerConfig(TokenizerKind(kind)),
        data=DataConfig(layout=CorpusLayout.LINES),
        network=NetworkConfig(hidden_size=24),
    )
    model = train("äda\nbéa\nçem\n" * 40, config, max_steps=300)
    write_onnx(model, tmp_path / "names.onnx")
    done = example(tmp_path / "names.onnx", "--prompt", "b", "--temperature", "0")
    assert done.stdout == model.generate("b", temperature=0) + "\n" == "éa\n"
