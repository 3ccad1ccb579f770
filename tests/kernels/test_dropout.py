"""Dropout bits depend on their position alone, and networks equal the reference."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import (
    CELLS,
    Network,
    assert_close,
    dropout_masks,
    make_batch,
    make_network,
    same_bytes,
    unit_flags,
)

from treadle.kernels import reference
from treadle.kernels.dropout import (
    LEVELS,
    STREAMS,
    Dropout,
    draw_keep,
    drop,
    keep_bytes,
    keep_scale,
    kept_levels,
)
from treadle.kernels.jit import BF16_MISSING, PYTHON_MODE
from treadle.kernels.random import philox_block
from treadle.model.enums import Precision
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.shards import SHARD_ROWS

Bits = NDArray[np.uint8]


def settings(p: float = 0.3, seed: int = 5, step: int = 0, first_row: int = 0) -> Dropout:
    return Dropout(np.uint64(seed), np.uint64(step), first_row, np.uint64(kept_levels(p)))


def drawn(dropout: Dropout, shape: tuple[int, int, int, int], steps: int | None = None) -> Bits:
    """The bytes of (L-1, T, B, H)."""
    keep = np.full((*shape[:3], keep_bytes(shape[3])), 0xAA, np.uint8)
    draw_keep(dropout, keep, shape[1] if steps is None else steps, 0)
    return keep


def test_every_bit_is_philox_of_its_place() -> None:
    """By Python's own integers, from the words that the authors' known answers test."""
    H = 19
    dropout = settings(p=0.37, seed=2**63 + 9, step=7, first_row=32)
    keep = unit_flags(drawn(dropout, (2, 3, 4, H)), H)
    K = keep_bytes(H)
    for layer, t, row, unit in np.ndindex(2, 3, 4, H):
        i, k = divmod(unit, K)
        position = (layer << 56) | ((32 + row) << 36) | (t << 16) | k
        block = philox_block(dropout.seed, STREAMS + np.uint64(7), np.uint64(position))
        number = (int(block[i // 2]) >> (16 * (i % 2))) & 0xFFFF
        assert keep[layer, t, row, unit] == (number < round(0.63 * LEVELS))


@pytest.mark.parametrize("p", [0.0, 2.0**-16, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(p: float) -> None:
    H = 40 if PYTHON_MODE else 400
    keep = unit_flags(drawn(settings(p), (1, 40, 25, H)), H)
    deviation = (p * (1 - p) / keep.size) ** 0.5
    assert abs((~keep).mean() - p) <= 5 * deviation
    # Neighbours of any kind have nothing to do with one another.
    if 0.05 < p < 0.95:
        for axis in (1, 2, 3):
            both = np.corrcoef(keep.ravel(), np.roll(keep, 1, axis).ravel())[0, 1]
            assert abs(both) < 5 / keep.size**0.5


@pytest.mark.parametrize("change", [{"seed": 6}, {"step": 1}, {"step": 2**40}, {"first_row": 500}])
def test_seed_step_and_row_all_count(change: dict[str, int]) -> None:
    one, other = (unit_flags(drawn(settings(**c), (2, 9, 5, 64)), 64) for c in ({}, change))
    assert 0.3 < (one != other).mean() < 0.54  # 2 p (1 - p) = 0.42


def test_rows_are_those_of_the_batch() -> None:
    """A shard that begins at row 16 has the bits of rows 16 and on."""
    whole = drawn(settings(), (2, 3, 20, 9))
    part = drawn(settings(first_row=16), (2, 3, 4, 9))
    assert same_bytes(np.ascontiguousarray(whole[:, :, 16:]), part)


def test_a_short_window_has_the_bits_of_a_long_one() -> None:
    long = drawn(settings(), (2, 6, 3, 9))
    short = drawn(settings(), (2, 6, 3, 9), steps=4)
    assert same_bytes(np.ascontiguousarray(long[:, :4]), np.ascontiguousarray(short[:, :4]))
    assert (short[:, 4:] == 0xAA).all(), "what lies past the steps is left alone"


@pytest.mark.parametrize(
    ("p", "levels"),
    [(0.0, LEVELS), (1e-9, LEVELS), (0.5, LEVELS // 2), (0.1, 58982), (1 - 1e-12, 1)],
)
def test_levels(p: float, levels: int) -> None:
    assert kept_levels(p) == levels
    assert float(keep_scale(settings(p))) == np.float32(LEVELS / levels)


@pytest.mark.parametrize("H", [1, 7, 8, 9, 16, 33, 67])
def test_drop_scales_what_is_kept(H: int) -> None:
    rng = np.random.default_rng(H)
    rows = rng.standard_normal((5, H)).astype(np.float32)
    rows[0] = np.inf  # dropped is 0, not 0 times what was there
    keep = rng.integers(256, size=(5, keep_bytes(H)), dtype=np.uint8)
    expected = np.where(unit_flags(keep, H), rows * np.float32(1.25), np.float32(0))
    out = np.full_like(rows, np.nan)
    drop(rows, keep, np.float32(1.25), out)
    assert same_bytes(out, expected)
    drop(rows, keep, np.float32(1.25), rows)
    assert same_bytes(rows, expected)


# ---------------------------------------------------------------- whole networks


def make_engine(network: Network, B: int, T: int, p: float, threads: int = 1) -> Engine:
    return Engine(network.parameters, B, T, Pool(threads), dropout=p, seed=3)


SIZES = [
    # T, B, V, E, H, L
    (5, 3, 7, 2, 4, 2),
    (4, 2, 7, 0, 9, 3),
    pytest.param(9, 37, 65, 5, 33, 3, marks=pytest.mark.jit),  # three shards
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "V", "E", "H", "L"), SIZES)
def test_network_is_that_of_the_reference(
    cell: str, T: int, B: int, V: int, E: int, H: int, L: int
) -> None:
    network = make_network(cell, V, E, H, L)
    fresh = np.ones(B, np.bool_)
    p = 0.4
    engine = make_engine(network, B, T + 2, p)
    for step in (0, 11):
        tokens, targets = make_batch(V, T, B, seed=step)
        loss, count = engine.loss_and_gradient(tokens, targets, fresh, step)
        states = reference.zero_states(network.reference, cell, B)
        expected: Any = reference.network_loss_and_gradients(
            network.reference,
            cell,
            tokens,
            targets,
            states,
            dropout_masks(p, 3, step, (L - 1, T, B, H)),
        )
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert count == expected[1]
        assert_close(engine.gradient.named(), expected[2])


def test_dropout_of_nothing_changes_no_bit() -> None:
    network = make_network("lstm", V=7, E=2, H=9, L=2)
    batch = make_batch(7, 4, 3)
    fresh = np.ones(3, np.bool_)
    gradients = []
    for p in (0.0, 1e-9):  # none computed, and computed with all units kept
        engine = make_engine(network, 3, 4, p)
        assert bool(engine._shards[0].work.keep.size) == (p > 0)
        loss, _ = engine.loss_and_gradient(*batch, fresh)
        gradients.append((loss, engine.gradient.flat.tobytes()))
    assert gradients[0] == gradients[1]


def test_one_layer_has_nothing_to_drop() -> None:
    network = make_network("gru", V=7, E=2, H=9, L=1)
    batch = make_batch(7, 4, 3)
    fresh = np.ones(3, np.bool_)
    results = []
    for p in (0.0, 0.5):
        engine = make_engine(network, 3, 4, p)
        assert engine._shards[0].work.dropped.size == 0
        results.append((engine.loss_and_gradient(*batch, fresh), engine.gradient.flat.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_repeats_and_the_next_differs(cell: str) -> None:
    network = make_network(cell, V=7, E=2, H=9, L=2)
    batch = make_batch(7, 4, 3)
    fresh = np.ones(3, np.bool_)
    made: dict[int, set[bytes]] = {}
    used = make_engine(network, 3, 4, 0.5)
    new = make_engine(network, 3, 4, 0.5)
    for step in (0, 1, 2, 1):
        used.loss_and_gradient(*batch, fresh, step)
        made.setdefault(step, set()).add(used.gradient.flat.tobytes())
    new.loss_and_gradient(*batch, fresh, 2)
    assert new.gradient.flat.tobytes() in made[2], "from the number of the step alone"
    assert [len(results) for results in made.values()] == [1, 1, 1]
    assert len(set.union(*made.values())) == 3


def test_a_row_drops_the_same_in_any_shard() -> None:
    """A row of the third shard, learned from alone, at its place in the batch."""
    rows = 2 * SHARD_ROWS + 1
    network = make_network("gru", V=7, E=2, H=9, L=2)
    tokens, targets = make_batch(7, 4, rows, ignored=0)
    fresh = np.ones(rows, np.bool_)
    engine = make_engine(network, rows, 4, 0.5)
    targets[:, :-1] = -1
    loss, _ = engine.loss_and_gradient(tokens, targets, fresh, 3)
    masks = dropout_masks(0.5, 3, 3, (1, 4, rows, 9))[:, :, -1:]
    states = reference.zero_states(network.reference, "gru", 1)
    expected = reference.network_loss_and_gradients(
        network.reference, "gru", tokens[:, -1:], targets[:, -1:], states, masks
    )
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert_close(engine.gradient.named(), expected[2])


# ---------------------------------------------------------------- before the output layer


def all_masks(p: float, top: float, step: int, shape: tuple[int, int, int, int]) -> NDArray[Any]:
    """The reference's masks (L, T, B, H): between the layers, and before the output layer."""
    L, *rest = shape
    T, B, H = rest
    between = dropout_masks(p, 3, step, (L - 1, T, B, H))
    return np.concatenate((between, dropout_masks(top, 3, step, (1, T, B, H), lowest=L - 1)))


TOP_SIZES = [
    # T, B, V, E, H, L, between layers
    (3, 2, 7, 2, 9, 1, 0.0),
    (3, 2, 7, 0, 9, 2, 0.0),
    (3, 2, 7, 2, 9, 2, 0.4),
    pytest.param(19, 37, 65, 5, 33, 1, 0.0, marks=pytest.mark.jit),  # logits of several blocks
    pytest.param(19, 37, 65, 5, 33, 2, 0.4, marks=pytest.mark.jit),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B", "V", "E", "H", "L", "p"), TOP_SIZES)
def test_output_dropout_is_that_of_the_reference(
    cell: str, T: int, B: int, V: int, E: int, H: int, L: int, p: float
) -> None:
    network = make_network(cell, V, E, H, L)
    fresh = np.ones(B, np.bool_)
    top = 0.3
    engine = Engine(network.parameters, B, T + 2, Pool(1), p, seed=3, output_dropout=top)
    for step in (0, 11):
        tokens, targets = make_batch(V, T, B, seed=step)
        loss, count = engine.loss_and_gradient(tokens, targets, fresh, step)
        states = reference.zero_states(network.reference, cell, B)
        masks = all_masks(p, top, step, (L, T, B, H))
        expected = reference.network_loss_and_gradients(
            network.reference, cell, tokens, targets, states, masks
        )
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert count == expected[1]
        assert_close(engine.gradient.named(), expected[2])


@pytest.mark.jit
@pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)
def test_output_dropout_of_pairs_is_that_of_the_reference() -> None:
    T = 19
    B = 37
    V = 65
    E = 5
    H = 34
    L = 2
    network = make_network("lstm", V, E, H, L)
    engine = Engine(network.parameters, B, T, Pool(1), 0.4, 3, Precision.BF16, output_dropout=0.3)
    tokens, targets = make_batch(V, T, B)
    loss, _ = engine.loss_and_gradient(tokens, targets, np.ones(B, np.bool_), 2)
    states = reference.zero_states(network.reference, "lstm", B)
    masks = all_masks(0.4, 0.3, 2, (L, T, B, H))
    expected = reference.network_loss_and_gradients(
        network.reference, "lstm", tokens, targets, states, masks
    )
    assert loss == pytest.approx(expected[0], rel=5e-3)
    assert_close(engine.gradient.named(), expected[2], rtol=3e-2)


@pytest.mark.parametrize("layers", [1, 2])
def test_output_dropout_has_the_same_bits_with_any_threads(layers: int) -> None:
    rows = 2 * SHARD_ROWS + 3
    network = make_network("lstm", V=7, E=2, H=9, L=layers)
    batch = make_batch(7, 3, rows)
    fresh = np.ones(rows, np.bool_)
    made = []
    for threads in (1, 2, 3):
        pool = Pool(threads)
        engine = Engine(network.parameters, rows, 3, pool, seed=3, output_dropout=0.5)
        losses = [engine.loss_and_gradient(*batch, fresh, step) for step in range(3)]
        made.append((losses, engine.gradient.flat.tobytes()))
        pool.close()
    assert made[0] == made[1] == made[2]
    assert len(set(made[0][0])) == 3, "every step drops other units"


def test_output_dropout_of_nothing_changes_no_bit() -> None:
    network = make_network("gru", V=7, E=2, H=9, L=1)
    batch = make_batch(7, 4, 3)
    fresh = np.ones(3, np.bool_)
    made = []
    for top in (0.0, 1e-9):  # none computed, and computed with all units kept
        engine = Engine(network.parameters, 3, 4, Pool(1), output_dropout=top)
        assert bool(engine._shards[0].work.top.size) == (top > 0)
        loss, _ = engine.loss_and_gradient(*batch, fresh)
        made.append((loss, engine.gradient.flat.tobytes()))
    assert made[0] == made[1]
