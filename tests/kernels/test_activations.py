"""Largest errors, limits and coefficients of tanh, sigmoid, exp and log."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels import activations
from treadle.kernels.jit import PYTHON_MODE, jit

Floats = NDArray[np.float32]
Over = Callable[[Floats, Floats], None]

STRIDE = 40_009 if PYTHON_MODE else 1009
"""One of so many float32 is tried; exhaustive runs gave the bounds, to the digits shown."""


@jit
def _tanh_over(x: Floats, out: Floats) -> None:
    for n in range(x.size):
        out[n] = activations.tanh(x[n])


@jit
def _sigmoid_over(x: Floats, out: Floats) -> None:
    for n in range(x.size):
        out[n] = activations.sigmoid(x[n])


@jit
def _exp_over(x: Floats, out: Floats) -> None:
    for n in range(x.size):
        out[n] = activations.exp(x[n])


@jit
def _log_over(x: Floats, out: Floats) -> None:
    for n in range(x.size):
        out[n] = activations.log(x[n])


def apply(over: Over, x: Any) -> Floats:
    arguments = np.asarray(x, np.float32)
    out = np.empty_like(arguments)
    over(arguments, out)
    return out


def floats_between(low: float, high: float, stride: int = STRIDE) -> Floats:
    """Every stride-th float32 from `low` > 0 to `high`, both ends included."""
    first, last = np.array([low, high], np.float32).view(np.int32).tolist()
    bits = np.append(np.arange(first, last, stride, dtype=np.int32), np.int32(last))
    return bits.view(np.float32)


def both_signs(x: Floats) -> Floats:
    return np.concatenate((-x[::-1], x))


def ulp_errors(ours: Floats, exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors in units of the distance between floats at the exact value."""
    unit = np.spacing(np.abs(exact.astype(np.float32))).astype(np.float64)
    errors: NDArray[np.float64] = np.abs(ours.astype(np.float64) - exact) / unit
    return errors


def test_tanh_error() -> None:
    x = np.concatenate((floats_between(1e-38, 0.5), floats_between(0.5, 9.0, 1 + STRIDE // 16)))
    assert ulp_errors(apply(_tanh_over, x), np.tanh(x.astype(np.float64))).max() <= 5.2


def test_sigmoid_error() -> None:
    x = both_signs(floats_between(1e-10, 40.0))
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    ours = apply(_sigmoid_over, x)
    assert np.abs(ours - exact).max() <= 1.9e-7
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_exp_error() -> None:
    positive = floats_between(1e-10, 88.0)
    negative = -floats_between(1e-10, 87.0)
    x = np.concatenate((negative[::-1], positive))
    ours = apply(_exp_over, x)
    assert ulp_errors(ours, np.exp(x.astype(np.float64))).max() <= 1.1
    assert (np.diff(ours) >= 0).all()


def test_log_error() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    huge = float(np.finfo(np.float32).max)
    near_one = floats_between(0.4, 2.5, 1 + STRIDE // 16)
    x = np.sort(np.concatenate((floats_between(tiny, huge), near_one[near_one != 1])))
    ours = apply(_log_over, x)
    exact = np.log(x.astype(np.float64))
    assert ulp_errors(ours, exact).max() <= 0.9
    assert (np.diff(ours) >= 0).all()
    assert apply(_log_over, [1.0]).tobytes() == np.zeros(1, np.float32).tobytes()


def test_tanh_is_odd() -> None:
    x = floats_between(1e-38, 100.0)
    assert (-apply(_tanh_over, x)).tobytes() == apply(_tanh_over, -x).tobytes()


def test_tanh_is_one_at_its_limit_and_nowhere_more() -> None:
    # Without a stride: what leaves [-1, 1] by one bit would make 1 - h^2 negative.
    stride = STRIDE if PYTHON_MODE else 1
    y = apply(_tanh_over, floats_between(7.5, 8.3, stride))
    assert y.max() == 1
    assert apply(_tanh_over, [activations._TANH_LIMIT, 9, 1e30]).tolist() == [1, 1, 1]


def test_tanh_goes_back_by_few_bits_at_most() -> None:
    stride = STRIDE if PYTHON_MODE else 7
    y = apply(_tanh_over, floats_between(0.5, 8.3, stride)).astype(np.float64)
    assert (y - np.maximum.accumulate(y)).min() >= -8 * 2.0**-24


@pytest.mark.parametrize(
    ("over", "x", "expected"),
    [
        (_tanh_over, [0.0, -0.0, 1e-45, np.inf, -np.inf], [0.0, -0.0, 1e-45, 1, -1]),
        (_sigmoid_over, [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.5, 0.5, 1, 0, 1, 0]),
        (_exp_over, [0.0, -0.0, 1e-45, -np.inf, -87.1, -1e30], [1, 1, 1, 0, 0, 0]),
    ],
)
def test_ends(over: Over, x: list[float], expected: list[float]) -> None:
    assert apply(over, x).tobytes() == np.array(expected, np.float32).tobytes()


def test_exp_stays_finite() -> None:
    at_limit = apply(_exp_over, [88.0])
    assert np.isfinite(at_limit).all()
    assert (apply(_exp_over, [88.1, 1e30, np.inf]) == at_limit).all()
    assert apply(_exp_over, [-87.0]) >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("over", [_tanh_over, _sigmoid_over, _exp_over])
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_nan_stays_nan(over: Over, nan: float) -> None:
    """A network that diverged must not continue unnoticed. A vector of them takes all lanes."""
    assert np.isnan(apply(over, np.full(37, nan))).all()


def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "fit_activations.py"
    specification = importlib.util.spec_from_file_location("fit_activations", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    all_points = module.chebyshev_points
    # Fewer points than the script takes: seven digits are the same, in a fraction of the time.
    monkeypatch.setattr(
        module, "chebyshev_points", lambda low, high, count: all_points(low, high, min(count, 600))
    )
    return module


def coefficients(letter: str) -> list[float]:
    names = (f"_{letter}{n}" for n in range(10))
    return [float(getattr(activations, name)) for name in names if hasattr(activations, name)]


def test_coefficients_are_what_the_script_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark_module(monkeypatch)
    P, Q, L, E = (coefficients(letter) for letter in "PQLE")
    p, q, _ = script.fit_tanh(len(P) - 1, len(Q))
    assert q[0] == 1
    e, _ = script.fit_exp(len(E) - 1)
    logarithm, _ = script.fit_log(len(L) - 1)
    for ours, fitted in ((P, p), (Q, q[1:]), (E, e), (L, logarithm)):
        np.testing.assert_allclose(ours, fitted, rtol=1e-6)
