"""A layer over real-valued input: the reference's numbers, and errors that say what to give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import CELLS, assert_close, same_bytes

from treadle.kernels import reference
from treadle.kernels.random import uniform
from treadle.model import Adam, Cell, ConfigError, LayerError, RecurrentLayer
from treadle.model.network.parameters import FIRST_STREAM

PAGE = Path(__file__).parents[2] / "docs" / "layer.md"
Arrays = dict[str, NDArray[Any]]

SIZES = [
    # T, B, D, H
    (1, 1, 1, 1),
    (4, 3, 1, 5),
    (5, 2, 3, 4),
    (7, 3, 33, 9),
    (6, 5, 3, 33),
    pytest.param(19, 17, 33, 65, marks=pytest.mark.jit),
    pytest.param(3, 300, 3, 5, marks=pytest.mark.jit),  # more rows than a kernel takes at once
]


def draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def make(cell: str, D: int, H: int) -> RecurrentLayer:
    """A layer whose weights are somewhat larger than at the start of training."""
    layer = RecurrentLayer(cell, D, H, seed=4)
    layer.flat *= np.float32(1.5)
    return layer


def expected(layer: RecurrentLayer, given: Arrays) -> tuple[Arrays, Arrays]:
    """States and gradients by the reference, in float64."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    dhs = wide.pop("dhs")
    dcT = wide.pop("dcT", None)
    weights = {name: array.astype(np.float64) for name, array in layer.parameters.items()}
    Wx = weights["Wx"]
    Wh = weights["Wh"]
    xs = wide["xs"]
    gradients: Any
    if layer.cell is Cell.LSTM:
        hs, cs, gates = reference.lstm_forward(**wide, **weights)
        gradients = reference.lstm_backward(dhs, xs, hs, cs, gates, Wx, Wh, dcT)
        states = {"hs": hs, "cs": cs}
    elif layer.cell is Cell.GRU:
        hs, gates, hidden_ns = reference.gru_forward(**wide, **weights)
        gradients = reference.gru_backward(dhs, xs, hs, gates, hidden_ns, Wx, Wh)
        states = {"hs": hs}
    else:
        hs = reference.rnn_forward(**wide, **weights)
        gradients = reference.rnn_backward(dhs, xs, hs, Wx, Wh)
        states = {"hs": hs}
    return states, {name[1:]: array for name, array in gradients._asdict().items()}


def given_of(layer: RecurrentLayer, T: int, B: int) -> Arrays:
    D = layer.input_size
    H = layer.hidden_size
    given = {"xs": draw(1, T, B, D), "h0": draw(2, B, H), "dhs": draw(3, T, B, H)}
    if layer.cell is Cell.LSTM:
        given |= {"c0": draw(5, B, H), "dcT": draw(6, B, H)}
    return given


def run(layer: RecurrentLayer, given: Arrays) -> tuple[Arrays, Arrays]:
    hs, cs = layer.forward(given["xs"], given.get("h0"), given.get("c0"))
    dxs, gradients = layer.backward(given["dhs"], given.get("dcT"))
    return {"hs": hs} | ({} if cs is None else {"cs": cs}), {"xs": dxs} | gradients


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "D", "H"), SIZES)
def test_a_layer_is_that_of_the_reference(cell: str, T: int, B: int, D: int, H: int) -> None:
    layer = make(cell, D, H)
    given = given_of(layer, T, B)
    before = {name: array.copy() for name, array in given.items()}
    states, gradients = run(layer, given)
    expected_states, expected_gradients = expected(layer, given)
    assert_close(states, expected_states)
    assert_close(gradients, expected_gradients)
    assert all(same_bytes(given[name], array) for name, array in before.items())


def test_the_page_about_layers_shows_what_works() -> None:
    scope: dict[str, Any] = {}
    exec(PAGE.read_text().partition("```python\n")[2].partition("```")[0], scope)
    shapes = {name: scope[name].shape for name in ("hs", "cs", "dxs")}
    assert shapes == {"hs": (21, 4, 8), "cs": (21, 4, 8), "dxs": (20, 4, 3)}
    assert list(scope["gradients"]) == ["Wx", "Wh", "b", "h0", "c0"]


@pytest.mark.parametrize("cell", CELLS)
def test_states_begin_at_zeros(cell: str) -> None:
    layer = make(cell, 3, 5)
    given = given_of(layer, 4, 2)
    zeros = np.zeros((2, 5), np.float32)
    zeros_given = given | {"h0": zeros} | ({"c0": zeros, "dcT": zeros} if cell == "lstm" else {})
    plain = {name: given[name] for name in ("xs", "dhs")}
    for ours, expected in zip(run(layer, plain), run(layer, zeros_given), strict=True):
        assert ours.keys() == expected.keys()
        assert all(same_bytes(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_two_parts_is_the_whole(cell: str) -> None:
    layer = make(cell, 3, 5)
    xs = draw(1, 7, 2, 3)
    hs, cs = layer.forward(xs)
    first, c_first = layer.forward(xs[:3])
    second, _ = layer.forward(xs[3:], first[-1], None if c_first is None else c_first[-1])
    assert same_bytes(np.concatenate((first, second[1:])), np.ascontiguousarray(hs))
    assert (cs is None) == (cell != "lstm")


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_row_alone(cell: str) -> None:
    layer = make(cell, 3, 5)
    xs = draw(1, 6, 9, 3)
    dhs = draw(2, 6, 9, 5)
    hs, _ = layer.forward(xs)
    dxs, _ = layer.backward(dhs)
    for row in (0, 4, 8):
        one, _ = layer.forward(xs[:, row : row + 1])
        alone, _ = layer.backward(dhs[:, row : row + 1])
        assert same_bytes(np.ascontiguousarray(hs[:, row : row + 1]), np.ascontiguousarray(one))
        assert same_bytes(np.ascontiguousarray(dxs[:, row : row + 1]), alone)


def test_stacked_layers_learn_together() -> None:
    """Gradients through two layers: by how much a small step down lowers the loss."""
    lower = make("gru", 2, 4)
    upper = make("lstm", 4, 3)
    xs = draw(1, 5, 3, 2)
    expected = draw(2, 5, 3, 3)

    def loss() -> tuple[float, NDArray[np.float32]]:
        hs, _ = upper.forward(lower.forward(xs)[0][1:])
        return float(np.sum(hs[1:].astype(np.float64) * expected)), hs

    before, _ = loss()
    d_lower, _ = upper.backward(expected)
    lower.backward(d_lower)
    square = sum(float(np.square(x.gradient, dtype=np.float64).sum()) for x in (lower, upper))
    for layer in (lower, upper):
        layer.flat -= np.float32(1e-3 / square) * layer.gradient
    assert before - loss()[0] == pytest.approx(1e-3, rel=0.05)


def test_parameters_and_gradients_are_views_of_flat_buffers() -> None:
    layer = make("gru", 3, 5)
    shapes = {name: array.shape for name, array in layer.parameters.items()}
    assert shapes == {"Wx": (3, 15), "Wh": (5, 15), "b": (15,), "bh": (5,)}
    assert set(make("lstm", 3, 5).parameters) == {"Wx", "Wh", "b"}
    layer.forward(draw(1, 4, 2, 3))
    _, gradients = layer.backward(draw(2, 4, 2, 5))
    for name in shapes:
        assert np.shares_memory(layer.parameters[name], layer.flat)
        assert np.shares_memory(gradients[name], layer.gradient)
    assert set(gradients) == {*shapes, "h0"}


def test_weights_are_drawn_by_the_seed() -> None:
    one, same, other = (RecurrentLayer("rnn", 3, 16, seed) for seed in (7, 7, 8))
    assert same_bytes(one.flat, same.flat)
    assert not same_bytes(one.flat, other.flat)
    u = uniform(np.uint64(7), np.uint64(FIRST_STREAM), np.uint64(0))
    assert one.parameters["Wx"][0, 0] == np.float32(0.25) * (np.float32(2) * u - np.float32(1))
    assert 0.2 < np.abs(one.flat).max() <= 0.25


def test_results_outlive_the_next_run() -> None:
    layer = make("lstm", 3, 5)
    hs, cs = layer.forward(draw(1, 4, 2, 3))
    assert cs is not None
    kept = hs.copy(), cs.copy()
    layer.backward(draw(2, 4, 2, 5))
    layer.forward(draw(3, 4, 2, 3))
    assert same_bytes(hs, kept[0])
    assert same_bytes(cs, kept[1])
    with pytest.raises(ValueError, match="read-only"):
        hs[0] = 1


def test_slices_and_read_only_arrays_will_do() -> None:
    layer = make("gru", 3, 5)
    xs = draw(1, 8, 4, 6)
    dhs = draw(2, 4, 2, 5)
    part = xs[::2, 1:3, :3]
    results = []
    for one in (part, np.ascontiguousarray(part)):
        one.flags.writeable = one is not part
        hs, _ = layer.forward(one)
        dxs, gradients = layer.backward(dhs)
        results.append((hs.tobytes(), dxs.tobytes(), gradients["Wx"].tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("mamba", 3, 4), "cell"),
        (("gru", 0, 4), "input_size"),
        (("gru", 3, 0), "hidden_size"),
        (("gru", 3.5, 4), "input_size"),
        (("gru", 3, 4, -1), "seed"),
    ],
)
def test_bad_sizes_are_named(arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be ") as caught:
        RecurrentLayer(*arguments)
    assert caught.value.field == field


def test_adam_steps_as_the_references() -> None:
    """Over two buffers of other shapes, with the rate changed on the way."""
    buffers = draw(1, 7), draw(2, 3, 5)
    expected = [buffer.astype(np.float64) for buffer in buffers]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in expected]
    adam = Adam(*buffers, rate=0.05, beta2=0.95, weight_decay=0.1)
    for step in range(1, 6):
        gradients = [draw(step, *w.shape) for w in expected]
        adam.step(*gradients)
        for w, g, (m, v) in zip(expected, gradients, moments, strict=True):
            reference.adam_step(w, g, m, v, step, adam.rate, beta2=0.95, weight_decay=0.1)
        adam.rate *= 0.5
    for buffer, w in zip(buffers, expected, strict=True):
        np.testing.assert_allclose(buffer, w, rtol=1e-5, atol=1e-6)


def test_adam_takes_a_gradient_a_buffer() -> None:
    adam = Adam(draw(1, 3), draw(2, 2, 2))
    with pytest.raises(LayerError, match=r"give \[\(3,\), \(2, 2\)\]"):
        adam.step(draw(1, 3))
    with pytest.raises(LayerError, match="buffer 0 is not a contiguous, writable float32 array"):
        Adam(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="buffer 1 is not a contiguous, writable float32 array"):
        Adam(draw(1, 3), draw(1, 4)[::2])
    frozen = draw(1, 3)
    frozen.flags.writeable = False
    for wrong in (frozen, [1.0, 2.0]):
        with pytest.raises(
            LayerError, match="buffer 0 is not a contiguous, writable float32 array"
        ):
            Adam(wrong)  # type: ignore[arg-type]
    for gradient in ([1.0, 2.0, 3.0], np.zeros(3)):
        with pytest.raises(LayerError, match="a gradient is not a float32 array"):
            Adam(draw(1, 3)).step(gradient)  # type: ignore[arg-type]
    with pytest.raises(LayerError, match=r"beta1 1\.0 and beta2 0\.99: give 0 up to and without 1"):
        Adam(draw(1, 3), beta1=1.0)


F = np.float32
ZEROS = np.zeros((4, 2, 3), F)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xs": ZEROS.astype(float)}, r"xs is float64: give a NumPy array of float32, shape \(\*"),
        ({"xs": [[[1.0] * 3]]}, "xs is list"),
        ({"xs": ZEROS[0]}, r"xs has shape \(2, 3\): give \(\*, \*, 3\)"),
        ({"xs": np.zeros((4, 2, 5), F)}, r"xs has shape \(4, 2, 5\)"),
        ({"xs": np.zeros((0, 2, 3), F)}, r"1 or more"),
        ({"xs": np.zeros((4, 0, 3), F)}, r"1 or more"),
        ({"xs": ZEROS, "h0": np.zeros((1, 5), F)}, r"h0 has shape \(1, 5\): give \(2, 5\)"),
        ({"xs": ZEROS, "h0": np.zeros((2, 5))}, "h0 is float64"),
        ({"xs": ZEROS, "c0": np.zeros((2, 4), F)}, r"c0 has shape"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make("lstm", 3, 5).forward(**arguments)


def test_cell_states_are_the_lstms() -> None:
    layer = make("gru", 3, 5)
    states = np.zeros((2, 5), F)
    with pytest.raises(LayerError, match="c0 is given, but a layer of cell gru has no cell states"):
        layer.forward(ZEROS, c0=states)
    layer.forward(ZEROS)
    with pytest.raises(LayerError, match="dcT is given"):
        layer.backward(np.zeros((4, 2, 5), F), states)


def test_backward_needs_a_forward_of_its_own() -> None:
    layer = make("gru", 3, 5)
    dhs = np.zeros((4, 2, 5), F)
    with pytest.raises(LayerError, match="call forward before"):
        layer.backward(dhs)
    layer.forward(ZEROS)
    with pytest.raises(LayerError, match=r"dhs has shape \(3, 2, 5\): give \(4, 2, 5\)"):
        layer.backward(dhs[:3])
    layer.backward(dhs)  # what was refused has used nothing up
    with pytest.raises(LayerError, match="call forward before"):
        layer.backward(dhs)
