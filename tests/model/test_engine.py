from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN_NAMES, load_golden
from numpy.typing import NDArray

from treadle.kernels import reference
from treadle.kernels.jit import BF16_MISSING
from treadle.model.enums import Cell, Precision
from treadle.model.network.engine import SMALL_VOCABULARY, Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS, shard_slices

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Window = tuple[Ints, Ints, Bools]


def windows_of(shape: Shape, T: int, B: int, count: int, seed: int = 0) -> list[Window]:
    """Random windows: a few targets ignored, a few rows fresh."""
    rng = np.random.default_rng(seed)
    windows = []
    for number in range(count):
        tokens = rng.integers(0, shape.V, (T, B)).astype(np.int32)
        targets = rng.integers(0, shape.V, (T, B)).astype(np.int32)
        targets[rng.random((T, B)) < 0.2] = -1
        fresh = rng.random(B) < (1.0 if number == 0 else 0.3)
        windows.append((tokens, targets, fresh))
    return windows


def engine_of(shape: Shape, T: int, B: int, threads: int = 1, seed: int = 5) -> Engine:
    return Engine(Parameters.initial(shape, seed), B, T, Pool(threads))


def widen(parameters: Parameters) -> reference.Parameters:
    return {name: array.astype(np.float64) for name, array in parameters.named().items()}


def assert_close(found: NDArray[Any], expected: NDArray[Any], name: str) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale + 1e-9, err_msg=name)


def check_against_reference(shape: Shape, T: int, B: int) -> None:
    """Three windows with carried states: loss and every gradient."""
    engine = engine_of(shape, T, B)
    wide = widen(engine.parameters)
    hs, cs = reference.zero_states(wide, shape.cell, B)
    for tokens, targets, fresh in windows_of(shape, T, B, count=3):
        hs[:, fresh] = 0
        if cs is not None:
            cs[:, fresh] = 0
        expected, count, gradients, (hs, cs) = reference.network_loss_and_gradients(
            wide, shape.cell, tokens, targets, (hs, cs)
        )
        loss, found_count = engine.loss_and_gradient(tokens, targets, fresh)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert found_count == count
        for name, array in engine.gradient.named().items():
            assert_close(array, gradients[name], name)


@pytest.mark.parametrize("embedding", [0, 2])
@pytest.mark.parametrize("cell", Cell)
def test_tiny_networks_agree_with_the_reference(cell: Cell, embedding: int) -> None:
    check_against_reference(Shape(cell, V=4, E=embedding, H=3, L=2), T=3, B=2)


@pytest.mark.jit
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("embedding", [0, 9])
@pytest.mark.parametrize("cell", Cell)
def test_networks_of_odd_sizes_agree_with_the_reference(
    cell: Cell, embedding: int, layers: int
) -> None:
    shape = Shape(cell, V=23, E=embedding, H=33, L=layers)
    check_against_reference(shape, T=19, B=2 * SHARD_ROWS + 3)


@pytest.mark.jit
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_loss_and_gradients_are_those_of_pytorch(name: str) -> None:
    golden = load_golden(name)
    V = golden.parameters["by"].size
    H = golden.parameters["Wh0"].shape[0]
    L = golden.h0.shape[0]
    E = golden.parameters["embedding"].shape[1] if "embedding" in golden.parameters else 0
    shape = Shape(Cell(golden.cell), V, E, H, L)
    T, B = golden.tokens.shape
    engine = Engine(Parameters.from_named(shape, golden.parameters), B, T, Pool(1))
    for shard in engine._shards:
        shard.state.h[:] = golden.h0[:, shard.rows]
        if golden.c0 is not None:
            shard.state.c[:] = golden.c0[:, shard.rows]
    loss, count = engine.loss_and_gradient(golden.tokens, golden.targets, np.zeros(B, np.bool_))
    assert loss / count == pytest.approx(golden.loss, rel=1e-5)
    for parameter, array in engine.gradient.named().items():
        assert_close(array, golden.gradients[parameter], parameter)


def test_rows_are_cut_in_shards_of_one_size() -> None:
    assert shard_slices(1) == [slice(0, 1)]
    assert shard_slices(SHARD_ROWS) == [slice(0, SHARD_ROWS)]
    slices = shard_slices(2 * SHARD_ROWS + 1)
    assert [cut.stop - cut.start for cut in slices] == [SHARD_ROWS, SHARD_ROWS, 1]
    assert [cut.start for cut in slices] == [0, SHARD_ROWS, 2 * SHARD_ROWS]


@pytest.mark.parametrize("cell", Cell)
def test_threads_do_not_change_a_bit(cell: Cell) -> None:
    shape = Shape(cell, V=5, E=2, H=3, L=1)
    T = 2
    B = 2 * SHARD_ROWS + 5
    results = []
    for threads in (1, 2, 3):
        engine = engine_of(shape, T, B, threads)
        losses = [engine.loss_and_gradient(*window) for window in windows_of(shape, T, B, count=3)]
        results.append((losses, engine.gradient.flat.tobytes()))
        engine.pool.close()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("is_small", [False, True])
def test_one_call_computes_what_several_do(is_small: bool, tied: bool) -> None:
    """A last row without a target makes a second shard, whose gradients are 0."""
    shape = Shape(Cell.GRU, V=5, E=3, H=3, L=2, tied=tied)
    alone = engine_of(shape, 4, SHARD_ROWS)
    together = engine_of(shape, 4, SHARD_ROWS + 1, threads=2)
    assert together.is_small
    together.is_small = is_small
    for tokens, targets, fresh in windows_of(shape, T=4, B=SHARD_ROWS + 1, count=2):
        targets[:, -1] = -1
        expected = alone.loss_and_gradient(tokens[:, :-1], targets[:, :-1], fresh[:-1])
        assert together.loss_and_gradient(tokens, targets, fresh) == expected
        assert np.array_equal(together.gradient.flat, alone.gradient.flat)
    together.pool.close()


def test_a_row_has_the_same_part_in_the_loss_next_to_any_other() -> None:
    shape = Shape(Cell.LSTM, V=5, E=2, H=3, L=2)
    ((tokens, targets, fresh),) = windows_of(shape, T=3, B=SHARD_ROWS + 2, count=1)
    row = slice(SHARD_ROWS, SHARD_ROWS + 1)
    alone = engine_of(shape, 3, 1)
    loss, _ = alone.loss_and_gradient(tokens[:, row], targets[:, row], fresh[row])
    only = np.full_like(targets, -1)
    only[:, row] = targets[:, row]
    together = engine_of(shape, 3, SHARD_ROWS + 2)
    assert together.loss_and_gradient(tokens, only, fresh)[0] == loss
    named = alone.gradient.named()
    for name, array in together.gradient.named().items():
        assert_close(array, named[name], name)


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("embedding", [0, 3])
def test_a_vocabulary_larger_than_the_batch_is_folded_to_the_same_gradient(
    cell: Cell, embedding: int
) -> None:
    V = SMALL_VOCABULARY + 40
    shape = Shape(cell, V=V, E=embedding, H=3, L=1)
    T = 2
    B = 3
    roomy = engine_of(shape, V, B)
    folded = engine_of(shape, T, B)
    assert roomy._weights.table.shape[0] == V
    assert folded._weights.table.shape[0] == T * B < V
    small = engine_of(Shape(cell, V=40, E=embedding, H=3, L=1), T, B)
    assert small._weights.table.shape[0] == 40, "a small vocabulary is folded whole"
    for window in windows_of(shape, T, B, count=2):
        assert roomy.loss_and_gradient(*window) == folded.loss_and_gradient(*window)
        assert np.array_equal(roomy.gradient.flat, folded.gradient.flat)
        absent = np.setdiff1d(np.arange(V), window[0])
        inputs = folded.gradient.stacks.embedding if embedding else folded.gradient.stacks.Wx0
        assert not inputs[absent].any(), "a token that was not read has no gradient"


TIED = [
    # V, H, L, T, B
    (5, 3, 1, 3, 2),
    (5, 3, 2, 4, 3),
    (SMALL_VOCABULARY + 40, 3, 1, 3, 2),  # folded: most tokens have the output's gradient alone
    pytest.param(37, 33, 2, 19, 2 * SHARD_ROWS + 3, marks=pytest.mark.jit),
]


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize(("V", "H", "L", "T", "B"), TIED)
def test_tied_networks_agree_with_the_reference(
    cell: Cell, V: int, H: int, L: int, T: int, B: int
) -> None:
    check_against_reference(Shape(cell, V, E=H, H=H, L=L, tied=True), T, B)


def test_a_tied_gradient_is_the_sum_of_both_uses() -> None:
    tied = Shape(Cell.GRU, V=23, E=5, H=5, L=1, tied=True)
    engine = engine_of(tied, 4, 3)
    twin = Parameters(replace(tied, tied=False))
    for name, view in twin.named().items():
        view[:] = (
            engine.parameters.stacks.embedding.T
            if name == "Wy"
            else engine.parameters.named()[name]
        )
    untied = Engine(twin, 3, 4, Pool(1))
    (window,) = windows_of(tied, T=4, B=3, count=1)
    assert engine.loss_and_gradient(*window) == untied.loss_and_gradient(*window)
    parts = untied.gradient.named()
    named = engine.gradient.named()
    whole = parts["embedding"] + parts["Wy"].T
    assert named["embedding"].tobytes() == whole.tobytes(), "in this order, and no other rounding"
    for name in named.keys() - {"embedding"}:
        assert named[name].tobytes() == parts[name].tobytes(), name


def test_threads_do_not_change_a_bit_of_tied_weights() -> None:
    shape = Shape(Cell.LSTM, V=23, E=5, H=5, L=2, tied=True)
    T = 3
    B = 2 * SHARD_ROWS + 5
    results = []
    for threads in (1, 2, 3):
        engine = engine_of(shape, T, B, threads)
        losses = [engine.loss_and_gradient(*window) for window in windows_of(shape, T, B, count=3)]
        results.append((losses, engine.gradient.flat.tobytes()))
        engine.pool.close()
    assert results[0] == results[1] == results[2]


@pytest.mark.jit
@pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)
def test_tied_weights_of_pairs_are_near_those_of_singles() -> None:
    shape = Shape(Cell.LSTM, V=37, E=34, H=34, L=1, tied=True)
    (window,) = windows_of(shape, T=9, B=SHARD_ROWS + 3, count=1)
    exact, ours = (
        Engine(Parameters.initial(shape, 5), SHARD_ROWS + 3, 9, Pool(1), precision=precision)
        for precision in Precision
    )
    assert ours.loss_and_gradient(*window)[0] == pytest.approx(
        exact.loss_and_gradient(*window)[0], rel=5e-3
    )
    found = ours.gradient.stacks.embedding
    expected = exact.gradient.stacks.embedding
    assert float(np.abs(found - expected).max()) < 3e-2 * float(np.abs(expected).max())


def test_two_windows_have_the_loss_of_one() -> None:
    shape = Shape(Cell.GRU, V=5, E=2, H=3, L=2)
    ((tokens, targets, fresh),) = windows_of(shape, T=7, B=2, count=1)
    whole, _ = engine_of(shape, 7, 2).loss_and_gradient(tokens, targets, fresh)
    engine = engine_of(shape, 7, 2)
    first, _ = engine.loss_and_gradient(tokens[:4], targets[:4], fresh)
    rest, _ = engine.loss_and_gradient(tokens[4:], targets[4:], np.zeros(2, np.bool_))
    assert first + rest == pytest.approx(whole, rel=1e-12)
    cold = engine_of(shape, 7, 2)
    cold.loss_and_gradient(tokens[:4], targets[:4], fresh)
    forgotten, _ = cold.loss_and_gradient(tokens[4:], targets[4:], np.ones(2, np.bool_))
    assert forgotten != pytest.approx(rest, rel=1e-6), "a fresh row forgets"


def test_without_targets_there_is_no_loss_and_no_gradient() -> None:
    shape = Shape(Cell.LSTM, V=5, E=2, H=3, L=1)
    ((tokens, targets, fresh),) = windows_of(shape, T=3, B=2, count=1)
    engine = engine_of(shape, 3, 2)
    engine.loss_and_gradient(tokens, targets, fresh)
    assert engine.gradient.flat.any()
    assert engine.loss_and_gradient(tokens, np.full_like(targets, -1), fresh) == (0.0, 0)
    assert not engine.gradient.flat.any()


def test_the_gradient_is_that_of_the_last_batch_alone() -> None:
    shape = Shape(Cell.GRU, V=5, E=2, H=3, L=2)
    first, second = windows_of(shape, T=3, B=2, count=2)
    fresh = np.ones(2, np.bool_)
    used = engine_of(shape, 3, 2)
    unused = engine_of(shape, 3, 2)
    used.loss_and_gradient(*first)
    used.loss_and_gradient(*second[:2], fresh)
    unused.loss_and_gradient(*second[:2], fresh)
    assert used.gradient.flat.tobytes() == unused.gradient.flat.tobytes()


def test_changed_parameters_are_used_at_once() -> None:
    shape = Shape(Cell.RNN, V=5, E=0, H=3, L=1)
    ((tokens, targets, fresh),) = windows_of(shape, T=3, B=2, count=1)
    engine = engine_of(shape, 3, 2)
    engine.parameters.flat[:] = 0
    loss, count = engine.loss_and_gradient(tokens, targets, fresh)
    assert loss == pytest.approx(count * np.log(5), rel=1e-6)
