"""Sampling against the reference: temperature, truncation, and the walk over the rest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_oracle import CLOSE, possible

from treadle.kernels import reference
from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.loss import row_max, row_sum, shifted_exp
from treadle.kernels.sampling import Truncation, allocate_sampling_scratch, argmax, draw, sample

Floats = NDArray[np.float32]

CASES = 200 if PYTHON_MODE else 1000


def ours(
    logits: Any,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    u: float = 0.0,
    typical_p: float = 1.0,
) -> int:
    row = np.asarray(logits, np.float32)
    weights = np.full(row.size, np.nan, np.float32)
    largest_logit = np.float32(row_max(row))
    total = np.float32(shifted_exp(row, largest_logit, weights))
    cuts = Truncation(top_k, np.float32(top_p), np.float32(min_p), np.float32(typical_p))
    scratch = allocate_sampling_scratch(row.size)
    heat = np.float32(temperature)
    return int(sample(row, largest_logit, heat, cuts, np.float32(u), weights, total, scratch))


def test_draws_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(1)
    clear = 0
    for _ in range(CASES):
        V = int(rng.integers(1, 40))
        logits = (rng.choice([0.1, 1.0, 5.0]) * rng.standard_normal(V)).astype(np.float32)
        if rng.random() < 0.3:  # ties
            logits = np.round(logits)
        settings: dict[str, Any] = {
            "temperature": float(rng.choice([0.0, 0.3, 0.7, 1.0, 2.0, 100.0])),
            "top_k": int(rng.choice([0, 0, 1, 2, 5, V, V + 3])),
            "top_p": float(np.float32(rng.choice([1.0, 1.0, 0.9, 0.5, 0.1, 1e-6]))),
            "min_p": float(np.float32(rng.choice([0.0, 0.0, 1e-6, 0.05, 0.3, 1.0]))),
            "u": float(np.float32(rng.random(dtype=np.float32))),
            "typical_p": float(np.float32(rng.choice([1.0, 1.0, 0.95, 0.5, 0.2, 1e-6]))),
        }
        drawn = ours(logits, **settings)
        expected = possible(logits, **settings)
        assert drawn in expected, (logits, settings)
        clear += len(expected) == 1
    assert clear > 0.95 * CASES


LOGITS = np.log([0.1, 0.4, 0.05, 0.25, 0.2])
US = [0.0, 0.09, 0.11, 0.49, 0.51, 0.54, 0.56, 0.79, 0.81, float(np.float32(1 - 2.0**-24))]


def test_draw_walks_the_tokens_by_id() -> None:
    assert [ours(LOGITS, u=u) for u in US] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_borders_are_those_of_the_reference() -> None:
    """What is reached exactly; powers of two make the sums exact."""
    assert [ours([0, 0, 0, 0], u=u) for u in (0.25, 0.5, 0.75)] == [1, 2, 3]
    us = np.linspace(0, 0.999, 50)
    assert {ours([0, 0, 0, 0], top_p=0.5, u=float(u)) for u in us} == {0, 1}
    for u in (0.25, 0.5, 0.75):
        assert ours([0, 0, 0, 0], u=u) == reference.sample(np.zeros(4), u=u)


def test_zero_temperature_is_greedy() -> None:
    assert [ours(LOGITS, temperature=0, u=u) for u in US] == [1] * len(US)
    assert ours([0, 3, 3, 1], temperature=0) == 1
    assert argmax(np.array([-np.inf, -2, -1, -1], np.float32)) == 2


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-10, 1e-3])
def test_tiny_temperatures_are_all_but_greedy(temperature: float) -> None:
    logits = [-3e4, 2.0, 1.9, 2.0, 3e4 - 1, 3e4]
    assert {ours(logits, temperature, u=u) for u in US} == {5}
    assert [ours([1, 2, 2], temperature, u=u) for u in (0.0, 0.49, 0.51)] == [1, 1, 2]


def test_a_high_temperature_draws_all_alike() -> None:
    us = (np.arange(50) + 0.5) / 50
    counts = np.bincount([ours([-3, 0, 3, 1, 2], 1e30, u=float(u)) for u in us])
    assert counts.tolist() == [10] * 5


def test_top_k() -> None:
    assert {ours(LOGITS, top_k=1, u=u) for u in US} == {1}
    # 1 and 3 stay, .4 and .25: the border is at .615.
    assert [ours(LOGITS, top_k=2, u=u) for u in (0.0, 0.61, 0.62, 0.99)] == [1, 1, 3, 3]
    assert [ours(LOGITS, top_k=9, u=u) for u in US] == [ours(LOGITS, u=u) for u in US]


def test_top_k_keeps_the_lower_of_equals() -> None:
    us = np.linspace(0, 0.999, 50)
    assert {ours([1, 2, 1, 1], top_k=3, u=float(u)) for u in us} == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.66, {1, 3, 4}), (0.96, {0, 1, 2, 3, 4})],
)
def test_top_p(top_p: float, kept: set[int]) -> None:
    us = np.linspace(0, 0.9999, 200)
    assert {ours(LOGITS, top_p=top_p, u=float(u)) for u in us} == kept


def test_top_p_of_what_top_k_kept() -> None:
    us = np.linspace(0, 0.9999, 50)
    # Of .4 .25 the first is .615: alone it reaches .6, though not of the whole vocabulary.
    assert {ours(LOGITS, top_k=2, top_p=0.6, u=float(u)) for u in us} == {1}


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [
        (0.0, {0, 1, 2, 3, 4}),
        (0.12, {0, 1, 2, 3, 4}),
        (0.13, {0, 1, 3, 4}),
        (0.26, {1, 3, 4}),
        (0.51, {1, 3}),
        (0.63, {1}),
        (1.0, {1}),
    ],
)
def test_min_p(min_p: float, kept: set[int]) -> None:
    us = np.linspace(0, 0.9999, 200)
    assert {ours(LOGITS, min_p=min_p, u=float(u)) for u in us} == kept


def test_min_p_is_of_what_the_temperature_makes() -> None:
    us = np.linspace(0, 0.9999, 200)
    # At temperature 2 the shares of the likeliest are roots: .5 becomes .71, and .35 is too little.
    assert {ours(LOGITS, temperature=2, min_p=0.51, u=float(u)) for u in us} == {1, 3, 4}
    assert {ours(LOGITS, temperature=0, min_p=0.1, u=float(u)) for u in us} == {1}


def test_min_p_of_what_top_k_and_top_p_kept() -> None:
    us = np.linspace(0, 0.9999, 200)
    # Earlier truncation does not change how likely the others are relative to the likeliest.
    assert {ours(LOGITS, top_k=3, min_p=0.1, u=float(u)) for u in us} == {1, 3, 4}
    assert {ours(LOGITS, top_k=3, min_p=0.6, u=float(u)) for u in us} == {1, 3}
    # Had min-p been first, top_p would have been of .65 and kept one token.
    assert {ours(LOGITS, top_p=0.6, min_p=0.6, u=float(u)) for u in us} == {1, 3}


def test_equals_of_the_likeliest_stay_at_any_min_p() -> None:
    us = np.linspace(0, 0.9999, 50)
    assert {ours([1, 3, 3, 2, 3], min_p=1.0, u=float(u)) for u in us} == {1, 2, 4}


def naive_kept(logits: Floats, temperature: float, min_p: float) -> tuple[set[int], set[int]]:
    """What surely stays and what may: probability at least min_p of the largest, in float64."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    kept = (
        set(np.flatnonzero(p >= min_p * p.max() * slack).tolist())
        for slack in (1 + CLOSE, 1 - CLOSE)
    )
    surely, perhaps = kept
    return surely | {int(np.argmax(logits))}, perhaps


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    min_p=st.floats(2.0**-10, 1.0, width=32),
    u=st.integers(0, 2**24 - 1),
)
@hypothesis_settings(max_examples=CASES, deadline=None)
def test_min_p_keeps_what_a_naive_filter_keeps(
    logits: list[float], temperature: float, min_p: float, u: int
) -> None:
    """One draw is enough for each: of the tokens left it is the one that u's share falls on."""
    row = np.array(logits, np.float32)
    surely, perhaps = naive_kept(row, temperature, min_p)
    drawn = ours(row, temperature, min_p=min_p, u=u / 2**24)
    assert drawn in perhaps
    if surely == perhaps:
        p = np.exp((row.astype(np.float64) - row.max()) / temperature)
        kept = np.array(sorted(surely))
        reached = np.cumsum(p[kept]) / p[kept].sum()
        near = {
            int(kept[min((reached <= x).sum(), kept.size - 1)])
            for x in (u / 2**24 - CLOSE, u / 2**24, u / 2**24 + CLOSE)
        }
        assert drawn in near


@pytest.mark.parametrize("V", [1, 15, 16, 17, 65, 255, 256, 257, 1000])
def test_a_draw_adds_up_weights_in_the_order_of_the_reference(V: int) -> None:
    """To the bit: thresholds are sums, and numbers next to them."""
    rng = np.random.default_rng(V)
    kinds = [
        rng.random(V),
        np.exp(-20 * rng.random(V)),
        np.where(rng.random(V) < 0.1, rng.random(V), 0),
        np.ones(V),
        np.where(np.arange(V) == V // 2, 1, 0),
    ]
    for kind in kinds:
        weights = kind.astype(np.float32)
        total = np.float32(row_sum(weights))
        assert total == reference.lane_sum(weights)
        sums = rng.choice(np.cumsum(weights, dtype=np.float32), 20)
        thresholds = [*sums, *np.nextafter(sums, 0), total, np.nextafter(total, 9), np.float32(0)]
        for threshold in thresholds:
            place = draw(weights, np.float32(threshold))
            assert place == reference.draw(weights, np.float32(threshold))
            assert weights[place] > 0 or not weights.any()


def test_the_highest_u_draws_the_last_token() -> None:
    """Also where u times the whole rounds up to more than the weights, added one by one, reach."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        assert ours(rng.uniform(-1, 1, 37), u=1 - 2.0**-24) == 36


def test_tokens_of_no_weight_are_never_drawn() -> None:
    us = np.linspace(0, 1 - 2.0**-24, 50)
    assert {ours([-1e5, 0, -1e5, 0, -1e5], u=float(u)) for u in us} == {1, 3}


@pytest.mark.parametrize(
    ("typical_p", "kept"),
    # Surprisals 2.30 .92 3.00 1.39 1.61 around the entropy 1.415: 3, 4, 1, 0, 2.
    [(1e-6, {3}), (0.24, {3}), (0.26, {3, 4}), (0.46, {1, 3, 4}), (0.94, {0, 1, 3, 4})],
)
def test_typical_p(typical_p: float, kept: set[int]) -> None:
    us = np.linspace(0, 0.9999, 200)
    assert {ours(LOGITS, typical_p=typical_p, u=float(u)) for u in us} == kept


def test_typical_p_is_of_what_the_others_kept() -> None:
    us = np.linspace(0, 0.9999, 200)
    # Of .4 .25 .2, renormalized, the entropy is 1.061: 3 is nearest with .96.
    assert {ours(LOGITS, top_k=3, typical_p=0.2, u=float(u)) for u in us} == {3}
    assert {ours([0, 0, 0, 0], typical_p=0.5, u=float(u)) for u in us} == {0, 1}
    assert {ours(LOGITS, top_k=1, typical_p=0.2, u=float(u)) for u in us} == {1}


def test_a_logit_of_minus_infinity_is_never_drawn() -> None:
    logits = [-np.inf, 0.5, -np.inf, 1.0, -np.inf]
    us = np.linspace(0, 1 - 2.0**-24, 50)
    every: list[dict[str, Any]] = [
        {},
        {"temperature": 0.5},
        {"temperature": 100},
        {"top_k": 4},
        {"top_p": 0.999},
        {"typical_p": 0.999},
        {"min_p": 1e-9},
        {"temperature": 1e-30},
    ]
    for settings in every:
        assert {ours(logits, u=float(u), **settings) for u in us} <= {1, 3}, settings
    assert ours(logits, temperature=0) == 3
