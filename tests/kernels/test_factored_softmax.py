"""The factored softmax: gradients, the sum of its probabilities, and bits that never change."""

from dataclasses import replace
from typing import Any

import gradcheck
import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import CELLS, assert_close, dropout_masks, make_batch, same_bytes

from treadle.kernels import reference, scoring
from treadle.kernels.beam_search import step_log_probabilities
from treadle.kernels.factored_softmax import (
    factored_target_log_probabilities,
    log_probability_rows,
)
from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.scoring import score_shard_in_detail
from treadle.model.enums import Cell, Precision
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.shards import SHARD_ROWS
from treadle.model.network.workspace import allocate_state, allocate_workspace, pack_for_inference

CLUSTERS = [(32,), (32, 64), (64, 96, 128)]


def shape_of(
    cell: str = "gru", V: int = 139, E: int = 5, H: int = 7, L: int = 1, **more: Any
) -> Shape:
    return Shape(Cell(cell), V, E, H, L, **{"clusters": (32, 64, 128), **more})


def drawn(shape: Shape, seed: int = 5) -> Parameters:
    """Random parameters, somewhat larger than at the start of training."""
    parameters = Parameters.initial(shape, seed)
    parameters.flat *= 1.5
    return parameters


def wide(parameters: Parameters) -> reference.Parameters:
    return {name: array.astype(np.float64) for name, array in parameters.named().items()}


def states_of(shape: Shape, N: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (N, shape.H)).astype(np.float32)


def logits_of(parameters: Parameters, states: NDArray[np.float32]) -> tuple[Any, Any]:
    """The logits of tokens and clusters, in float64."""
    named = wide(parameters)
    Wy = named.get("Wy", named.get("embedding", np.zeros((0, 0))).T)
    return states @ Wy + named["by"], states @ named["Wc"] + named["bc"]


def test_gradients_of_the_reference_equal_finite_differences() -> None:
    shape = shape_of("lstm", V=9, E=3, H=4, clusters=(3, 5))
    parameters = wide(drawn(shape))
    tokens, targets = make_batch(9, 4, 3)
    targets[0] = 1, 4, 8  # in the head and in both clusters
    states = reference.zero_states(parameters, "lstm", 3)
    masks = reference.dropout_masks(0.3, (1, 4, 3, 4), np.random.default_rng(1))

    def results() -> tuple[float, int, reference.Parameters, reference.States]:
        return reference.network_loss_and_gradients(
            parameters, "lstm", tokens, targets, states, masks, shape.clusters
        )

    def mean_loss() -> float:
        loss, count, _, _ = results()
        return loss / count

    gradcheck.assert_gradients(mean_loss, parameters, results()[2])


@pytest.mark.parametrize("clusters", [(3,), (1, 2, 8), (5, 6)])
def test_probabilities_of_the_reference_have_the_sum_one(clusters: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    log_p = reference.factored_log_probabilities(
        rng.normal(size=(4, 2, 9)), rng.normal(size=(4, 2, len(clusters))), clusters
    )
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1, rtol=1e-12)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_log_probabilities_are_those_of_the_reference(clusters: tuple[int, ...]) -> None:
    shape = shape_of(clusters=clusters)
    parameters = drawn(shape)
    states = states_of(shape, 5)
    out = np.empty((5, shape.V), np.float32)
    log_probability_rows(pack_for_inference(parameters), states, out)
    expected = reference.factored_log_probabilities(*logits_of(parameters, states), clusters)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(out.astype(np.float64)).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_a_token_alone_has_the_bits_that_it_has_among_all(clusters: tuple[int, ...]) -> None:
    shape = shape_of(clusters=clusters)
    weights = pack_for_inference(drawn(shape))
    states = states_of(shape, 9)
    out = np.empty((9, shape.V), np.float32)
    log_probability_rows(weights, states, out)
    alone = np.empty((1, shape.V), np.float32)
    log_probability_rows(weights, states[4:5], alone)
    assert same_bytes(alone[0], out[4])
    for rows in (1, 2, 9):  # rows of logits at once
        logits = np.empty((rows, shape.logit_width), np.float32)
        for token in range(0, shape.V, 3):
            targets = np.full(9, token, np.int32)
            targets[3::2] = -1, (token * 7 + 5) % shape.V, 0
            found = np.empty(9, np.float32)
            factored_target_log_probabilities(weights, states, targets, logits, found)
            expected = np.where(targets < 0, np.float32(0), out[np.arange(9), targets])
            assert same_bytes(found, expected)


def check_engine(shape: Shape, T: int, B: int, drops: tuple[float, float] = (0.0, 0.0)) -> None:
    """Loss and every gradient are those of the reference."""
    parameters = drawn(shape)
    engine = Engine(parameters, B, T, Pool(1), drops[0], 3, output_dropout=drops[1])
    tokens, targets = make_batch(shape.V, T, B)
    masks = None
    if drops[1]:
        top = dropout_masks(drops[1], 3, 0, (1, T, B, shape.H), shape.L - 1)
        inner = dropout_masks(drops[0], 3, 0, (shape.L - 1, T, B, shape.H))
        masks = np.concatenate((inner, top))
    named = wide(parameters)
    cell = shape.cell.value
    states = reference.zero_states(named, cell, B)
    loss, count, gradients, _ = reference.network_loss_and_gradients(
        named, cell, tokens, targets, states, masks, shape.clusters
    )
    found, found_count = engine.loss_and_gradient(tokens, targets, np.ones(B, np.bool_))
    assert found == pytest.approx(loss, rel=1e-6)
    assert found_count == count
    assert_close(engine.gradient.named(), gradients, rtol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_an_engine_agrees_with_the_reference(cell: str) -> None:
    check_engine(shape_of(cell, L=2), T=3, B=4)


def test_more_rows_than_are_computed_at_once_agree_with_the_reference() -> None:
    check_engine(shape_of("rnn", H=3), T=40, B=SHARD_ROWS + 1)


def test_tied_weights_and_dropout_agree_with_the_reference() -> None:
    check_engine(shape_of(E=7, tied=True), T=3, B=4)
    check_engine(shape_of(L=2), T=3, B=4, drops=(0.3, 0.4))


def test_threads_change_no_bit() -> None:
    shape = shape_of()
    B = 2 * SHARD_ROWS + 5
    batch = make_batch(shape.V, 4, B)
    results = set()
    for threads in (1, 2, 3):
        engine = Engine(drawn(shape), B, 4, Pool(threads), seed=1, output_dropout=0.2)
        loss = engine.loss_and_gradient(*batch, np.ones(B, np.bool_))
        results.add((loss, engine.gradient.flat.tobytes()))
        engine.pool.close()
    assert len(results) == 1


def test_the_loss_is_the_sum_of_the_scores() -> None:
    shape = shape_of()
    parameters = drawn(shape)
    tokens, targets = make_batch(shape.V, 3, 4)
    fresh = np.ones(4, np.bool_)
    loss, _ = Engine(parameters, 4, 3, Pool(1)).loss_and_gradient(tokens, targets, fresh)
    out = np.empty((3, 4), np.float32)
    work = allocate_workspace(shape, 3, 4, backward=False)
    weights = pack_for_inference(parameters)
    code = CELL_CODES[shape.cell]
    state = allocate_state(shape, 4)
    scoring.score_shard(code, weights, work, state, tokens, targets, fresh, out)
    total = 0.0
    for score in out.reshape(-1).tolist():
        total -= score
    assert loss == total


@pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)
@pytest.mark.jit
def test_gradients_of_pairs_are_near_those_of_singles() -> None:
    shape = shape_of("lstm", V=139, H=34)
    batch = (*make_batch(shape.V, 5, 3), np.ones(3, np.bool_))
    exact = Engine(drawn(shape), 3, 5, Pool(1))
    pairs = Engine(drawn(shape), 3, 5, Pool(1), precision=Precision.BF16)
    assert pairs.loss_and_gradient(*batch)[0] == pytest.approx(
        exact.loss_and_gradient(*batch)[0], rel=1e-2
    )
    expected = {name: array.astype(np.float64) for name, array in exact.gradient.named().items()}
    assert_close(pairs.gradient.named(), expected, rtol=0.05)


def test_details_and_beams_have_the_bits_of_scores() -> None:
    shape = shape_of("lstm", L=2)
    weights = pack_for_inference(drawn(shape))
    code = CELL_CODES[shape.cell]
    B = 3
    V = shape.V
    tokens, targets = make_batch(V, 1, B)
    targets[0] = 2, 70, 138
    fresh = np.ones(B, np.bool_)
    work = allocate_workspace(shape, 1, B, backward=False)
    every = np.empty((V, B), np.float32)
    for token in range(V):
        some = np.full((1, B), token, np.int32)
        state = allocate_state(shape, B)
        row = every[token : token + 1]
        scoring.score_shard(code, weights, work, state, tokens, some, fresh, row)
    order = np.argsort(-every, axis=0, kind="stable")
    out = np.empty((1, B), np.float32)
    ranks = np.empty((1, B, 1), np.int32)
    ids = np.empty((1, B, 4), np.int32)
    values = np.empty((1, B, 4), np.float32)
    state = allocate_state(shape, B)
    score_shard_in_detail(
        code, weights, work, state, tokens, targets, fresh, out, ranks, ids, values
    )
    for b in range(B):
        assert out[0, b] == every[targets[0, b], b]
        assert ids[0, b].tolist() == order[:4, b].tolist()
        assert same_bytes(values[0, b], every[order[:4, b], b])
        assert order[ranks[0, b, 0] - 1, b] == targets[0, b]
    beams = np.empty((B, V), np.float32)
    step_log_probabilities(code, weights, work, allocate_state(shape, B), tokens[0], beams)
    assert same_bytes(np.ascontiguousarray(beams.T), every)


def test_a_full_softmax_has_no_part_of_it() -> None:
    full = Parameters.initial(replace(shape_of(), clusters=()), seed=2)
    factored = Parameters.initial(shape_of(), seed=2)
    assert full.flat.tobytes() == factored.flat[: full.flat.size].tobytes()
    sizes = np.diff((32, 64, 128, 139))
    odds = factored.stacks.bc - np.log(sizes)
    assert np.abs(odds).max() <= 1 / np.sqrt(7) + 1e-6, "tokens of all clusters are about as likely"
