"""A step of beam search gives the bits of scoring, for every token and any other texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import CELLS, make_network, same_bytes

from treadle.kernels import scoring
from treadle.kernels.beam_search import step_log_probabilities
from treadle.kernels.structs import State
from treadle.model.network.shape import CELL_CODES
from treadle.model.network.workspace import allocate_workspace, pack_for_inference


def states(L: int, B: int, H: int, seed: int) -> State:
    """Random states, as if something had been read."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (2, L, B, H)).astype(np.float32)
    return State(drawn[0], drawn[1])


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=8, deadline=None)
@given(
    V=st.integers(1, 40),
    H=st.integers(1, 20),
    L=st.integers(1, 3),
    B=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_log_probability_is_what_scoring_gives(
    cell: str, V: int, H: int, L: int, B: int, seed: int
) -> None:
    net = make_network(cell, V, 3, H, L, seed)
    weights = pack_for_inference(net.parameters)
    code = CELL_CODES[net.shape.cell]
    tokens = np.random.default_rng(seed).integers(V, size=B, dtype=np.int32)
    ours = states(L, B, H, seed)
    out = np.full((B, V), np.nan, np.float32)
    work = allocate_workspace(net.shape, 1, B, backward=False)
    step_log_probabilities(code, weights, work, ours, tokens, out)
    for row in range(B):  # each text by itself
        alone = allocate_workspace(net.shape, 1, 1, backward=False)
        for token in range(V):
            theirs = State(*(array[:, row : row + 1].copy() for array in states(L, B, H, seed)))
            score = np.empty((1, 1), np.float32)
            scoring.score_shard(
                code,
                weights,
                alone,
                theirs,
                tokens[row : row + 1].reshape(1, 1),
                np.full((1, 1), token, np.int32),
                np.zeros(1, np.bool_),
                score,
            )
            assert same_bytes(out[row, token : token + 1], score[0])
        assert same_bytes(ours.h[:, row], theirs.h[:, 0])
        if cell == "lstm":
            assert same_bytes(ours.c[:, row], theirs.c[:, 0])


@pytest.mark.parametrize("cell", CELLS)
def test_logits_are_left_as_they_are(cell: str) -> None:
    net = make_network(cell, 7, 3, 5, 2)
    weights = pack_for_inference(net.parameters)
    code = CELL_CODES[net.shape.cell]
    out = np.empty((4, 7), np.float32)
    work = allocate_workspace(net.shape, 1, 4, backward=False)
    tokens = np.array([0, 6, 6, 2], np.int32)
    step_log_probabilities(code, weights, work, states(2, 4, 5, 0), tokens, out)
    order = np.argsort(work.logits, axis=1)
    assert np.array_equal(order, np.argsort(out, axis=1))
    assert not np.allclose(work.logits, out)
    assert np.allclose(np.exp(out.astype(np.float64)).sum(axis=1), 1, atol=1e-5)
