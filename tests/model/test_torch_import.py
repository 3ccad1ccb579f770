from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN_NAMES, Golden, load_golden
from numpy.typing import NDArray
from safetensors.numpy import load_file

from treadle.model.config import TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind
from treadle.model.errors import LoadError
from treadle.model.model import Model
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.torch_state_dict import to_torch
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.torch_import import import_state_dict


def letters(count: int) -> Tokenizer:
    """A tokenizer whose token i is the i-th letter."""
    return build_tokenizer(TokenizerConfig(), [string.ascii_letters[:count]])


def model_of(golden: Golden) -> Model:
    return import_state_dict(golden.state_dict, letters(golden.parameters["by"].size))


class Tensor:
    """What NumPy sees of a PyTorch tensor on the CPU."""

    def __init__(self, array: NDArray[Any], requires_grad: bool = False) -> None:
        self._array = array
        self._requires_grad = requires_grad

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self._requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.array(self._array, dtype)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_network_follows_from_names_and_shapes(name: str) -> None:
    golden = load_golden(name)
    model = model_of(golden)
    L, _, H = golden.h0.shape
    assert model.network.cell == golden.cell
    assert (model.network.layers, model.network.hidden_size) == (L, H)
    assert (model.network.embedding_size == 0) == name.endswith("_onehot")
    assert model.training is None
    assert model.layout is CorpusLayout.TEXT
    for parameter, array in model.parameters.named().items():
        assert np.array_equal(array, golden.parameters[parameter]), parameter


@pytest.mark.jit
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_loss_is_pytorchs(name: str) -> None:
    golden = load_golden(name)
    T, B = golden.tokens.shape
    engine = Engine(model_of(golden).parameters, B, T, Pool(1))
    for shard in engine._shards:
        shard.state.h[:] = golden.h0[:, shard.rows]
        if golden.c0 is not None:
            shard.state.c[:] = golden.c0[:, shard.rows]
    loss, count = engine.loss_and_gradient(golden.tokens, golden.targets, np.zeros(B, np.bool_))
    assert loss / count == pytest.approx(golden.loss, rel=1e-5)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_greedy_text_is_pytorchs(name: str) -> None:
    golden = load_golden(name)
    model = model_of(golden)
    prompt = model.tokenizer.decode(golden.greedy_prompt.reshape(-1))
    expected = model.tokenizer.decode(golden.greedy_tokens.reshape(-1))
    assert len(expected) > 20
    assert model.generate(prompt, temperature=0, max_new_tokens=len(expected)) == expected


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_an_imported_model_is_stored_and_comes_back(name: str, tmp_path: Path) -> None:
    model = model_of(load_golden(name))
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.parameters.flat.tobytes() == model.parameters.flat.tobytes()
    # The file is a state dict itself.
    imported = import_state_dict(load_file(tmp_path / "model"), model.tokenizer)
    assert imported.parameters.flat.tobytes() == model.parameters.flat.tobytes()


def test_tensors_come_in_as_whatever_numpy_reads() -> None:
    golden = load_golden("gru_1layer")
    expected = model_of(golden).parameters.flat.tobytes()
    tokenizer = letters(golden.parameters["by"].size)
    tensors = {name: Tensor(array) for name, array in golden.state_dict.items()}
    doubles = {name: array.astype(np.float64) for name, array in golden.state_dict.items()}
    lists = {name: array.tolist() for name, array in golden.state_dict.items()}
    strided = {name: np.asfortranarray(array) for name, array in golden.state_dict.items()}
    for state_dict in (tensors, doubles, lists, strided):
        model = import_state_dict(state_dict, tokenizer)
        assert model.parameters.flat.tobytes() == expected


def test_what_was_given_is_copied() -> None:
    golden = load_golden("lstm_1layer")
    model = model_of(golden)
    before = model.parameters.flat.tobytes()
    for array in golden.state_dict.values():
        array[...] = 0
    assert model.parameters.flat.tobytes() == before


def test_another_vocabulary_is_refused_with_both_sizes() -> None:
    golden = load_golden("rnn_1layer")
    size = golden.parameters["by"].size
    with pytest.raises(LoadError, match=f"has {size} tokens, but the tokenizer {size + 1}"):
        import_state_dict(golden.state_dict, letters(size + 1))
    with pytest.raises(LoadError, match="but the tokenizer 256: give the tokenizer that"):
        import_state_dict(golden.state_dict, build_tokenizer(TokenizerConfig(TokenizerKind.BYTES)))


def test_a_tensor_that_needs_detaching_is_refused_by_name() -> None:
    golden = load_golden("rnn_1layer")
    state_dict: dict[str, Any] = dict(golden.state_dict)
    state_dict["output.bias"] = Tensor(golden.state_dict["output.bias"], requires_grad=True)
    with pytest.raises(LoadError, match=r"output\.bias cannot be read as an array: Can't"):
        import_state_dict(state_dict, letters(17))


def test_a_network_larger_than_treadles_is_refused() -> None:
    one = np.zeros((1, 1), np.float32)
    state_dict = {"output.weight": np.zeros((2, 1), np.float32)}
    for layer in range(9):
        state_dict[f"rnn.weight_ih_l{layer}"] = one if layer else np.zeros((1, 2), np.float32)
        state_dict[f"rnn.weight_hh_l{layer}"] = one
    with pytest.raises(LoadError, match=r"too large: network\.layers"):
        import_state_dict(state_dict, letters(2))
    del state_dict["rnn.weight_ih_l8"], state_dict["rnn.weight_hh_l8"]
    assert import_state_dict(state_dict, letters(2)).network.layers == 8


def test_a_number_that_is_not_finite_is_refused() -> None:
    golden = load_golden("rnn_1layer")
    golden.state_dict["output.bias"][3] = np.nan
    with pytest.raises(LoadError, match=r"output\.bias contains .* not a finite float32"):
        model_of(golden)


def test_text_without_a_prompt_begins_on_a_new_line_if_there_is_one() -> None:
    state_dict = {
        "output.weight": np.zeros((3, 1), np.float32),
        "rnn.weight_ih_l0": np.zeros((1, 3), np.float32),
        "rnn.weight_hh_l0": np.zeros((1, 1), np.float32),
    }
    newline = build_tokenizer(TokenizerConfig(), ["\t\nb"])
    assert import_state_dict(state_dict, newline).default_context == 1
    assert import_state_dict(state_dict, letters(3)).default_context == 0
    lines = build_tokenizer(TokenizerConfig(), ["a"], CorpusLayout.LINES)
    assert import_state_dict(state_dict, lines).default_context == lines.begin


def tied_state(equal: bool = True, embedding: int = 3) -> dict[str, NDArray[Any]]:
    """What a module trained with one array under two names saves."""
    shape = Shape(Cell.GRU, V=5, E=embedding, H=3, L=1)
    arrays = dict(Parameters.initial(shape, seed=1).named())
    if equal:
        arrays["Wy"] = np.ascontiguousarray(arrays["embedding"].T)
    return dict(to_torch(arrays, Cell.GRU, 1))


def test_equal_arrays_are_tied_only_on_request() -> None:
    untied = import_state_dict(tied_state(), letters(5))
    tied = import_state_dict(tied_state(), letters(5), tied_weights=True)
    assert (untied.network.tied_weights, tied.network.tied_weights) == (False, True)
    assert untied.parameters.shape.parameter_count - 15 == tied.parameters.shape.parameter_count
    assert tied.score("abcde", "a") == untied.score("abcde", "a")
    texts = {model.generate("a", max_new_tokens=20, seed=4) for model in (tied, untied)}
    assert len(texts) == 1


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    model = import_state_dict(tied_state(), letters(5), tied_weights=True)
    path = tmp_path / "tied.safetensors"
    model.save(path)
    tensors = load_file(path)
    assert tensors["output.weight"].tobytes() == tensors["embedding.weight"].tobytes()
    assert tensors.keys() == tied_state().keys()
    again = Model.load(path)
    assert again.network.tied_weights
    assert again.parameters.flat.tobytes() == model.parameters.flat.tobytes()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (tied_state(equal=False), "the output weights are not the embedding's"),
        (tied_state(equal=False, embedding=2), "tied_weights needs embedding_size 3"),
        (tied_state(equal=False, embedding=0), "tied_weights needs embedding_size 3"),
    ],
)
def test_weights_that_differ_cannot_be_tied(state: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        import_state_dict(state, letters(5), tied_weights=True)
