"""Update rules and clipping against the plain NumPy reference in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic
from numpy.typing import NDArray
from small_networks import relative_error, same_bytes

from treadle.kernels import optimizers, reference
from treadle.kernels.simd import LANES

Floats = NDArray[np.float32]
Update = Callable[[int, Floats], None]

N = 37
STEPS = 7
RATE = 0.05
DECAY = 0.1
BETA1 = 0.9
BETA2 = 0.99


def draw(seed: int, size: int = N) -> Floats:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


class Run:
    """Weights in float32, and the moments that a rule keeps."""

    def __init__(self, kind: str, decay: float) -> None:
        self.kind = kind
        self.decay = decay
        self.scale = np.float32(1)
        self.weights = draw(0)
        self.means = np.zeros(N, np.float32)
        self.squares = np.zeros(N, np.float32)

    def step(self, number: int, gradient: Floats, part: slice = slice(None)) -> None:
        weights, means, squares = (a[part] for a in (self.weights, self.means, self.squares))
        settings = self.scale, np.float32(RATE), np.float32(self.decay)
        if self.kind == "sgd":
            optimizers.sgd(weights, gradient[part], *settings)
        elif self.kind == "adagrad":
            optimizers.adagrad(weights, gradient[part], squares, *settings)
        else:
            optimizers.adam(
                weights,
                gradient[part],
                means,
                squares,
                *settings,
                np.float32(BETA1),
                np.float32(BETA2),
                np.float32(1 - BETA1),
                np.float32(1 - BETA2),
                np.float32(1 / (1 - BETA1**number)),
                np.float32(1 / math.sqrt(1 - BETA2**number)),
            )


class ReferenceRun(Run):
    """The same by the reference in float64."""

    def __init__(self, kind: str, decay: float) -> None:
        super().__init__(kind, decay)
        self.wide: Any = self.weights.astype(np.float64)
        self.moments: Any = np.zeros((2, N))

    def step(self, number: int, gradient: Floats, part: slice = slice(None)) -> None:
        g = gradient.astype(np.float64)
        (m, v) = self.moments
        if self.kind == "adam":
            decay = self.decay
            reference.adam_step(self.wide, g, m, v, number, RATE, BETA1, BETA2, weight_decay=decay)
            return
        if self.kind == "sgd":
            reference.sgd_step(self.wide, g + self.decay * self.wide, RATE)
        else:
            reference.adagrad_step(self.wide, g, v, RATE, weight_decay=self.decay)


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_steps_are_those_of_the_reference(kind: str, decay: float) -> None:
    ours = Run(kind, decay)
    expected = ReferenceRun(kind, decay)
    for number in range(1, STEPS + 1):
        gradient = draw(number)
        kept = gradient.copy()
        ours.step(number, gradient)
        expected.step(number, gradient)
        assert same_bytes(gradient, kept)
        assert relative_error(ours.weights, expected.wide) < 2e-6
        # A mistake in the decay or a moment would be far above rounding.
        assert relative_error(ours.weights, draw(0)) > 0.01


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_every_element_is_on_its_own(kind: str) -> None:
    at_once = Run(kind, DECAY)
    in_parts = Run(kind, DECAY)
    for number in range(1, STEPS + 1):
        gradient = draw(number)
        at_once.step(number, gradient)
        for part in (slice(20, N), slice(0, 1), slice(1, 20)):
            in_parts.step(number, gradient, part)
    assert same_bytes(at_once.weights, in_parts.weights)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_without_gradient_nothing_moves(kind: str) -> None:
    run = Run(kind, 0.0)
    before = run.weights.copy()
    run.step(1, np.zeros(N, np.float32))
    assert same_bytes(run.weights, before)


def test_clip_by_value() -> None:
    gradient = np.array([0.5, -0.5, 2, -2, 0.25, np.inf, -np.inf, -0.0], np.float32)
    optimizers.clip_by_value(gradient, np.float32(0.5))
    assert gradient.tolist() == [0.5, -0.5, 0.5, -0.5, 0.25, 0.5, -0.5, 0]


def norm_of(gradient: Floats) -> float:
    """The global norm, from what the kernel sums."""
    sums = np.full(-(-gradient.size // optimizers.BLOCK), np.nan)
    optimizers.sums_of_squares(gradient, sums)
    return math.sqrt(sum(sums.tolist()))


def test_clipping_hides_no_nan() -> None:
    gradient = np.array([1, np.nan], np.float32)
    optimizers.clip_by_value(gradient, np.float32(0.5))
    assert math.isnan(norm_of(gradient))


@pytest.mark.parametrize("size", [0, 1, 16, 37, optimizers.BLOCK + 17])
def test_sums_of_squares(size: int) -> None:
    gradient = draw(1, size)
    exact = math.sqrt(math.fsum(g * g for g in gradient.tolist()))
    assert norm_of(gradient) == pytest.approx(exact, rel=1e-13)
    assert reference.clip_by_global_norm({"g": gradient}, 1e9) == pytest.approx(exact, rel=1e-12)


def test_the_norm_of_huge_gradients_is_finite() -> None:
    gradient = np.full(20, 3e38, np.float32)
    assert norm_of(gradient) == pytest.approx(3e38 * math.sqrt(20), rel=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_scale_is_that_of_the_gradient(kind: str) -> None:
    scaled = Run(kind, DECAY)
    plain = Run(kind, DECAY)
    scaled.scale = np.float32(0.3)
    for number in range(1, STEPS + 1):
        gradient = draw(number)
        kept = gradient.copy()
        scaled.step(number, gradient)
        assert same_bytes(gradient, kept)
        plain.step(number, scaled.scale * gradient)
    assert same_bytes(scaled.weights, plain.weights)


def test_add_into() -> None:
    source = draw(3)
    target = draw(4)
    expected = target + source
    optimizers.add_into(source, target)
    assert same_bytes(target, expected)


@pytest.mark.parametrize("count", [0, LANES, 5 * LANES])
def test_squares_are_added_lane_by_lane(count: int) -> None:
    instruction = intrinsic(optimizers._add_squares)

    def call(values: Any, count: int, sums: Any) -> None:
        instruction(values, count, sums)

    compiled: Callable[..., None] = CPUDispatcher(call, targetoptions={"nopython": True})
    values = draw(1, 6 * LANES)
    ours = np.arange(LANES, dtype=np.float64)
    theirs = ours.copy()
    compiled(values, count, ours)
    optimizers.python_add_squares(values, count, theirs)
    assert ours.tobytes() == theirs.tobytes()
    assert (theirs == np.arange(LANES)).all() == (count == 0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_move_towards_other_weights(share: float) -> None:
    target = draw(0)
    source = draw(1)
    expected = target.astype(np.float64)
    reference.move_towards(source.astype(np.float64), share, expected)
    optimizers.move_towards(source, np.float32(share), target)
    np.testing.assert_allclose(target, expected, rtol=1e-6, atol=1e-7)
    assert same_bytes(target, source) == (share == 1.0)
