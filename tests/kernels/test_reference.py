"""The plain NumPy reference against finite differences, hand formulas and its own claims."""

import doctest
import functools
from collections.abc import Callable
from typing import Any

import gradcheck
import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels import reference

Array = NDArray[np.floating[Any]]
Arrays = dict[str, Array]
Loss = Callable[[], float]

SIZES = [(1, 1, 1, 1), (5, 3, 2, 4)]
CELLS = ["rnn", "lstm", "gru"]


def draw(rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    """Draws arrays large enough that gates leave the middle of their range."""
    return {name: rng.uniform(-1.2, 1.2, shape) for name, shape in shapes.items()}


def cell_arrays(cell: str, T: int, B: int, D: int, H: int) -> Arrays:
    """Draws every input, state and weight of a cell, named as its forward function's arguments."""
    GH = reference.GATES[cell] * H
    shapes = {"xs": (T, B, D), "h0": (B, H), "Wx": (D, GH), "Wh": (H, GH), "b": (GH,)}
    if cell == "lstm":
        shapes["c0"] = (B, H)
    if cell == "gru":
        shapes["bh"] = (H,)
    return draw(np.random.default_rng(T + H), **shapes)


def cell_forward(cell: str, arrays: Arrays) -> list[Array]:
    """Runs a cell and returns all of what its forward function does, the hidden states first."""
    if cell == "rnn":
        return [reference.rnn_forward(**arrays)]
    if cell == "lstm":
        return list(reference.lstm_forward(**arrays))
    return list(reference.gru_forward(**arrays))


def cell_backward(
    cell: str, dhs: Array, dcT: Array, arrays: Arrays, outputs: list[Array]
) -> Arrays:
    """Runs a cell backward and returns gradients by the names of `cell_arrays`."""
    tape = (dhs, arrays["xs"], *outputs, arrays["Wx"], arrays["Wh"])
    backward: dict[str, Callable[..., Any]] = {
        "rnn": reference.rnn_backward,
        "lstm": functools.partial(reference.lstm_backward, dcT=dcT),
        "gru": reference.gru_backward,
    }
    gradients = backward[cell](*tape)
    return {name.removeprefix("d"): value for name, value in gradients._asdict().items()}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "D", "H"), SIZES)
def test_cell_gradients_equal_finite_differences(cell: str, T: int, B: int, D: int, H: int) -> None:
    arrays = cell_arrays(cell, T, B, D, H)
    # Any function of all hidden states, and of the LSTM's last cell state, will do: a weighted sum.
    needed = draw(np.random.default_rng(7), dhs=(T, B, H), dcT=(B, H))

    def loss() -> float:
        hs, *rest = cell_forward(cell, arrays)
        total = np.sum(needed["dhs"] * hs[1:])
        if cell == "lstm":
            total += np.sum(needed["dcT"] * rest[0][-1])
        return float(total)

    outputs = cell_forward(cell, arrays)
    gradients = cell_backward(cell, needed["dhs"], needed["dcT"], arrays, outputs)
    gradcheck.assert_gradients(loss, arrays, gradients)


def test_lstm_without_gradient_of_the_final_cell_state() -> None:
    arrays = cell_arrays("lstm", 3, 2, 2, 3)
    dhs = draw(np.random.default_rng(8), dhs=(3, 2, 3))["dhs"]
    hs, cs, gates = reference.lstm_forward(**arrays)
    tape = (arrays["xs"], hs, cs, gates, arrays["Wx"], arrays["Wh"])
    left = reference.lstm_backward(dhs, *tape)
    right = reference.lstm_backward(dhs, *tape, dcT=np.zeros((2, 3)))
    for name in left._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_leaves_its_arguments_alone(cell: str) -> None:
    arrays = cell_arrays(cell, 3, 2, 2, 3)
    dhs, dcT = draw(np.random.default_rng(8), dhs=(3, 2, 3), dcT=(2, 3)).values()
    outputs = cell_forward(cell, arrays)
    before = [array.copy() for array in (*arrays.values(), *outputs, dhs, dcT)]
    cell_backward(cell, dhs, dcT, arrays, outputs)
    for old, new in zip(before, (*arrays.values(), *outputs, dhs, dcT), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_gradient_is_found(cell: str) -> None:
    """A check that nothing fails is no check: each gradient in turn is off by 1e-5 of itself."""
    arrays = cell_arrays(cell, 2, 2, 2, 2)
    dhs = np.ones((2, 2, 2))

    def loss() -> float:
        return float(np.sum(cell_forward(cell, arrays)[0][1:]))

    outputs = cell_forward(cell, arrays)
    gradients = cell_backward(cell, dhs, np.zeros((2, 2)), arrays, outputs)
    gradcheck.assert_gradients(loss, arrays, gradients)
    for name, gradient in gradients.items():
        wrong = gradients | {name: gradient * (1 + 1e-5)}
        with pytest.raises(AssertionError, match=name):
            gradcheck.assert_gradients(loss, arrays, wrong)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_one_step_of_each_cell_by_hand() -> None:
    """Finite differences cannot tell one cell from another: the equations, in numbers."""
    x = np.array([[[0.5]]])
    h = np.array([[-0.3]])
    c = np.array([[0.8]])
    Wx = np.array([[0.1, -0.2, 0.3, 0.7]])
    Wh = np.array([[0.4, 0.6, -0.5, 0.2]])
    b = np.array([0.05, 0.15, -0.1, 0.25])
    bh = np.array([0.35])
    a = 0.5 * Wx[0] - 0.3 * Wh[0] + b

    hs = reference.rnn_forward(x, h, Wx[:, :1], Wh[:, :1], b[:1])
    assert hs[:, 0, 0] == pytest.approx([-0.3, np.tanh(a[0])], rel=1e-14)

    i = sigmoid(a[0])
    f = sigmoid(a[1])
    g = np.tanh(a[2])
    o = sigmoid(a[3])
    hs, cs, gates = reference.lstm_forward(x, h, c, Wx, Wh, b)
    assert gates[0, 0] == pytest.approx([i, f, g, o], rel=1e-14)
    assert cs[:, 0, 0] == pytest.approx([0.8, f * 0.8 + i * g], rel=1e-14)
    assert hs[:, 0, 0] == pytest.approx([-0.3, o * np.tanh(f * 0.8 + i * g)], rel=1e-14)

    hidden_n = -0.3 * -0.5 + 0.35
    r = sigmoid(a[0])
    z = sigmoid(a[1])
    n = np.tanh(0.5 * 0.3 - 0.1 + r * hidden_n)
    hs, gates, hidden_ns = reference.gru_forward(x, h, Wx[:, :3], Wh[:, :3], b[:3], bh)
    assert gates[0, 0] == pytest.approx([r, z, n], rel=1e-14)
    assert hidden_ns[0, 0] == pytest.approx([hidden_n], rel=1e-14)
    assert hs[:, 0, 0] == pytest.approx([-0.3, (1 - z) * n - z * 0.3], rel=1e-14)


def test_sigmoid_far_from_zero() -> None:
    values = reference.sigmoid(np.array([-1e4, -800.0, -40.0, 0.0, 40.0, 1e4]))
    assert values == pytest.approx([0, 0, np.exp(-40), 0.5, 1, 1], rel=1e-14)


# ---------------------------------------------------------------- input, output, loss


def test_one_hot() -> None:
    vectors = reference.one_hot(np.array([[2, 0], [1, 2]]), 3, np.float32)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]]


def test_embedding_is_a_product_with_one_hot_vectors() -> None:
    rng = np.random.default_rng(1)
    tokens = np.array([[2, 0, 2], [2, 3, 1]])  # 2 twice in one step, and again in the next
    embedding = rng.standard_normal((5, 4))
    dxs = rng.standard_normal((2, 3, 4))
    vectors = reference.one_hot(tokens, 5)
    np.testing.assert_array_equal(
        reference.embedding_forward(tokens, embedding), vectors @ embedding
    )
    np.testing.assert_allclose(
        reference.embedding_backward(dxs, tokens, embedding),
        np.einsum("tbv,tbe->ve", vectors, dxs),
        rtol=1e-12,
        atol=1e-15,
    )


def test_output_gradients_equal_finite_differences() -> None:
    arrays = draw(np.random.default_rng(2), hs=(4, 2, 3), Wy=(3, 5), by=(5,))
    dlogits = np.random.default_rng(3).standard_normal((3, 2, 5))

    def loss() -> float:
        return float(np.sum(dlogits * reference.output_forward(**arrays)))

    gradients = reference.output_backward(dlogits, arrays["hs"], arrays["Wy"])
    dhs = np.concatenate((np.zeros((1, 2, 3)), gradients.dhs))  # row 0 is not looked at
    gradcheck.assert_gradients(loss, arrays, {"hs": dhs, "Wy": gradients.dWy, "by": gradients.dby})


def test_cross_entropy_with_ignored_targets() -> None:
    arrays = draw(np.random.default_rng(4), logits=(3, 2, 5))
    targets = np.array([[0, 4], [-1, 2], [-1, -7]])

    def mean_loss() -> float:
        loss_sum, count, _ = reference.softmax_cross_entropy(arrays["logits"], targets)
        return loss_sum / count

    loss_sum, count, dlogits = reference.softmax_cross_entropy(arrays["logits"], targets)
    gradcheck.assert_gradients(mean_loss, arrays, {"logits": dlogits})
    assert count == 3
    assert np.all(dlogits[targets < 0] == 0)
    p = np.exp(arrays["logits"])
    p /= p.sum(axis=-1, keepdims=True)
    surprise = -np.log([p[0, 0, 0], p[0, 1, 4], p[1, 1, 2]])
    assert loss_sum == pytest.approx(surprise.sum(), rel=1e-14)


def test_cross_entropy_of_equal_logits_is_log_of_the_vocabulary() -> None:
    loss_sum, count, _ = reference.softmax_cross_entropy(
        np.full((2, 3, 7), 1e5), np.ones((2, 3), int)
    )
    assert loss_sum / count == pytest.approx(np.log(7), rel=1e-14)


def test_cross_entropy_of_nothing() -> None:
    loss_sum, count, dlogits = reference.softmax_cross_entropy(
        np.ones((1, 2, 3)), np.full((1, 2), -1)
    )
    assert (loss_sum, count) == (0, 0)
    assert np.all(dlogits == 0)


# ---------------------------------------------------------------- the whole network


@pytest.mark.parametrize("E", [0, 3], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_network_gradients_equal_finite_differences(cell: str, L: int, E: int) -> None:
    T = 4
    B = 3
    V = 5
    H = 3
    rng = np.random.default_rng(5)
    parameters = {
        name: weights * 1.5 for name, weights in reference.initialize(cell, V, E, H, L, rng).items()
    }
    tokens = rng.integers(V, size=(T, B))
    targets = rng.integers(V, size=(T, B))
    targets[0, 1] = targets[3, 2] = -1
    hs, cs = draw(rng, hs=(L, B, H), cs=(L, B, H)).values()
    states = (hs, cs if cell == "lstm" else None)

    def mean_loss() -> float:
        loss_sum, count, _, _ = reference.network_loss_and_gradients(
            parameters, cell, tokens, targets, states
        )
        return loss_sum / count

    _, count, gradients, _ = reference.network_loss_and_gradients(
        parameters, cell, tokens, targets, states
    )
    assert count == T * B - 2
    gradcheck.assert_gradients(mean_loss, parameters, gradients)


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_tied_weights_equal_finite_differences(cell: str, L: int) -> None:
    T = 3
    B = 2
    V = 5
    H = 3
    rng = np.random.default_rng(25)
    parameters = reference.initialize(cell, V, H, H, L, rng, tied=True)
    assert "Wy" not in parameters
    tokens = rng.integers(V, size=(T, B))
    targets = rng.integers(V, size=(T, B))
    targets[1, 0] = -1
    states = reference.zero_states(parameters, cell, B)
    assert states[0].shape == (L, B, H)

    def mean_loss() -> float:
        loss_sum, count, _, _ = reference.network_loss_and_gradients(
            parameters, cell, tokens, targets, states
        )
        return loss_sum / count

    arguments = cell, tokens, targets, states
    loss, _, gradients, _ = reference.network_loss_and_gradients(parameters, *arguments)
    gradcheck.assert_gradients(mean_loss, parameters, gradients)
    untied = {**parameters, "Wy": parameters["embedding"].T.copy()}
    same_loss, _, parts, _ = reference.network_loss_and_gradients(untied, *arguments)
    assert same_loss == loss
    np.testing.assert_array_equal(parts["embedding"] + parts["Wy"].T, gradients["embedding"])


@pytest.mark.parametrize(("L", "masked"), [(2, 1), (3, 2), (1, 1), (2, 2)])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_with_dropout_equal_finite_differences(cell: str, L: int, masked: int) -> None:
    T = 3
    B = 2
    V = 5
    E = 3
    H = 4
    rng = np.random.default_rng(15)
    parameters = {
        name: weights * 1.5 for name, weights in reference.initialize(cell, V, E, H, L, rng).items()
    }
    tokens = rng.integers(V, size=(T, B))
    targets = rng.integers(V, size=(T, B))
    hs, cs = draw(rng, hs=(L, B, H), cs=(L, B, H)).values()
    states = (hs, cs if cell == "lstm" else None)
    masks = reference.dropout_masks(0.4, (masked, T, B, H), rng)
    assert set(np.unique(masks)) == {0, 1 / 0.6}

    def mean_loss() -> float:
        loss_sum, count, _, _ = reference.network_loss_and_gradients(
            parameters, cell, tokens, targets, states, masks
        )
        return loss_sum / count

    arguments = parameters, cell, tokens, targets, states
    _, _, gradients, _ = reference.network_loss_and_gradients(*arguments, masks)
    _, _, without, _ = reference.network_loss_and_gradients(*arguments)
    assert not np.allclose(gradients["Wx0"], without["Wx0"])
    if masked == L:
        assert not np.allclose(gradients["Wy"], without["Wy"])
    gradcheck.assert_gradients(mean_loss, parameters, gradients)


def test_masks_drop_a_share_and_keep_the_mean() -> None:
    masks = reference.dropout_masks(0.3, (2, 50, 10, 20), np.random.default_rng(16), np.float32)
    assert masks.dtype == np.float32
    assert (masks == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert masks.mean() == pytest.approx(1, abs=0.03)
    assert (reference.dropout_masks(0, (1, 2, 3, 4), np.random.default_rng(0)) == 1).all()


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_dropped_does_not_reach_the_layer_above(cell: str) -> None:
    """With all units dropped, the upper layer sees nothing of the tokens."""
    parameters = reference.initialize(cell, 5, 2, 4, 2, np.random.default_rng(17))
    tokens = np.array([[0, 1], [2, 3]])
    states = reference.zero_states(parameters, cell, B=2)
    masks = np.zeros((1, 2, 2, 4))
    logits, (hs, _), _ = reference.network_forward(parameters, cell, tokens, states, masks)
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])
    _, (untouched, _), _ = reference.network_forward(parameters, cell, tokens, states)
    np.testing.assert_array_equal(hs[0], untouched[0])  # the recurrence continues as without


@pytest.mark.parametrize("cell", CELLS)
def test_states_carry_a_sequence_over_a_cut(cell: str) -> None:
    parameters = reference.initialize(cell, 5, 2, 4, 2, np.random.default_rng(6))
    tokens = np.random.default_rng(7).integers(5, size=(6, 3))
    states = reference.zero_states(parameters, cell, B=3)
    whole, end, _ = reference.network_forward(parameters, cell, tokens, states)
    first, middle, _ = reference.network_forward(parameters, cell, tokens[:2], states)
    second, end_of_second, _ = reference.network_forward(parameters, cell, tokens[2:], middle)
    np.testing.assert_allclose(np.concatenate((first, second)), whole, rtol=1e-13)
    np.testing.assert_allclose(end_of_second[0], end[0], rtol=1e-13)
    if cell == "lstm":
        assert end[1] is not None
        assert end_of_second[1] is not None
        np.testing.assert_allclose(end_of_second[1], end[1], rtol=1e-13)
    else:
        assert end[1] is None


@pytest.mark.parametrize("cell", CELLS)
def test_float32_stays_float32(cell: str) -> None:
    rng = np.random.default_rng(8)
    parameters = reference.initialize(cell, 5, 2, 4, 2, rng, np.float32)
    tokens = rng.integers(5, size=(6, 3))
    states = reference.zero_states(parameters, cell, B=3)
    _, _, gradients, (hs, cs) = reference.network_loss_and_gradients(
        parameters, cell, tokens, tokens, states
    )
    made = [*gradients.values(), hs, *([] if cs is None else [cs])]
    assert {array.dtype for array in made} == {np.dtype(np.float32)}
    assert gradients.keys() == parameters.keys()


@pytest.mark.parametrize("cell", CELLS)
def test_initialize_draws_as_pytorch_does(cell: str) -> None:
    parameters = reference.initialize(cell, 50, 8, 25, 2, np.random.default_rng(9))
    G = reference.GATES[cell]
    expected = {"embedding": (50, 8), "Wy": (25, 50), "by": (50,)}
    for layer, D in enumerate((8, 25)):
        expected |= {f"Wx{layer}": (D, G * 25), f"Wh{layer}": (25, G * 25), f"b{layer}": (G * 25,)}
        if cell == "gru":
            expected[f"bh{layer}"] = (25,)
    assert {name: array.shape for name, array in parameters.items()} == expected
    assert np.std(parameters.pop("embedding")) == pytest.approx(1, abs=0.1)
    for name, array in parameters.items():
        assert np.abs(array).max() <= 0.2, name
        assert np.abs(array).max() > 0.15, name
        assert np.abs(array.mean()) < 0.1, name


# ---------------------------------------------------------------- clipping and descent


def test_clip_by_value() -> None:
    gradients = {"Wx0": np.array([[-7.0, 0.5], [5.0, 6.0]]), "b0": np.array([1.0, -5.5])}
    reference.clip_by_value(gradients, 5.0)
    assert gradients["Wx0"].tolist() == [[-5, 0.5], [5, 5]]
    assert gradients["b0"].tolist() == [1, -5]


def test_clip_by_global_norm() -> None:
    gradients = {"Wx0": np.array([[3.0, 0.0]]), "b0": np.array([0.0, -4.0])}
    assert reference.clip_by_global_norm(gradients, 6.0) == 5
    assert gradients["Wx0"].tolist() == [[3, 0]]
    assert reference.clip_by_global_norm(gradients, 1.0) == 5
    assert gradients["Wx0"][0] == pytest.approx([0.6, 0])
    assert gradients["b0"] == pytest.approx([0, -0.8])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_three_steps_of_each_optimizer_by_hand(dtype: type[np.floating[Any]]) -> None:
    slopes = [2.0, -1.0, 0.5]
    lr = 0.1
    wd = 0.3
    beta1 = 0.9
    beta2 = 0.99
    sgd = adagrad = adam = 1.0
    G = m = v = 0.0
    ws = np.ones((3, 2, 2), dtype)
    sums, means, squares = np.zeros((3, 2, 2), dtype)
    for step, slope in enumerate(slopes, start=1):
        g = np.full((2, 2), slope, dtype)
        reference.sgd_step(ws[0], g, lr)
        reference.adagrad_step(ws[1], g, sums, lr)
        reference.adam_step(ws[2], g, means, squares, step, lr, beta1, beta2, weight_decay=wd)
        assert (g == slope).all()

        sgd -= lr * slope
        G += slope**2
        adagrad -= lr * slope / (G**0.5 + 1e-10)
        adam -= adam * lr * wd
        m = beta1 * m + (1 - beta1) * slope
        v = beta2 * v + (1 - beta2) * slope**2
        adam -= lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + 1e-8)
        for w, expected in zip(ws, (sgd, adagrad, adam), strict=True):
            np.testing.assert_allclose(w, expected, rtol=1e-6 if dtype is np.float32 else 1e-13)


def test_adam_moves_by_the_learning_rate_at_first() -> None:
    """Its first step has the gradient's sign and no trace of its size: a fact of the paper."""
    w = np.zeros(3)
    g = np.array([1e-3, -10.0, 1.0])
    reference.adam_step(w, g, np.zeros(3), np.zeros(3), step=1, lr=0.01)
    assert w == pytest.approx([-0.01, 0.01, -0.01], rel=1e-4)


# ---------------------------------------------------------------- sampling and generating

LOGITS = np.log([0.1, 0.4, 0.05, 0.25, 0.2])


def drawn(us: list[float], **cut: Any) -> list[int]:
    return [reference.sample(LOGITS, u=u, **cut) for u in us]


def test_sample_walks_the_tokens_by_id() -> None:
    us = [0, 0.099, 0.101, 0.499, 0.501, 0.549, 0.551, 0.799, 0.801, np.nextafter(1, 0)]
    assert drawn(us) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_sample_takes_the_first_sum_beyond_u() -> None:
    """Exactly u is not beyond it; powers of two make the sums exact."""
    assert reference.sample(np.zeros(4), u=0.25) == 1
    assert reference.sample(np.array([-np.inf, 0.0, -np.inf]), u=0.0) == 1


def test_sample_at_zero_temperature_is_greedy() -> None:
    assert reference.sample(LOGITS, temperature=0, u=0.99) == 1
    assert reference.sample(np.array([0.0, 3.0, 3.0]), temperature=0, u=0.99) == 1


def test_sample_near_zero_temperature_is_greedy() -> None:
    assert drawn([0.01, 0.99], temperature=1e-3) == [1, 1]
    assert drawn([0.01, 0.99], temperature=1e-320) == [1, 1]


def test_sample_with_temperature() -> None:
    # At temperature 1/2 probabilities are squared: .01 .16 .0025 .0625 .04, of .275.
    total = 0.275
    us = [0.009 / total, 0.011 / total, 0.169 / total, 0.171 / total, 0.173 / total, 0.236 / total]
    assert drawn(us, temperature=0.5) == [0, 1, 1, 2, 3, 4]


def test_sample_top_k() -> None:
    # 1 and 3 stay, .4 and .25: the border is at .615.
    assert drawn([0, 0.61, 0.62, 0.999], top_k=2) == [1, 1, 3, 3]
    assert drawn([0.999], top_k=1) == [1]
    assert drawn([0, 0.999], top_k=9) == [0, 4]


def test_sample_top_k_keeps_the_lower_of_equals() -> None:
    equals = np.array([1.0, 2.0, 1.0, 1.0])
    us = np.linspace(0, 0.999, 50)
    assert {reference.sample(equals, top_k=3, u=u) for u in us} == {0, 1, 2}


def test_sample_top_p() -> None:
    us = [float(u) for u in np.linspace(0, 0.999, 200)]
    assert set(drawn(us, top_p=0.39)) == {1}
    assert set(drawn(us, top_p=0.41)) == {1, 3}
    assert set(drawn(us, top_p=0.64)) == {1, 3}
    assert set(drawn(us, top_p=0.66)) == {1, 3, 4}
    assert set(drawn(us, top_p=0.96)) == {0, 1, 2, 3, 4}
    assert set(drawn(us, top_p=1e-9)) == {1}


def test_sample_top_p_reached_exactly() -> None:
    us = np.linspace(0, 0.999, 50)
    assert {reference.sample(np.zeros(4), top_p=0.5, u=u) for u in us} == {0, 1}


def test_sample_top_p_of_what_top_k_kept() -> None:
    # Of .4 .25 the first is .615: alone it reaches .6, though not of the whole vocabulary.
    us = [float(u) for u in np.linspace(0, 0.999, 50)]
    assert set(drawn(us, top_k=2, top_p=0.6)) == {1}
    assert set(drawn(us, top_p=0.6)) == {1, 3}


def test_sample_min_p() -> None:
    us = [float(u) for u in np.linspace(0, 0.999, 200)]
    assert set(drawn(us, min_p=0.12)) == {0, 1, 2, 3, 4}
    assert set(drawn(us, min_p=0.49)) == {1, 3, 4}
    assert set(drawn(us, min_p=1)) == {1}
    assert set(drawn(us, temperature=2, min_p=0.51)) == {1, 3, 4}
    # After top_p, which keeps .4 and .25: had min_p been first, .4 would be enough of .65.
    assert set(drawn(us, top_p=0.6, min_p=0.6)) == {1, 3}
    assert {reference.sample(np.zeros(3), min_p=1, u=u) for u in us} == {0, 1, 2}


def test_sample_frequencies() -> None:
    rng = np.random.default_rng(10)
    counts = np.bincount([reference.sample(LOGITS, u=rng.random()) for _ in range(4000)])
    np.testing.assert_allclose(counts / 4000, np.exp(LOGITS), atol=0.03)


@pytest.mark.parametrize("cell", CELLS)
def test_generate_feeds_back_what_it_made(cell: str) -> None:
    parameters = reference.initialize(cell, 6, 0, 5, 2, np.random.default_rng(11))
    prompt = [3, 1]
    made = reference.generate(parameters, cell, prompt, 8, rng=np.random.default_rng(12))
    us = np.random.default_rng(12)
    states = reference.zero_states(parameters, cell, B=1)
    tokens = np.array([*prompt, *made])
    logits, _, _ = reference.network_forward(parameters, cell, tokens[:, np.newaxis], states)
    assert made == [reference.sample(row[0], u=us.random()) for row in logits[1:-1]]
    assert reference.generate(parameters, cell, prompt, 0) == []


def test_the_story_of_hello() -> None:
    """The example in the module's docstring trains a network and spells the word."""
    result = doctest.testmod(reference)
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns_hello(cell: str) -> None:
    alphabet = sorted(set("hello"))
    tokens = np.array([[alphabet.index(character)] for character in "hello"])
    parameters = reference.initialize(cell, 4, 0, 8, 1, np.random.default_rng(0))
    states = reference.zero_states(parameters, cell, B=1)
    before = reference.generate(parameters, cell, tokens[0], 4, temperature=0)
    assert [alphabet[token] for token in before] != list("ello"), "it knew before it learned"
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in parameters.items()}
    losses = []
    for step in range(1, 61):
        loss_sum, count, gradients, _ = reference.network_loss_and_gradients(
            parameters, cell, tokens[:-1], tokens[1:], states
        )
        losses.append(loss_sum / count)
        reference.clip_by_global_norm(gradients, 1.0)
        for name, gradient in gradients.items():
            reference.adam_step(parameters[name], gradient, *moments[name], step, lr=0.05)
    assert losses[0] == pytest.approx(np.log(4), abs=0.3)
    assert losses[-1] < 0.05
    after = reference.generate(parameters, cell, tokens[0], 4, temperature=0)
    assert [alphabet[token] for token in after] == list("ello")
