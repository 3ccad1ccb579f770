"""A sequence's logit edits against a plain twin, and their effect on decoding."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.logit_edits import DEAD_END, LogitEdits, edit_logits, has_edits, record_token

V = 9
END = 8
Floats = NDArray[np.float32]


def edits_of(**fields: Any) -> LogitEdits:
    """One sequence that changes nothing but what is given."""
    plain: dict[str, Any] = {
        "bias_row": [-1],
        "biases": np.zeros((0, V), np.float32),
        "count_row": [-1],
        "counts": np.zeros((0, 2, V), np.int32),
        "repetition": np.ones(1, np.float32),
        "presence": np.zeros(1, np.float32),
        "frequency": np.zeros(1, np.float32),
        "new_tokens": [0],
        "min_new_tokens": [0],
        "constraint_state": [-1],
        "transitions": np.zeros((0, V), np.int32),
        "forced": np.zeros((1, 0), np.int32),
    }
    whole = {
        "bias_row",
        "count_row",
        "counts",
        "new_tokens",
        "min_new_tokens",
        "constraint_state",
        "transitions",
        "forced",
    }
    arrays: dict[str, Any] = {
        name: np.asarray(value, np.int32 if name in whole else np.float32)
        for name, value in (plain | fields).items()
    }
    return LogitEdits(**arrays)


def naive(logits: Floats, edits: LogitEdits) -> list[float]:
    """One token at a time, in the order that the module documents."""
    made = []
    for v, logit in enumerate(logits):
        score = np.float32(logit)
        if edits.bias_row[0] >= 0:
            score += edits.biases[edits.bias_row[0], v]
        if edits.count_row[0] >= 0:
            new, before = edits.counts[edits.count_row[0], :, v]
            if new + before:
                penalty = edits.repetition[0]
                score = score / penalty if score > 0 else score * penalty
            if new:
                score -= edits.presence[0] + edits.frequency[0] * np.float32(new)
        if v == END and edits.new_tokens[0] < edits.min_new_tokens[0]:
            score = np.float32(-np.inf)
        if edits.constraint_state[0] >= 0 and edits.transitions[edits.constraint_state[0], v] < 0:
            score = np.float32(-np.inf)
        made.append(float(score))
    return made


def random_edits(rng: np.random.Generator) -> LogitEdits:
    biases = rng.choice([0, 0, -np.inf, 1.5, -3], size=(2, V))
    return edits_of(
        bias_row=[rng.integers(-1, 2)],
        biases=biases,
        count_row=[rng.integers(-1, 3)],
        counts=rng.integers(0, 3, (3, 2, V)),
        repetition=[rng.choice([1.0, 1.3, 0.5])],
        presence=[rng.choice([0.0, 0.7])],
        frequency=[rng.choice([0.0, 0.2, -0.1])],
        new_tokens=[rng.integers(3)],
        min_new_tokens=[rng.integers(3)],
        constraint_state=[rng.integers(-1, 2)],
        transitions=rng.integers(-1, 2, (2, V)),
    )


def test_edits_are_those_of_a_plain_twin() -> None:
    rng = np.random.default_rng(1)
    changed = 0
    for _ in range(300):
        edits = random_edits(rng)
        logits = rng.standard_normal(V).astype(np.float32)
        out = np.full(V, np.nan, np.float32)
        edit_logits(edits, 0, END, logits, out)
        expected = np.array(naive(logits, edits), np.float32)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
        same = out.tobytes() == logits.tobytes()
        assert has_edits(edits, 0) or same
        changed += not same
    assert changed > 200


def test_a_sequence_that_asks_for_nothing_changes_nothing() -> None:
    assert not has_edits(edits_of(), 0)
    for field in (
        {"bias_row": [0]},
        {"count_row": [0]},
        {"constraint_state": [0]},
        {"min_new_tokens": [1]},
    ):
        assert has_edits(edits_of(**field), 0)


def test_a_token_is_taken_down() -> None:
    transitions = np.full((2, V), -1)
    transitions[0, 3] = 1
    transitions[1, 4] = 0
    edits = edits_of(
        count_row=[0], counts=np.zeros((1, 2, V)), constraint_state=[0], transitions=transitions
    )
    record_token(edits, 0, 3)
    record_token(edits, 0, 4)
    record_token(edits, 0, 3)
    assert edits.counts[0, 0].tolist() == [0, 0, 0, 2, 1, 0, 0, 0, 0]
    assert not edits.counts[0, 1].any()
    assert (edits.new_tokens[0], edits.constraint_state[0]) == (3, 1)
    record_token(edits, 0, 3)
    assert edits.constraint_state[0] == DEAD_END


@pytest.mark.parametrize("end", [-1, END])
def test_the_end_is_out_before_the_least_tokens(end: int) -> None:
    logits = np.zeros(V, np.float32)
    out = np.zeros(V, np.float32)
    edit_logits(edits_of(min_new_tokens=[2], new_tokens=[1]), 0, end, logits, out)
    assert np.isneginf(out).nonzero()[0].tolist() == ([END] if end == END else [])
    edit_logits(edits_of(min_new_tokens=[2], new_tokens=[2]), 0, end, logits, out)
    assert not np.isneginf(out).any()
