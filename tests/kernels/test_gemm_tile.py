"""Emitted instructions against their Python stand-ins.

Instructions are compiled here whether or not NUMBA_DISABLE_JIT is set: only the decorator heeds it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic
from numpy.typing import NDArray
from small_networks import same_bytes

from treadle.kernels import gemm_tile, intrinsics, simd
from treadle.kernels.gemm_tile import PANEL, ROWS, Operand
from treadle.kernels.jit import PYTHON_MODE

Floats = NDArray[np.float32]

TILES = [(1, 1), (4, 1), (ROWS, 1), (1, 2), (1, 4)]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    dispatcher: Callable[..., Any] = CPUDispatcher(function, targetoptions={"nopython": True})
    return dispatcher


def whole_numbers(seed: int, *shape: int) -> Floats:
    """Small whole numbers: sums of their products are exact, so that both must agree to the bit."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("missing", [0, 1, PANEL - 1])
@pytest.mark.parametrize(("rows", "panels"), TILES)
@pytest.mark.parametrize("transposed", [False, True])
def test_compiled_tile_is_the_python_tile(
    rows: int, panels: int, add: bool, missing: int, transposed: bool
) -> None:
    edge = missing > 0
    columns = panels * PANEL - missing
    instruction = gemm_tile._compiled_tile(rows, panels, edge)

    def call(A: Operand, B: Operand, C: Operand, row: int, columns: int, add: bool) -> None:
        instruction(A, B, C, row, steps, columns, add)

    steps = 5
    width = columns + 3
    a = whole_numbers(1, rows + 1, 9)
    b = whole_numbers(2, panels + 1, steps, PANEL)
    c = whole_numbers(3, rows + 1, width)
    # Everything begins past the arrays' beginning, to prove the offsets.
    if transposed:
        A = Operand(np.ascontiguousarray(a.T), 2 * (rows + 1), 1, rows + 1)
    else:
        A = Operand(a, 2, 9, 1)
    B = Operand(b, steps * PANEL, steps * PANEL, PANEL)
    by_instruction = c.copy()
    by_python = c.copy()
    compiled(call)(A, B, Operand(by_instruction, 1, width, 1), 1, columns, add)
    python_tile = gemm_tile._python_tile(rows, panels, edge)
    python_tile(A, B, Operand(by_python, 1, width, 1), 1, steps, columns, add)
    assert same_bytes(by_instruction, by_python)

    expected = c.copy()
    inside = expected[1:, 1 : 1 + columns]
    right = b[1:].transpose(1, 0, 2).reshape(steps, -1)[:, :columns]
    inside[...] = a[1:, 2 : 2 + steps] @ right + (inside if add else 0)
    assert same_bytes(by_python, expected)


@pytest.mark.parametrize("missing", [gemm_tile.LANES, PANEL - 1])
@pytest.mark.parametrize(("rows", "panels"), [(ROWS, 1), (1, 1), (1, 3)])
def test_half_a_panel_is_enough_for_half_a_panel(rows: int, panels: int, missing: int) -> None:
    """Nothing is read of the other half, which is no number here."""
    columns = panels * PANEL - missing
    instruction = gemm_tile._compiled_tile(rows, panels, True, half=True)

    def call(A: Operand, B: Operand, C: Operand, columns: int) -> None:
        instruction(A, B, C, 0, 5, columns, True)

    a = whole_numbers(1, rows, 5)
    b = whole_numbers(2, panels, 5, PANEL)
    b[-1, :, gemm_tile.LANES :] = np.nan
    c = whole_numbers(3, rows, columns)
    out = c.copy()
    B = Operand(b, 0, 5 * PANEL, PANEL)
    compiled(call)(Operand(a, 0, 5, 1), B, Operand(out, 0, columns, 1), columns)
    assert same_bytes(out, c + a @ b.transpose(1, 0, 2).reshape(5, -1)[:, :columns])


def test_tiles_are_compiled_unless_in_python_mode() -> None:
    assert inspect.isfunction(gemm_tile.make_gemm_tile(1, 1, edge=False)) == PYTHON_MODE


def test_fma_rounds_once() -> None:
    compiled_fma = intrinsic(intrinsics._fma)

    def call(a: Any, b: Any, c: Any) -> Any:
        return compiled_fma(a, b, c)

    fma = compiled(call)
    one = np.float32(1)
    x = np.float32(2.0**-11)
    assert fma(one + x, one - x, -one) == -(x * x)
    # 2^-57 above the middle of two floats: see test_gemm.py. The stand-in rounds twice there.
    arguments = np.float32(2.0**-24) * (one + x), one - x + x * x, one
    assert fma(*arguments) == np.float32(1 + 2.0**-23)
    assert intrinsics.python_fma(*arguments) == one
    for a, b, c in np.random.default_rng(1).standard_normal((200, 3), np.float32):
        assert fma(a, b, c) == intrinsics.python_fma(a, b, c)


@pytest.mark.parametrize("reached", [None, 0, simd.LANES - 1])
def test_a_vector_reaches_a_limit_with_any_element(reached: int | None) -> None:
    reaches = intrinsic(intrinsics._any_reaches)
    load_padded = intrinsic(simd._load_padded)

    def call(array: Any, fill: Any, limit: Any) -> Any:
        return reaches(load_padded(array, 0, simd.LANES, fill), limit)

    vector = np.full(simd.LANES, np.nan, np.float32)
    vector[1:-1] = 1.5
    if reached is not None:
        vector[reached] = 2
    limit = np.float32(2)
    assert compiled(call)(vector, limit, limit) == (reached is not None)
    assert intrinsics.python_any_reaches(vector, limit) == (reached is not None)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.5, 1e-45, np.inf, -np.inf, 3.4e38])
def test_bits_go_there_and_back(value: float) -> None:
    from_bits = intrinsic(intrinsics._float_from_bits)
    to_bits = intrinsic(intrinsics._bits_from_float)

    def call_from_bits(bits: Any) -> Any:
        return from_bits(bits)

    def call_to_bits(number: Any) -> Any:
        return to_bits(number)

    number = np.float32(value)
    bits = number.view(np.int32)
    assert compiled(call_to_bits)(number) == intrinsics.python_bits_from_float(number) == bits
    again = np.float32(compiled(call_from_bits)(bits))
    assert again.tobytes() == intrinsics.python_float_from_bits(bits).tobytes() == number.tobytes()
