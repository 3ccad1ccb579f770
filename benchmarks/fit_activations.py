"""`fit` finds the coefficients that give the compiled activations the least error.

Fits, by iteratively re-weighted least squares (Lawson's algorithm on a linearized
quotient, as Sanathanan and Koerner did for transfer functions):

- tanh(x) = x P(x^2) / Q(x^2) on [0, LIMIT], relative error, where LIMIT is the point past
  which float32 cannot tell tanh from 1;
- exp(r) = 1 + r + r^2 E(r) on [-ln 2 / 2, ln 2 / 2], relative error;
- log(m) = f - f^2 / 2 + f^3 L(f), f = m - 1, on [sqrt(1/2), sqrt(2)], relative error.

Prints the coefficients that treadle.kernels.activations holds, lowest power first. Run:

    python benchmarks/fit_activations.py
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

LIMIT = 9.02


def chebyshev_points(low: float, high: float, count: int) -> Float64s:
    """Returns `count` Chebyshev points of [low, high], dense at the ends."""
    angles = (np.arange(count) + 0.5) * np.pi / count
    points: Float64s = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(angles)
    return points


def fit(columns: Float64s, target: Float64s, rounds: int = 300) -> Float64s:
    """Solves `columns @ c ~ target` for the least maximum error (Lawson's weights)."""
    weights = np.ones(target.size)
    best = np.zeros(columns.shape[1])
    best_error = np.inf
    for _ in range(rounds):
        root = np.sqrt(weights)
        answer = np.linalg.lstsq(columns * root[:, None], target * root, rcond=None)[0]
        solution = answer.astype(np.float64)
        error = np.abs(columns @ solution - target)
        if error.max() < best_error:
            best = solution
            best_error = float(error.max())
        weights *= error / error.mean() + 1e-3
        weights /= weights.sum()
    return best


def fit_tanh(numerator: int, denominator: int) -> tuple[Float64s, Float64s, float]:
    """Fits x P(x^2) / Q(x^2) with Q(0) = 1; returns P, Q and the relative error."""
    x = chebyshev_points(1e-3, LIMIT, 6000)
    y = np.tanh(x)
    square = x * x
    previous = np.ones_like(x)
    best = (np.zeros(1), np.ones(1), np.inf)
    scale = LIMIT * LIMIT
    for _ in range(30):
        powers = (square / scale)[:, None] ** np.arange(max(numerator, denominator) + 1)
        left = x[:, None] * powers[:, : numerator + 1] / (y * previous)[:, None]
        right = -powers[:, 1 : denominator + 1] / previous[:, None]
        c = fit(np.hstack([left, right]), 1.0 / previous, 60)
        p = c[: numerator + 1] / scale ** np.arange(numerator + 1)
        q = np.r_[1.0, c[numerator + 1 :] / scale ** np.arange(1, denominator + 1)]
        previous = np.polyval(q[::-1], square)
        error = float(np.abs(x * np.polyval(p[::-1], square) / previous / y - 1).max())
        if error < best[2]:
            best = (p, q, error)
    return best


def fit_exp(degree: int) -> tuple[Float64s, float]:
    """Fits E of the given degree; returns it and the relative error of exp."""
    r = chebyshev_points(-0.5 * np.log(2) - 1e-6, 0.5 * np.log(2) + 1e-6, 4000)
    y = np.exp(r)
    columns = (r**2)[:, None] * r[:, None] ** np.arange(degree + 1) / y[:, None]
    c = fit(columns, (y - 1 - r) / y)
    return c, float(np.abs(columns @ c - (y - 1 - r) / y).max())


def fit_log(degree: int) -> tuple[Float64s, float]:
    """Fits L of the given degree; returns it and the relative error of log."""
    f = chebyshev_points(np.sqrt(0.5) - 1, np.sqrt(2.0) - 1, 4000)
    y = np.log1p(f)
    columns = (f**3)[:, None] * f[:, None] ** np.arange(degree + 1) / y[:, None]
    target = (y - f + 0.5 * f * f) / y
    c = fit(columns, target)
    return c, float(np.abs(columns @ c - target).max())


def main() -> None:
    """Prints every table with the error of the fit in exact arithmetic."""
    p, q, error = fit_tanh(6, 3)
    print(f"tanh: relative error {error:.2e} = {error * 2**24:.3f} ulp")
    print("  P", [float(f"{value:.9e}") for value in p])
    print("  Q", [float(f"{value:.9e}") for value in q])
    e, error = fit_exp(4)
    print(f"exp: relative error {error:.2e} = {error * 2**24:.3f} ulp")
    print("  E", [float(f"{value:.9e}") for value in e])
    coefficients, error = fit_log(7)
    print(f"log: relative error {error:.2e} = {error * 2**24:.3f} ulp")
    print("  L", [float(f"{value:.9e}") for value in coefficients])


if __name__ == "__main__":
    main()
