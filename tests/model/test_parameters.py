from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from treadle.kernels import reference
from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell
from treadle.model.errors import ConfigError, LoadError
from treadle.model.network.parameters import Parameters, flat_size, flat_views
from treadle.model.network.shape import Shape, check_network

SHAPES = [
    Shape(cell, V=5, E=embedding, H=3, L=layers)
    for cell, embedding, layers in itertools.product(Cell, (0, 2), (1, 3))
]
TIED = [Shape(cell, V=5, E=3, H=3, L=layers, tied=True) for cell in Cell for layers in (1, 3)]


@pytest.mark.parametrize("shape", SHAPES + TIED, ids=str)
def test_names_and_shapes_are_those_of_the_reference(shape: Shape) -> None:
    rng = np.random.default_rng(0)
    sizes = shape.V, shape.E, shape.H, shape.L
    expected = reference.initialize(shape.cell, *sizes, rng, tied=shape.tied)
    assert shape.named == {name: array.shape for name, array in expected.items()}
    assert shape.parameter_count == sum(array.size for array in expected.values())


def test_the_parameters_of_an_lstm_are_counted_by_hand() -> None:
    shape = Shape.of(NetworkConfig(Cell.LSTM, hidden_size=3, layers=2, embedding_size=2), 5)
    layers = 4 * (2 * 3 + 3 * 3 + 3) + 4 * (3 * 3 + 3 * 3 + 3)
    assert shape.parameter_count == 5 * 2 + layers + 3 * 5 + 5


@pytest.mark.parametrize("shape", SHAPES + TIED, ids=str)
def test_every_number_has_one_place_in_the_buffer(shape: Shape) -> None:
    parameters = Parameters(shape)
    for place, view in enumerate(parameters.named().values(), start=1):
        view += place
    for place, (name, view) in enumerate(parameters.named().items(), start=1):
        assert view.shape == shape.named[name]
        assert np.all(view == place), f"{name} shares memory with another"
    assert np.count_nonzero(parameters.flat) == shape.parameter_count


def test_views_begin_on_cache_lines_and_touch_nobody() -> None:
    shapes = {"one": (3, 5), "nothing": (0, 0), "two": (17,), "three": (16,)}
    flat = np.zeros(flat_size(shapes), np.float32)
    views = flat_views(flat, shapes)
    assert flat_size(shapes) == 16 + 0 + 32 + 16
    for name, shape in shapes.items():
        assert views[name].shape == shape
        assert views[name].flags.c_contiguous
        views[name] += 1
    starts = [views[name].ctypes.data - flat.ctypes.data for name in ("one", "two", "three")]
    assert [start % 64 for start in starts] == [0, 0, 0]
    assert np.sum(flat) == 15 + 17 + 16


@pytest.mark.parametrize("shape", SHAPES + TIED, ids=str)
def test_initial_weights_fill_their_range(shape: Shape) -> None:
    named = Parameters.initial(shape, seed=1).named()
    for name, array in named.items():
        wide = name == "embedding" and not shape.tied
        limit = math.sqrt(3) if wide else 1 / math.sqrt(shape.H)
        assert np.all(np.abs(array) <= np.float32(limit)), name
        assert len(np.unique(array)) > 1, f"{name} was not drawn"


def test_embeddings_have_unit_variance_and_no_mean() -> None:
    embedding = Parameters.initial(Shape(Cell.RNN, V=200, E=50, H=1, L=1), seed=0).stacks.embedding
    assert abs(float(embedding.mean())) < 0.05
    assert abs(float(embedding.std()) - 1) < 0.05


def test_only_the_gru_has_a_second_bias() -> None:
    for cell in Cell:
        parameters = Parameters.initial(Shape(cell, V=3, E=2, H=4, L=2), seed=0)
        assert np.any(parameters.stacks.bh) == (cell is Cell.GRU)
        assert np.count_nonzero(parameters.flat) == parameters.shape.parameter_count


def test_the_seed_decides_and_nothing_else() -> None:
    shape = Shape(Cell.GRU, V=5, E=2, H=3, L=2)
    one, same, other = (Parameters.initial(shape, seed) for seed in (7, 7, 8))
    assert one.flat.tobytes() == same.flat.tobytes()
    for name, array in other.named().items():
        assert array.tobytes() != one.named()[name].tobytes(), name
    beginnings = {
        stack.reshape(-1)[:3].tobytes()
        for stack in one.stacks
        if stack.size and stack is not one.stacks.embedding
    }
    assert len(beginnings) == 7, "every array is drawn from a stream of its own"
    # What one array draws does not depend on how much another drew.
    larger = Parameters.initial(Shape(Cell.GRU, V=9, E=2, H=3, L=2), seed=7)
    assert larger.stacks.Wh.tobytes() == one.stacks.Wh.tobytes()
    largest = Parameters.initial(shape, seed=2**64 - 1)
    assert np.isfinite(largest.flat).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_named_arrays_come_in_as_they_went_out(shape: Shape) -> None:
    parameters = Parameters.initial(shape, seed=3)
    copies = {name: array.copy() for name, array in parameters.named().items()}
    again = Parameters.from_named(shape, copies)
    assert again.flat.tobytes() == parameters.flat.tobytes()
    copies["Wy"][:] = 0
    assert np.all(again.stacks.Wy != 0), "the arrays are copied, not kept"


def test_named_arrays_that_do_not_fit_are_refused_by_name() -> None:
    shape = Shape(Cell.RNN, V=5, E=0, H=3, L=1)
    named = dict(Parameters(shape).named())
    with pytest.raises(LoadError, match=r"see Wh0$"):
        Parameters.from_named(shape, {name: a for name, a in named.items() if name != "Wh0"})
    with pytest.raises(LoadError, match=r"see Wx1$"):
        Parameters.from_named(shape, {**named, "Wx1": named["Wx0"]})
    with pytest.raises(LoadError, match=r"^parameter b0 has shape \(4,\), not \(3,\)$"):
        Parameters.from_named(shape, {**named, "b0": np.zeros(4, np.float32)})


def test_a_false_claim_of_size_is_refused_before_it_costs_memory() -> None:
    small = dict(Parameters(Shape(Cell.LSTM, V=2, E=0, H=1, L=8)).named())
    with pytest.raises(LoadError, match="has shape"):
        Parameters.from_named(Shape(Cell.LSTM, V=10**9, E=0, H=10**9, L=8), small)


@pytest.mark.parametrize("shape", TIED, ids=str)
def test_tied_weights_come_in_with_their_second_name_or_without(shape: Shape) -> None:
    parameters = Parameters.initial(shape, seed=3)
    named = dict(parameters.named())
    assert "Wy" not in named
    twice = {**named, "Wy": named["embedding"].T.copy()}
    for arrays in (named, twice):
        assert Parameters.from_named(shape, arrays).flat.tobytes() == parameters.flat.tobytes()
    twice["Wy"][1, 2] += 1
    with pytest.raises(LoadError, match="are not the embedding's: load them without tied"):
        Parameters.from_named(shape, twice)


@pytest.mark.parametrize("embedding", [0, 2])
def test_tied_weights_need_equal_sizes(embedding: int) -> None:
    config = NetworkConfig(hidden_size=3, embedding_size=embedding, tied_weights=True)
    for refusing in (check_network, lambda network: Shape.of(network, 5)):
        with pytest.raises(ConfigError, match="needs embedding_size 3") as caught:
            refusing(config)
        assert caught.value.field == "network.tied_weights"
    assert Shape.of(NetworkConfig(hidden_size=3, embedding_size=3, tied_weights=True), 5).tied
