"""`move_transposed` moves a block of LANES x LANES floats and transposes it, in vector registers.

Lane by lane, a transpose takes one load and one store for every element. In registers it takes
log2(LANES) rounds: round s swaps, between rows that differ in bit s of their number, the elements
whose column has that bit (Eklundh, "A fast computer method for matrix transposing", 1972).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from treadle.kernels import simd
from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.simd import INT, LANES, VECTOR

Array = npt.NDArray[np.float32]

_ROUNDS = [1 << bit for bit in range(LANES.bit_length() - 1)]


def _swap(builder: Any, upper: Any, lower: Any, distance: int) -> tuple[Any, Any]:
    """Emits one exchange of a round between two rows whose numbers differ by `distance`."""
    lanes = range(LANES)
    kept = [lane if not lane & distance else LANES + lane - distance for lane in lanes]
    taken = [lane + distance if not lane & distance else LANES + lane for lane in lanes]
    kind = ir.VectorType(INT, LANES)
    return (
        builder.shuffle_vector(upper, lower, ir.Constant(kind, kept)),
        builder.shuffle_vector(upper, lower, ir.Constant(kind, taken)),
    )


def _check(context: Any, builder: Any, array: Any, first: Any, row: Any) -> None:
    """Emits the bounds check of LANES rows of LANES elements, `row` apart."""
    whole = ir.Constant(first.type, LANES)
    last = builder.add(first, builder.mul(row, ir.Constant(first.type, LANES - 1)))
    for place in (first, last):
        simd.check_range(context, builder, array.nitems, place, whole)


def _move_transposed(
    typing_context: Any, source: Any, start: Any, row: Any, target: Any, to: Any, step: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, row, target, to, step = arguments
        given = context.make_array(signature.args[0])(context, builder, source)
        taken = context.make_array(signature.args[3])(context, builder, target)
        _check(context, builder, given, start, row)
        _check(context, builder, taken, to, step)

        def at(base: Any, first: Any, apart: Any, number: int) -> Any:
            offset = builder.add(first, builder.mul(apart, ir.Constant(apart.type, number)))
            return builder.bitcast(builder.gep(base, [offset]), VECTOR.as_pointer())

        rows = []
        for number in range(LANES):
            value = builder.load(at(given.data, start, row, number))
            value.align = 4
            rows.append(value)
        for distance in _ROUNDS:
            for upper in range(LANES):
                if not upper & distance:
                    lower = upper + distance
                    rows[upper], rows[lower] = _swap(builder, rows[upper], rows[lower], distance)
        for number, value in enumerate(rows):
            builder.store(value, at(taken.data, to, step, number)).align = 4
        return context.get_dummy_value()

    n = types.intp
    return types.void(source, n, n, target, n, n), generate


def python_move_transposed(
    source: Array, start: int, row: int, target: Array, to: int, step: int
) -> None:
    """Stands in for `move_transposed`."""
    given = source.reshape(-1)
    taken = target.reshape(-1)
    for number in range(LANES):
        first = to + number * step
        taken[first : first + LANES] = given[start + number :: row][:LANES]


move_transposed: Callable[[Array, int, int, Array, int, int], None] = (
    python_move_transposed if PYTHON_MODE else intrinsic(_move_transposed)
)
"""move_transposed(source, start, row, target, to, step): target.flat[to + i * step + j] =
source.flat[start + j * row + i] for i and j below LANES."""
