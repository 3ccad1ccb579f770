"""Compiled cells and networks against the plain NumPy reference in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import (
    CELLS,
    Network,
    assert_close,
    make_batch,
    make_engine,
    make_network,
    same_bytes,
)

from treadle.kernels import reference
from treadle.kernels.gemm import add_rows, matmul
from treadle.kernels.gemm_packing import pack, pack_transposed, panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.gemm_transposed import add_matmul_transposed, allocate_row_block
from treadle.kernels.gru import gru_backward, gru_forward
from treadle.kernels.lstm import lstm_backward, lstm_forward
from treadle.kernels.rnn import rnn_backward, rnn_forward
from treadle.model.network.engine import Engine

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

# ---------------------------------------------------------------- one cell, its kernels by hand

CELL_SIZES = [(1, 1, 1, 1), (5, 3, 2, 4), (19, 7, 5, 33)]
"""(T, B, D, H)."""


@dataclass
class CellCase:
    """One layer's inputs, weights and gradients from above, with space for two steps more."""

    cell: str
    T: int
    arrays: Arrays
    """Arguments of the reference's forward function, in float32."""
    above: Arrays
    """dhs (T, B, H), and of the last state dhT and dcT (B, H)."""

    @classmethod
    def draw(cls, cell: str, T: int, B: int, D: int, H: int) -> "CellCase":
        rng = np.random.default_rng(T + B)
        G = reference.GATES[cell] * H
        shapes: dict[str, tuple[int, ...]] = {
            "xs": (T, B, D),
            "h0": (B, H),
            "Wx": (D, G),
            "Wh": (H, G),
            "b": (G,),
        }
        if cell == "lstm":
            shapes["c0"] = (B, H)
        if cell == "gru":
            shapes["bh"] = (H,)
        needed = {"dhs": (T, B, H), "dhT": (B, H), "dcT": (B, H)}
        size = 1.2 / H**0.5
        return cls(
            cell,
            T,
            {name: rng.uniform(-size, size, s).astype(np.float32) for name, s in shapes.items()},
            {name: rng.uniform(-1, 1, s).astype(np.float32) for name, s in needed.items()},
        )

    def expected(self) -> tuple[Arrays, Arrays]:
        """States and gradients by the reference."""
        arrays = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        above = {name: array.astype(np.float64) for name, array in self.above.items()}
        above["dhs"][-1] += above["dhT"]
        weights = (arrays["Wx"], arrays["Wh"])
        if self.cell == "lstm":
            hs, cs, gates = reference.lstm_forward(**arrays)
            gradients: Any = reference.lstm_backward(
                above["dhs"], arrays["xs"], hs, cs, gates, *weights, dcT=above["dcT"]
            )
            return {"hs": hs, "cs": cs}, gradients._asdict()
        if self.cell == "gru":
            hs, gates, hidden_ns = reference.gru_forward(**arrays)
            tape = (above["dhs"], arrays["xs"], hs, gates, hidden_ns)
            return {"hs": hs}, reference.gru_backward(*tape, *weights)._asdict()
        hs = reference.rnn_forward(**arrays)
        gradients = reference.rnn_backward(above["dhs"], arrays["xs"], hs, *weights)
        return {"hs": hs}, gradients._asdict()

    def compiled(self) -> tuple[Arrays, Arrays]:
        """The same by the compiled kernels."""
        T = self.T
        (B, H) = self.arrays["h0"].shape
        xs = self.arrays["xs"].reshape(T * B, -1)
        G = self.arrays["b"].size
        gates, hidden = (np.full((T + 2, B, n), np.nan, np.float32) for n in (G, 3 * H))
        hs, cs = (np.full((T + 3, B, H), np.nan, np.float32) for _ in range(2))
        gates[:T] = self.arrays["b"]
        hs[0] = self.arrays["h0"]
        cs[0] = self.arrays.get("c0", 0)
        matmul(xs, packed(self.arrays["Wx"]), gates[:T].reshape(T * B, G), True)
        self._forward(gates, hidden, hs, cs)
        states = {"hs": hs[: T + 1].copy(), "cs": cs[: T + 1].copy()}
        dh = self.above["dhT"].copy()
        dc = self.above["dcT"].copy()
        dWh = np.zeros_like(self.arrays["Wh"])
        self._backward(gates, hidden, hs, cs, dh, dc, dWh)

        da = gates[:T].reshape(T * B, G)
        gradients: Arrays = {"dh0": dh, "dxs": np.zeros_like(xs), "db": np.zeros(G, np.float32)}
        matmul(da, packed_transposed(self.arrays["Wx"]), gradients["dxs"], False)
        gradients["dxs"] = gradients["dxs"].reshape(self.arrays["xs"].shape)
        gradients |= {"dWx": np.zeros_like(self.arrays["Wx"]), "dWh": dWh}
        add_matmul_transposed(xs, da, allocate_row_block(xs.shape[1], G), gradients["dWx"])
        add_rows(da, gradients["db"])
        if self.cell == "gru":
            gradients["dbh"] = hidden[:T, :, 2 * H :].reshape(T * B, H).sum(axis=0)
        if self.cell == "lstm":
            gradients["dc0"] = dc
        else:
            del states["cs"]
        # What lies past the steps asked for is left alone.
        assert np.isnan(gates[T:]).all()
        assert np.isnan(hs[T + 1 :]).all()
        return states, gradients

    def _forward(self, gates: Floats, hidden: Floats, hs: Floats, cs: Floats) -> None:
        Wh = packed(self.arrays["Wh"])
        if self.cell == "lstm":
            lstm_forward(gates, hs, cs, Wh, self.T)
        elif self.cell == "gru":
            gru_forward(gates, hidden, hs, Wh, self.arrays["bh"], self.T)
        else:
            rnn_forward(gates, hs, Wh, self.T)

    def _backward(
        self,
        gates: Floats,
        hidden: Floats,
        hs: Floats,
        cs: Floats,
        dh: Floats,
        dc: Floats,
        dWh: Floats,
    ) -> None:
        WhT = packed_transposed(self.arrays["Wh"])
        dhs = self.above["dhs"]
        block = allocate_row_block(*dWh.shape)
        if self.cell == "lstm":
            lstm_backward(gates, hs, cs, WhT, dhs, dh, dc, dWh, block, self.T)
        elif self.cell == "gru":
            gru_backward(gates, hidden, hs, WhT, dhs, dh, dWh, block, self.T)
        else:
            rnn_backward(gates, hs, WhT, dhs, dh, dWh, block, self.T)


def packed(matrix: Floats) -> Floats:
    panels = np.empty((panel_count(matrix.shape[1]), matrix.shape[0], PANEL), np.float32)
    pack(matrix, panels)
    return panels


def packed_transposed(matrix: Floats) -> Floats:
    panels = np.empty((panel_count(matrix.shape[0]), matrix.shape[1], PANEL), np.float32)
    pack_transposed(matrix, panels)
    return panels


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "D", "H"), CELL_SIZES)
def test_cell_is_that_of_the_reference(cell: str, T: int, B: int, D: int, H: int) -> None:
    case = CellCase.draw(cell, T, B, D, H)
    states, gradients = case.compiled()
    expected_states, expected_gradients = case.expected()
    assert_close(states, expected_states)
    assert_close(gradients, expected_gradients)


# ---------------------------------------------------------------- whole networks, by the engine

SIZES = [
    # T, B, V, E, H, L
    (1, 1, 2, 1, 1, 1),
    (5, 3, 7, 2, 4, 1),
    (5, 3, 7, 0, 4, 2),
    (3, 2, 50, 2, 4, 2),  # more tokens in the vocabulary than in the batch
    (3, 2, 50, 0, 4, 1),
    (19, 7, 13, 5, 33, 2),
    (19, 7, 13, 0, 33, 2),
    pytest.param(19, 7, 300, 5, 33, 2, marks=pytest.mark.jit),
    pytest.param(9, 37, 65, 5, 33, 3, marks=pytest.mark.jit),  # three shards, two blocks of logits
]


def expected_pass(
    network: Network, tokens: Any, targets: Any, states: reference.States | None = None
) -> tuple[float, int, Arrays, reference.States]:
    """The reference's pass over a batch, from the zero state if from no other."""
    parameters = network.reference
    states = states or reference.zero_states(parameters, network.cell, tokens.shape[1])
    loss, count, gradients, states = reference.network_loss_and_gradients(
        parameters, network.cell, tokens, targets, states
    )
    return loss, count, dict(gradients), states


def assert_same_pass(
    engine: Engine, result: tuple[float, int], expected: tuple[float, int, Arrays, Any]
) -> None:
    loss, count, gradients, _ = expected
    assert result[0] == pytest.approx(loss, rel=1e-5)
    assert result[1] == count
    assert_close(engine.gradient.named(), gradients)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "V", "E", "H", "L"), SIZES)
def test_network_is_that_of_the_reference(
    cell: str, T: int, B: int, V: int, E: int, H: int, L: int
) -> None:
    network = make_network(cell, V, E, H, L)
    tokens, targets = make_batch(V, T, B)
    engine = make_engine(network, B, T)
    result = engine.loss_and_gradient(tokens, targets, np.ones(B, np.bool_))
    assert_same_pass(engine, result, expected_pass(network, tokens, targets))


@pytest.mark.parametrize("cell", CELLS)
def test_windows_carry_the_state(cell: str) -> None:
    """Two windows from zero are the reference's truncated backpropagation."""
    T = 6
    B = 3
    V = 5
    network = make_network(cell, V, E=2, H=4, L=2)
    tokens, targets = make_batch(V, T, B)
    engine = make_engine(network, B, T // 2)
    states = None
    for window, fresh in ((slice(0, T // 2), True), (slice(T // 2, T), False)):
        part = tokens[window], targets[window]
        result = engine.loss_and_gradient(*part, np.full(B, fresh))
        expected = expected_pass(network, *part, states)
        states = expected[3]
        assert_same_pass(engine, result, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_fresh_rows_begin_from_zeros(cell: str) -> None:
    T = 3
    B = 3
    V = 5
    network = make_network(cell, V, E=2, H=4, L=2)
    (first, later) = (make_batch(V, T, B, seed) for seed in (1, 2))
    fresh = [False, True, False]
    engine = make_engine(network, B, T)
    engine.loss_and_gradient(*first, np.ones(B, np.bool_))
    result = engine.loss_and_gradient(*later, np.array(fresh))
    states = expected_pass(network, *first)[3]
    for state in states:
        if state is not None:
            state[:, fresh] = 0
    assert_same_pass(engine, result, expected_pass(network, *later, states))


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_batch_begins_from_zeros(cell: str) -> None:
    network = make_network(cell, V=5, E=2, H=4, L=1)
    tokens, targets = make_batch(5, 3, 2)
    results = []
    for fresh in (True, False):
        engine = make_engine(network, B=2, T=3)
        results.append(engine.loss_and_gradient(tokens, targets, np.full(2, fresh)))
    assert results[0] == results[1]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("E", [0, 2])
def test_a_batch_leaves_nothing_behind(cell: str, E: int) -> None:
    """A gradient is the batch's alone, whatever was computed in the same workspace before."""
    network = make_network(cell, V=40, E=E, H=4, L=2)
    fresh = np.ones(2, np.bool_)
    batch = make_batch(40, 3, 2, seed=1)
    other = make_batch(40, 5, 2, seed=2)
    engine, used_before = (make_engine(network, B=2, T=5) for _ in range(2))
    result = engine.loss_and_gradient(*batch, fresh)
    used_before.loss_and_gradient(*other, fresh)
    assert used_before.loss_and_gradient(*batch, fresh) == result
    assert same_bytes(engine.gradient.flat, used_before.gradient.flat)
    assert_same_pass(engine, result, expected_pass(network, *batch))


@pytest.mark.parametrize("cell", CELLS)
def test_without_targets_there_is_no_gradient(cell: str) -> None:
    network = make_network(cell, V=5, E=2, H=4, L=2)
    tokens, targets = make_batch(5, 3, 2)
    engine = make_engine(network, B=2, T=3)
    fresh = np.ones(2, np.bool_)
    engine.loss_and_gradient(tokens, targets, fresh)
    assert engine.loss_and_gradient(tokens, np.full_like(targets, -1), fresh) == (0.0, 0)
    assert not engine.gradient.flat.any()


@pytest.mark.parametrize("cell", CELLS)
def test_a_small_step_down_the_gradient_lowers_the_loss(cell: str) -> None:
    """No reference needed: by how much, the gradient's square says."""
    network = make_network(cell, V=5, E=2, H=4, L=2)
    batch = make_batch(5, 4, 3)
    fresh = np.ones(3, np.bool_)
    engine = make_engine(network, B=3, T=4)
    before, count = engine.loss_and_gradient(*batch, fresh)
    gradient = engine.gradient.flat.copy()
    square = float(np.square(gradient, dtype=np.float64).sum())
    step = np.float32(1e-3 / square)
    network.parameters.flat[:] -= step * gradient
    after, _ = engine.loss_and_gradient(*batch, fresh)
    assert (before - after) / count == pytest.approx(1e-3, rel=0.05)
