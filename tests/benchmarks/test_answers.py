"""Answers of the sides of the bench, right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from treadle.benchmarks import answer_check
from treadle.benchmarks.answer_check import AnswerCheck, deviations, difference, reference_pass
from treadle.benchmarks.answers import FIRST_TOKEN, log_softmax, of_tokens, scoring_answers
from treadle.benchmarks.checks import CheckError
from treadle.benchmarks.networks import network_weights, scored_tokens
from treadle.benchmarks.processes import Worker, WorkerError
from treadle.benchmarks.rivals import Entrant
from treadle.benchmarks.settings import Case
from treadle.kernels import reference

SCORED = Case("score", "gru", 8, rows=6, steps=9, vocabulary=7, embedding=4)
DRAWN = Case("decode", "lstm", 8, rows=1, steps=40, vocabulary=7, embedding=4)


class AnsweringWorker(Worker):
    """A worker that answers without a child process."""

    def __init__(self, answered: dict[str, Any]) -> None:
        super().__init__("a side", [])
        self._answered = answered

    def answers(self, patience_s: float = 0) -> dict[str, Any]:
        return self._answered


def scored(off: float = 0.0) -> dict[str, Any]:
    """What a side that scores answers, each number off by so much."""
    tokens = scored_tokens(SCORED)
    log_probabilities, _ = reference_pass(SCORED, tokens)
    answered = scoring_answers(tokens, log_probabilities + np.float64(3.0))
    found = np.array(answered["log_probabilities"]) + off
    return {**answered, "log_probabilities": found.tolist()}


def drawn(temperature: float = 1.0) -> dict[str, Any]:
    """What a side that draws answers."""
    rng = np.random.default_rng(5)
    weights = network_weights(DRAWN)
    states = reference.zero_states(weights, DRAWN.cell, B=1)
    token = FIRST_TOKEN
    tokens = []
    for _ in range(DRAWN.steps):
        logits, states, _ = reference.network_forward(
            weights, DRAWN.cell, np.array([[token]]), states
        )
        p = np.exp(log_softmax(logits[0, 0] / temperature))
        token = int(rng.choice(DRAWN.vocabulary, p=p / p.sum()))
        tokens.append([token])
    return {"tokens": tokens, "h": states[0][-1].tolist()}


def test_right_scores_are_close_to_the_reference() -> None:
    assert difference(SCORED, scored(), is_int8=False) < 1e-12
    assert difference(SCORED, scored(0.5), is_int8=False) == pytest.approx(0.5)


def test_answers_are_of_a_few_rows() -> None:
    assert len(scored()["tokens"][0]) == 4


def test_scores_of_other_tokens_are_refused() -> None:
    answered = scored()
    answered["tokens"][3][0] += 1
    with pytest.raises(WorkerError, match="other tokens were scored"):
        difference(SCORED, answered, is_int8=False)


def test_right_draws_are_close_to_the_reference() -> None:
    assert difference(DRAWN, drawn(), is_int8=False) < 1e-6


def test_log_probabilities_of_draws_are_compared_where_there_are_some() -> None:
    answered = drawn()
    read = np.array([[FIRST_TOKEN], *answered["tokens"][:-1]], np.int32)
    found = of_tokens(reference_pass(DRAWN, read)[0], np.array(answered["tokens"]))
    answered = {"tokens": answered["tokens"], "log_probabilities": (found + 0.25).tolist()}
    assert difference(DRAWN, answered, is_int8=True) == pytest.approx(0.25)


def test_unfair_draws_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_check, "DEVIATIONS", 2.0)  # of 40 draws, not of 128
    with pytest.raises(WorkerError, match="standard deviations from fair draws"):
        difference(DRAWN, drawn(temperature=0.05), is_int8=False)


def test_deviations_count_from_the_expected_log_probability() -> None:
    log_probabilities = np.log(np.full((4, 2, 1), 1.0) * [0.9, 0.1])
    likely = np.zeros((4, 2), np.int32)
    assert deviations(log_probabilities, likely) == pytest.approx(8 * 0.1 / np.sqrt(8 * 0.09))


@pytest.mark.parametrize(
    ("options", "off", "passes"),
    [({}, 1e-4, True), ({}, 0.01, False), ({"int8": True}, 0.01, True), ({"int8": True}, 1, False)],
)
def test_tolerances(options: dict[str, Any], off: float, passes: bool) -> None:
    entrant = Entrant(AnsweringWorker(scored(off)), SCORED, options=options)
    check = AnswerCheck()
    if passes:
        check.check("other", entrant)
        assert check.off == {"other": pytest.approx(off)}
        return
    with pytest.raises(WorkerError, match="GRU 8, score: a side: its answers are off by"):
        check.check("other", entrant)
    with pytest.raises(CheckError, match="off by"):
        check.check("ours", entrant)


def test_an_earlier_version_is_not_asked() -> None:
    check = AnswerCheck()
    check.check("earlier", Entrant(AnsweringWorker({}), SCORED))
    assert check.off == {}
