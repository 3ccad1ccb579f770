"""Vectors and the arithmetic over them: what is emitted against the Python stand-ins, to the bit.

Instructions are compiled here whether or not NUMBA_DISABLE_JIT is set.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic
from numpy.typing import NDArray
from small_networks import same_bytes

from treadle.kernels import intrinsics, simd
from treadle.kernels.simd import LANES

Floats = NDArray[np.float32]

GUARD = np.float32(-77.25)
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3e38, -3e38], np.float32)

load_padded, store, splat, move_transposed = (
    intrinsic(function)
    for function in (simd._load_padded, simd._store, simd._splat, simd._move_transposed)
)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    dispatcher: Callable[..., Any] = CPUDispatcher(
        function, targetoptions={"nopython": True, "error_model": "numpy"}
    )
    return dispatcher


def operand(seed: int) -> Floats:
    """A vector of ordinary numbers and all odd ones, in an order of its own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(LANES, np.float32)
    values[: ODD.size] = ODD
    return rng.permutation(values)


@pytest.mark.parametrize("left", [-1, 0, 1, 7, LANES - 1, LANES, LANES + 5])
def test_load_and_store_touch_what_is_left(left: int) -> None:
    @compiled
    def copy(source: Any, start: int, count: int, target: Any, end: int, to: int) -> None:
        store(target, end, to, load_padded(source, start, count, GUARD))

    source = np.arange(3 * LANES, dtype=np.float32).reshape(3, LANES)
    ours, theirs = (np.zeros(3 * LANES, np.float32) for _ in range(2))
    copy(source, 5, left, ours, 3, LANES)
    simd.python_store(theirs, 3, LANES, simd.python_load_padded(source, 5, max(left, 0), GUARD))
    assert same_bytes(ours, theirs)
    width = min(max(left, 0), LANES)
    assert ours[3 : 3 + LANES].tolist() == [*range(5, 5 + width), *[GUARD] * (LANES - width)]
    untouched = np.full(3 * LANES, GUARD, np.float32)
    copy(source, 5, LANES, untouched, 3, left)
    assert (untouched[:3] == GUARD).all()
    assert (untouched[3 + width :] == GUARD).all()
    assert untouched[3 : 3 + width].tolist() == list(range(5, 5 + width))


@pytest.mark.parametrize("symbol", list(simd._OPERATORS), ids=lambda s: str(s.__name__))
def test_operators(symbol: Any) -> None:
    @compiled
    def run(a: Any, b: Any, number: Any, out: Any) -> None:
        x = load_padded(a, 0, LANES, number)
        y = load_padded(b, 0, LANES, number)
        store(out, 0, LANES, symbol(x, y))
        store(out, LANES, LANES, symbol(x, number))
        store(out, 2 * LANES, LANES, symbol(number, y))
        store(out, 3 * LANES, LANES, -x)

    a = operand(1)
    b = operand(2)
    number = np.float32(1.5)
    out = np.empty((4, LANES), np.float32)
    run(a, b, number, out)
    with np.errstate(all="ignore"):
        expected = [symbol(a, b), symbol(a, number), symbol(number, b), operator.neg(a)]
    np.testing.assert_array_equal(out, np.array(expected))
    assert same_bytes(np.signbit(out[3]), np.signbit(expected[3]))


THREE = {"fma": intrinsics._fma, "zero_below": intrinsics._zero_below}
TWO = {
    "minimum": intrinsics._minimum,
    "maximum": intrinsics._maximum,
    "larger": intrinsics._larger,
}


@pytest.mark.parametrize("name", [*THREE, *TWO])
def test_functions_of_vectors_and_floats(name: str) -> None:
    function = intrinsic({**THREE, **TWO}[name])
    count = 3 if name in THREE else 2

    @compiled
    def two(a: Any, b: Any, c: Any, out: Any) -> None:
        x = load_padded(a, 0, LANES, GUARD)
        y = load_padded(b, 0, LANES, GUARD)
        store(out, 0, LANES, function(x, y))
        store(out, LANES, LANES, function(x, b[0]))
        for n in range(LANES):
            out[2, n] = function(a[n], b[n])

    @compiled
    def three(a: Any, b: Any, c: Any, out: Any) -> None:
        x = load_padded(a, 0, LANES, GUARD)
        y = load_padded(b, 0, LANES, GUARD)
        store(out, 0, LANES, function(x, y, load_padded(c, 0, LANES, GUARD)))
        store(out, LANES, LANES, function(x, b[0], load_padded(c, 0, LANES, GUARD)))
        for n in range(LANES):
            out[2, n] = function(a[n], b[n], c[n])

    a = operand(1)
    b = operand(2)
    c = operand(3)
    if name == "fma":  # its stand-in rounds twice: whole numbers are exact in both
        whole = [np.round(np.clip(np.nan_to_num(x), -99, 99)) for x in (a, b, c)]
        a, b, c = (x.astype(np.float32) for x in whole)
    out = np.empty((3, LANES), np.float32)
    (three if count == 3 else two)(a, b, c, out)
    python = getattr(intrinsics, f"python_{name}")
    rest = (c,) if count == 3 else ()
    expected = python(a, b, *rest)
    np.testing.assert_array_equal(out, np.array([expected, python(a, b[0], *rest), expected]))


def test_a_nan_stays_where_it_should() -> None:
    nan = np.float32(np.nan)
    one = np.float32(1)
    for name in ("minimum", "maximum"):
        assert np.isnan(getattr(intrinsics, f"python_{name}")(nan, one))
    assert np.isnan(intrinsics.python_larger(nan, one))
    assert np.isnan(intrinsics.python_larger(one, nan))
    assert np.isnan(intrinsics.python_zero_below(nan, one, nan))


def test_power_of_two() -> None:
    function = intrinsic(intrinsics._power_of_two)

    @compiled
    def run(rounded: Any, out: Any) -> None:
        store(out, 0, LANES, function(load_padded(rounded, 0, LANES, GUARD)))
        for n in range(LANES):
            out[1, n] = function(rounded[n])

    exponents = np.linspace(-126, 127, LANES).astype(np.int32)
    rounded = (np.float32(12582912) + exponents.astype(np.float32)).astype(np.float32)
    out = np.empty((2, LANES), np.float32)
    run(rounded, out)
    expected = (2.0**exponents).astype(np.float32)
    assert same_bytes(out, np.stack([expected, expected]))
    assert same_bytes(intrinsics.python_power_of_two(rounded), expected)


def test_lanes_are_folded_in_halves() -> None:
    fold_sum = intrinsic(simd._folding(lambda builder, a, b: builder.fadd(a, b)))
    fold_largest = intrinsic(simd._folding(simd.emit_maximum))

    @compiled
    def run(values: Any) -> Any:
        vector = load_padded(values, 0, LANES, GUARD)
        return fold_sum(vector), fold_largest(vector)

    values = np.random.default_rng(4).standard_normal(LANES, np.float32)
    total, largest = run(values)
    assert np.float32(total) == simd._python_folding(np.add)(values)
    assert np.float32(largest) == simd._python_folding(np.maximum)(values) == values.max()
    for place in range(LANES):
        with_nan = values.copy()
        with_nan[place] = np.nan
        assert np.isnan(run(with_nan)[1])


def test_splat() -> None:
    @compiled
    def run(value: Any, out: Any) -> None:
        store(out, 0, LANES, splat(value))

    out = np.empty(LANES, np.float32)
    run(GUARD, out)
    assert same_bytes(out, simd.python_splat(GUARD))


def test_a_block_is_transposed_and_nothing_else_is_written() -> None:
    @compiled
    def move(source: Any, start: int, row: int, target: Any, to: int, step: int) -> None:
        move_transposed(source, start, row, target, to, step)

    row = LANES + 3
    step = LANES + 5
    source = np.random.default_rng(1).standard_normal((LANES + 1, row), np.float32)
    ours = np.full((LANES + 1, step), GUARD)
    theirs = ours.copy()
    move(source, 2, row, ours, 4, step)
    simd.python_move_transposed(source, 2, row, theirs, 4, step)
    assert same_bytes(ours, theirs)
    expected = np.full((LANES + 1, step), GUARD)
    expected[:LANES, 4 : 4 + LANES] = source[:LANES, 2 : 2 + LANES].T
    assert same_bytes(ours, expected)
