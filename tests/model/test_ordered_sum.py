"""Sums in order: cut anywhere, they come to the same bits."""

from __future__ import annotations

import random

import pytest

from treadle.model import train
from treadle.model.network.ordered_sum import in_order


def test_a_sum_may_be_cut_anywhere() -> None:
    draw = random.Random(1)
    values = [draw.uniform(-20, 0) * 10.0 ** draw.randrange(-12, 3) for _ in range(500)]
    whole = in_order(values)
    for cut in range(0, 501, 7):
        assert in_order(values[cut:], in_order(values[:cut])).hex() == whole.hex()


def test_it_adds_from_left_to_right() -> None:
    assert in_order([1e16, 1.0, -1e16]) == 0.0  # a compensated or exact sum would say 1
    assert in_order([], 2.5) == 2.5


@pytest.mark.jit
def test_a_generation_sums_as_the_score_of_its_text_does() -> None:
    model = train("one two three four five six seven\n" * 4, max_steps=20)
    *_, last = pieces = list(model.stream("one", max_new_tokens=200, temperature=1.5, seed=3))
    text = "".join(piece.text for piece in pieces)
    assert last.result is not None
    total = model.score(text, context="one").total_log_probability
    assert total.hex() == last.result.total_log_probability.hex()
