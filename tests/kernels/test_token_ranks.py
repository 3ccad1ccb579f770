"""Token ranks and top-k tokens against sorts of all logits; detailed scores against plain ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from treadle.kernels import scoring
from treadle.kernels.scoring import score_shard_in_detail
from treadle.kernels.token_ranks import token_rank, top_k_tokens
from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.workspace import allocate_state, allocate_workspace, pack_for_inference

Array = npt.NDArray[np.float32]

LOGITS = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-50, 50, width=32)),
)


@settings(deadline=None)
@given(LOGITS)
def test_a_rank_is_the_place_in_a_stable_sort(logits: Array) -> None:
    order = np.argsort(-logits, kind="stable").tolist()
    assert [token_rank(logits, token) for token in order] == list(range(1, logits.size + 1))


@settings(deadline=None)
@given(LOGITS, st.data())
def test_the_likeliest_are_the_first_of_a_stable_sort(logits: Array, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, logits.size))
    ids = np.full(count, -7, np.int32)
    top_k_tokens(logits, ids)
    assert ids.tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


def test_logits_that_are_no_numbers_stay_in_bounds() -> None:
    logits = np.full(5, np.nan, np.float32)
    ids = np.full(3, -7, np.int32)
    top_k_tokens(logits, ids)
    assert sorted(ids.tolist()) == [0, 1, 2]
    assert 1 <= token_rank(logits, 4) <= 5


@pytest.mark.parametrize("alternatives", [0, 3])
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("cell", [Cell.GRU, Cell.LSTM])
def test_details_leave_the_log_probabilities_and_the_state_as_they_are(
    cell: Cell, ranked: bool, alternatives: int
) -> None:
    V = 9
    T = 5
    B = 3
    A = alternatives
    config = NetworkConfig(cell=cell, hidden_size=6, layers=2, embedding_size=4)
    shape = Shape.of(config, V)
    parameters = Parameters.initial(shape, seed=3)
    parameters.flat *= 4
    weights = pack_for_inference(parameters)
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(0, V, (T, B)).astype(np.int32) for _ in range(2))
    targets[1, 2] = targets[4, 0] = -1
    fresh = np.array([True, False, True])
    plain = allocate_state(shape, B)
    detailed = allocate_state(shape, B)
    plain.h[:] = detailed.h[:] = 0.3
    expected = np.empty((T, B), np.float32)
    out = np.empty((T, B), np.float32)
    work = allocate_workspace(shape, T, B, backward=False)
    code = CELL_CODES[cell]
    scoring.score_shard(code, weights, work, plain, tokens, targets, fresh, expected)
    ranks = np.full((T, B, int(ranked)), -7, np.int32)
    ids = np.full((T, B, A), -7, np.int32)
    values = np.full((T, B, A), -7, np.float32)
    score_shard_in_detail(
        code, weights, work, detailed, tokens, targets, fresh, out, ranks, ids, values
    )
    assert out.tobytes() == expected.tobytes()
    assert detailed.h.tobytes() == plain.h.tobytes()
    assert detailed.c.tobytes() == plain.c.tobytes()
    # What every token would have scored in each place gives the ranks and the likeliest.
    every = np.empty((V, T, B), np.float32)
    for token in range(V):
        state = allocate_state(shape, B)
        state.h[:] = 0.3
        target = np.where(targets < 0, -1, token).astype(np.int32)
        scoring.score_shard(code, weights, work, state, tokens, target, fresh, every[token])
    for t, b in np.ndindex(T, B):
        if targets[t, b] < 0:
            assert not ranks[t, b].any()
            assert not ids[t, b].any()
            assert not values[t, b].any()
            continue
        order = np.argsort(-every[:, t, b], kind="stable")
        assert ids[t, b].tolist() == order[:A].tolist()
        assert values[t, b].tobytes() == every[order[:A], t, b].tobytes()
        if ranked:
            assert order[ranks[t, b, 0] - 1] == targets[t, b]
