from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN_NAMES, load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell
from treadle.model.errors import LoadError
from treadle.model.network.shape import GATES
from treadle.model.network.torch_state_dict import from_torch, network_of, to_torch

Arrays = dict[str, NDArray[Any]]


def make(cell: Cell, layers: int = 2, hidden: int = 3, embedding: int = 2, seed: int = 0) -> Arrays:
    """Parameters in memory, with a zero of each sign among them."""
    random = np.random.default_rng(seed)
    gates = GATES[cell] * hidden
    vocabulary = 5
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, embedding)} if embedding else {}
    for layer in range(layers):
        shapes[f"Wx{layer}"] = (hidden if layer else embedding or vocabulary, gates)
        shapes[f"Wh{layer}"] = (hidden, gates)
        shapes[f"b{layer}"] = (gates,)
        if cell is Cell.GRU:
            shapes[f"bh{layer}"] = (hidden,)
    shapes |= {"Wy": (hidden, vocabulary), "by": (vocabulary,)}
    arrays: Arrays = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for array in arrays.values():
        array.flat[0] = -0.0
    return arrays


def same_bytes(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@settings(deadline=None)
@given(
    cell=st.sampled_from(Cell),
    layers=st.integers(1, 3),
    hidden=st.integers(1, 5),
    embedding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_round_trip_is_exact(
    cell: Cell, layers: int, hidden: int, embedding: int, seed: int
) -> None:
    parameters = make(cell, layers, hidden, embedding, seed)
    named = to_torch(parameters, cell, layers)
    again_cell, again = from_torch(named)
    assert again_cell is cell
    assert same_bytes(again, parameters)
    assert same_bytes(to_torch(again, cell, layers), named)
    assert network_of(cell, again) == NetworkConfig(cell, hidden, layers, embedding)
    for array in (*named.values(), *again.values()):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.owndata


def test_names_and_layout() -> None:
    parameters = make(Cell.GRU, layers=1)
    named = to_torch(parameters, Cell.GRU, 1)
    assert list(named) == [
        "embedding.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.bias_ih_l0",
        "rnn.bias_hh_l0",
        "output.weight",
        "output.bias",
    ]
    assert np.array_equal(named["rnn.weight_ih_l0"], parameters["Wx0"].T)
    assert np.array_equal(named["rnn.bias_hh_l0"], [*[0] * 6, *parameters["bh0"]])
    assert named["output.weight"].shape == (5, 3)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_what_pytorch_trained(name: str) -> None:
    golden = load_golden(name)
    cell, parameters = from_torch(golden.state_dict)
    assert cell == golden.cell
    assert same_bytes(parameters, golden.parameters)
    assert network_of(cell, parameters).cell is cell


@pytest.mark.parametrize("embedding", ["embedding", "embed", "encoder"])
@pytest.mark.parametrize("rnn", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("output", ["output", "head", "linear", "fc", "decoder"])
def test_other_names_of_the_modules(embedding: str, rnn: str, output: str) -> None:
    parameters = make(Cell.LSTM)
    modules = {"embedding": embedding, "rnn": rnn, "output": output}
    named = {}
    for name, array in to_torch(parameters, Cell.LSTM, 2).items():
        module, _, rest = name.partition(".")
        named[f"{modules[module]}.{rest}"] = array
    assert same_bytes(from_torch(named)[1], parameters)


@pytest.mark.parametrize("cell", list(Cell))
def test_missing_biases_are_zeros(cell: Cell) -> None:
    named = to_torch(make(cell), cell, 2)
    bare = {name: array for name, array in named.items() if "bias" not in name}
    _, parameters = from_torch(bare)
    for name, array in parameters.items():
        assert array.any() != name.startswith("b")
    assert parameters.keys() == make(cell).keys()


class Tensor:
    """An array of another library, which NumPy can read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self.array.size == 0:
            raise RuntimeError("no storage")
        return self.array


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_anything_that_numpy_reads(dtype: type) -> None:
    named = to_torch(make(Cell.LSTM), Cell.LSTM, 2)
    tensors = {name: Tensor(array.astype(dtype)) for name, array in named.items()}
    arrays = {name: array.astype(dtype).astype(np.float32) for name, array in named.items()}
    assert same_bytes(from_torch(tensors)[1], from_torch(arrays)[1])


def test_double_biases_are_added_before_they_are_rounded() -> None:
    named: Arrays = dict(to_torch(make(Cell.RNN, 1), Cell.RNN, 1))
    named["rnn.bias_ih_l0"] = np.full(3, 1.0)
    named["rnn.bias_hh_l0"] = np.full(3, 2**-24 + 2**-40)
    assert from_torch(named)[1]["b0"].tolist() == [1 + 2**-23] * 3


def changed(**changes: Any) -> Arrays:
    named: dict[str, Any] = dict(to_torch(make(Cell.LSTM), Cell.LSTM, 2))
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del named[name]
        else:
            named[name] = value
    return named


NAN = np.full((5, 2), np.nan, np.float32)


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, "lacks rnn.weight_ih_l0"),
        (changed(rnn__weight_ih_l1=None), "lacks rnn.weight_ih_l1"),
        (changed(rnn__weight_hh_l0=None), "lacks rnn.weight_hh_l0"),
        (changed(output__weight=None), "lacks output.weight"),
        (changed(rnn__bias_hh_l1=None), "lacks rnn.bias_hh_l1"),
        (changed(rnn__weight_hh_l3=np.zeros((12, 3))), "lacks rnn.weight_ih_l2"),
        (
            changed(rnn__weight_hh_l99999=np.zeros((12, 3))),
            "'rnn.weight_hh_l99999' is not",
        ),
        (changed(norm__weight=np.zeros(3)), "'norm.weight' is not a parameter"),
        (changed(output__scale=np.zeros(3)), "'output.scale' is not a parameter"),
        (changed(embed__weight=np.zeros((5, 2))), "embedding.weight twice, once as embed.weight"),
        (changed(rnn__weight_ih_l0_reverse=np.zeros((12, 2))), "bidirectional"),
        (changed(rnn__weight_hr_l0=np.zeros((2, 3))), "projections"),
        (changed(rnn__weight_hh_l0=np.zeros((6, 3))), "which fits no cell"),
        (changed(rnn__weight_hh_l0=np.zeros(12)), "which fits no cell"),
        (changed(rnn__weight_hh_l0=np.zeros((0, 0))), "which fits no cell"),
        (changed(rnn__weight_hh_l0=np.zeros((4, 1))), "has shape"),
        (changed(rnn__weight_hh_l1=np.zeros((9, 3))), "shape (9, 3), not (12, 3)"),
        (changed(rnn__weight_ih_l1=np.zeros((12, 2))), "shape (12, 2), not (12, 3)"),
        (changed(rnn__bias_ih_l0=np.zeros(3)), "shape (3,), not (12,)"),
        (changed(output__weight=np.zeros((5, 4))), "shape (5, 4), not (5, 3)"),
        (changed(output__weight=np.zeros((4, 3))), "shape (5, 2), not (4, 2)"),
        (changed(output__weight=np.float32(1)), "has shape"),
        (changed(output__bias=np.zeros(4)), "shape (4,), not (5,)"),
        (changed(embedding__weight=np.zeros((5, 4))), "shape (12, 2), not (12, 4)"),
        (changed(embedding__weight=np.zeros(5)), "has shape (5,)"),
        (changed(embedding__weight=None), "shape (12, 2), not (12, 5)"),
        (changed(embedding__weight=NAN), "embedding.weight contains a value"),
        (changed(output__bias=np.full(5, 1e300)), "output.bias contains a value"),
        (changed(output__bias=np.zeros(5, int)), "int64"),
        (changed(output__bias=["a"] * 5), "output.bias is of type"),
        (changed(output__bias=Tensor(np.zeros(0))), "cannot be read as an array: no storage"),
        (changed(output__bias=[[1.0], [1.0, 2.0]]), "output.bias cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(state_dict: Arrays, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        from_torch(state_dict)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_networks_beyond_the_limits() -> None:
    parameters = make(Cell.RNN, layers=9)
    with pytest.raises(LoadError, match=r"too large: network\.layers"):
        network_of(Cell.RNN, parameters)
