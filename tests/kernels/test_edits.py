"""What sessions change about their logits, against a plain twin; and what decoding makes of it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.logit_edits import NOTHING_LEFT, Edits, edit_logits, edits_logits, note_token

V, END = 9, 8
Floats = NDArray[np.float32]


def edits_of(**fields: Any) -> Edits:
    """One session that changes nothing but what is given."""
    plain: dict[str, Any] = {
        "bias": [-1], "biases": np.zeros((0, V), np.float32), "counted": [-1],
        "counts": np.zeros((0, 2, V), np.int32), "repetition": np.ones(1, np.float32),
        "presence": np.zeros(1, np.float32), "frequency": np.zeros(1, np.float32),
        "made": [0], "least": [0], "rule": [-1], "rules": np.zeros((0, V), np.int32),
        "forced": np.zeros((1, 0), np.int32),
    }  # fmt: skip
    whole = {"bias", "counted", "counts", "made", "least", "rule", "rules", "forced"}
    arrays: dict[str, Any] = {
        name: np.asarray(value, np.int32 if name in whole else np.float32)
        for name, value in (plain | fields).items()
    }
    return Edits(**arrays)


def naive(logits: Floats, edits: Edits) -> list[float]:
    """One token at a time, in the order that the module tells."""
    made = []
    for v, logit in enumerate(logits):
        score = np.float32(logit)
        if edits.bias[0] >= 0:
            score += edits.biases[edits.bias[0], v]
        if edits.counted[0] >= 0:
            new, before = edits.counts[edits.counted[0], :, v]
            if new + before:
                penalty = edits.repetition[0]
                score = score / penalty if score > 0 else score * penalty
            if new:
                score -= edits.presence[0] + edits.frequency[0] * np.float32(new)
        if v == END and edits.made[0] < edits.least[0]:
            score = np.float32(-np.inf)
        if edits.rule[0] >= 0 and edits.rules[edits.rule[0], v] < 0:
            score = np.float32(-np.inf)
        made.append(float(score))
    return made


def random_edits(rng: np.random.Generator) -> Edits:
    biases = rng.choice([0, 0, -np.inf, 1.5, -3], size=(2, V))
    return edits_of(
        bias=[rng.integers(-1, 2)], biases=biases,
        counted=[rng.integers(-1, 3)], counts=rng.integers(0, 3, (3, 2, V)),
        repetition=[rng.choice([1.0, 1.3, 0.5])], presence=[rng.choice([0.0, 0.7])],
        frequency=[rng.choice([0.0, 0.2, -0.1])],
        made=[rng.integers(3)], least=[rng.integers(3)],
        rule=[rng.integers(-1, 2)], rules=rng.integers(-1, 2, (2, V)),
    )  # fmt: skip


def test_edits_are_those_of_a_plain_twin() -> None:
    rng, changed = np.random.default_rng(1), 0
    for _ in range(300):
        edits, logits = random_edits(rng), rng.standard_normal(V).astype(np.float32)
        out = np.full(V, np.nan, np.float32)
        edit_logits(edits, 0, END, logits, out)
        wanted = np.array(naive(logits, edits), np.float32)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)
        same = out.tobytes() == logits.tobytes()
        assert edits_logits(edits, 0) or same
        changed += not same
    assert changed > 200


def test_a_session_that_asks_for_nothing_changes_nothing() -> None:
    assert not edits_logits(edits_of(), 0)
    for field in ({"bias": [0]}, {"counted": [0]}, {"rule": [0]}, {"least": [1]}):
        assert edits_logits(edits_of(**field), 0)


def test_a_token_is_taken_down() -> None:
    rules = np.full((2, V), -1)
    rules[0, 3], rules[1, 4] = 1, 0
    edits = edits_of(counted=[0], counts=np.zeros((1, 2, V)), rule=[0], rules=rules)
    note_token(edits, 0, 3)
    note_token(edits, 0, 4)
    note_token(edits, 0, 3)
    assert edits.counts[0, 0].tolist() == [0, 0, 0, 2, 1, 0, 0, 0, 0]
    assert not edits.counts[0, 1].any()
    assert (edits.made[0], edits.rule[0]) == (3, 1)
    note_token(edits, 0, 3)
    assert edits.rule[0] == NOTHING_LEFT


@pytest.mark.parametrize("end", [-1, END])
def test_the_end_is_out_before_the_least_tokens(end: int) -> None:
    logits, out = np.zeros(V, np.float32), np.zeros(V, np.float32)
    edit_logits(edits_of(least=[2], made=[1]), 0, end, logits, out)
    assert np.isneginf(out).nonzero()[0].tolist() == ([END] if end == END else [])
    edit_logits(edits_of(least=[2], made=[2]), 0, end, logits, out)
    assert not np.isneginf(out).any()
