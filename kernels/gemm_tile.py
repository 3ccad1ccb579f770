"""`make_gemm_tile` builds the innermost loop of every matrix product, as LLVM vectors.

A tile computes C[i, j] (+)= sum_k A[i, k] B[k, j] for a few rows i and one or more panels of PANEL
columns j. Each element is one chain of fused multiply-adds over ascending k. The chain starts from
0, or from C where the tile adds to it. Which rows and panels share a tile changes the speed and
not a bit of the result.

B is packed in panels, (panel, k, PANEL), so that the loop reads it as one stream. A is read through
two strides, which serves A and its transpose alike. The technique is that of Goto and van de Geijn,
"Anatomy of high-performance matrix multiplication" (2008), and of BLIS (Van Zee and van de Geijn,
2015), where a tile is called the micro-kernel and `multiply_panel` the macro-kernel.

A tile of bfloat16 pairs works alike, with two bfloat16 numbers, k and k + 1, in the place of one
float32 number (see `gemm_bf16`): both products are added in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels import simd
from treadle.kernels.jit import BOUNDS_CHECKED, PYTHON_MODE, TARGET, jit_views

Array = npt.NDArray[np.float32]

LANES = TARGET.lanes
PANEL = TARGET.panel
"""Columns of one packed panel."""
ROWS = TARGET.rows
"""Rows of the largest tile."""

_VECTORS = PANEL // LANES

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Operand(NamedTuple):
    """A matrix inside an array: element (i, k) is data.flat[offset + i * row + k * step]."""

    data: Array
    """C-contiguous, of any shape."""
    offset: int
    """Where element (0, 0) is, in elements; the next two are in elements as well."""
    row: int
    """Distance from row to row; of packed panels, from panel to panel."""
    step: int
    """Distance from column to column; of packed panels, from k to k + 1: PANEL."""


class _Emitter:
    """Writes the loop of one tile with an LLVM IR builder."""

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self.builder = builder
        self.rows = range(rows)
        self.columns = range(vectors)
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f32"
        self.fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        return self.builder.call(self.fma, [a, b, total])

    def load(self, pointer: Any) -> Any:
        value = self.builder.load(self.builder.bitcast(pointer, _VECTOR.as_pointer()))
        value.align = 4  # arrays are aligned to their elements only
        return value

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, _VECTOR.as_pointer())).align = 4

    def mask(self, columns: Any, j: int) -> Any:
        """Emits the mask of the lanes of column vector j that are below `columns`."""
        limit = self.builder.trunc(columns, _INT32)
        return simd.lanes_below(self.builder, limit, j * LANES, LANES)

    def masked_load(self, pointer: Any, mask: Any) -> Any:
        at = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return simd.masked_load(self.builder, at, mask, zero)

    def masked_store(self, value: Any, pointer: Any, mask: Any) -> None:
        at = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        simd.masked_store(self.builder, value, at, mask)

    def broadcast(self, scalar: Any) -> Any:
        return simd.broadcast(self.builder, scalar, LANES)

    def at(self, base: Any, *terms: Any) -> Any:
        """Emits the address of the element whose offset from `base` is the sum of `terms`."""
        offset = _INT64(0)
        for term in terms:
            offset = self.builder.add(offset, term)
        return self.builder.gep(base, [offset])

    def loop(self, starts: Any, a_rows: Any, a_step: Any, panels: Any, steps: Any) -> Any:
        """Emits the loop over k and returns the accumulators, [row][column]."""
        builder = self.builder
        entry = builder.block
        body = builder.append_basic_block("tile_k")
        done = builder.append_basic_block("tile_end")
        builder.branch(body)
        builder.position_at_end(body)
        k = builder.phi(_INT64)
        k.add_incoming(_INT64(0), entry)
        sums = [[builder.phi(_VECTOR) for _ in self.columns] for _ in self.rows]
        in_panel = builder.mul(k, _INT64(PANEL))
        in_row = builder.mul(k, a_step)
        b = [
            self.load(self.at(panels[j // _VECTORS], in_panel, _INT64(j % _VECTORS * LANES)))
            for j in self.columns
        ]
        results = []
        for i in self.rows:
            a = self.broadcast(builder.load(builder.gep(a_rows[i], [in_row])))
            results.append([self.multiply_add(a, b[j], sums[i][j]) for j in self.columns])
        for i in self.rows:
            for j in self.columns:
                sums[i][j].add_incoming(starts[i][j], entry)
                sums[i][j].add_incoming(results[i][j], body)
        following = builder.add(k, _INT64(1))
        k.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, done)
        builder.position_at_end(done)
        return results


class _BFloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite lacks; no constant of it is ever written."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def format_constant(self, value: float) -> str:
        raise NotImplementedError


_BFloat._create_instance()
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
"""LLVM's type of a vector of bfloat16 pairs."""


class _EmitterForPairs(_Emitter):
    """Writes the loop of one tile over pairs; they are loaded and broadcast like floats."""

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR, PAIRS, PAIRS])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        pairs = [self.builder.bitcast(value, PAIRS) for value in (a, b)]
        return self.builder.call(function, [total, *pairs])


class _EmitterOperand:
    """An `Operand` as the compiler sees it: its array, and its numbers as values of LLVM."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array, *numbers = (builder.extract_value(value, n) for n in range(len(kind)))
        self.array = context.make_array(kind[0])(context, builder, array)
        self.offset, self.row, self.step = (
            context.cast(builder, number, number_kind, types.intp)
            for number, number_kind in zip(numbers, kind[1:], strict=True)
        )


def _compiled_bounds_check(
    context: Any, builder: Any, operands: Any, numbers: Any, rows: int, panels: int, edge: bool
) -> None:
    """Emits the checks of everything that a tile reads and writes, before its loop.

    Args:
        context: Numba's.
        builder: of the function's code.
        operands: A, B and C as `_EmitterOperand`.
        numbers: the tile's first row, its steps and the columns of C.
        rows: rows of the tile.
        panels: panels of the tile.
        edge: whether C may end within the last panel.
    """
    A, B, C = operands
    first_row, steps, c_columns = numbers
    one = _INT64(1)
    width = _INT64(panels * PANEL)
    before_last = builder.mul(builder.sub(steps, one), A.step)
    columns = width
    if edge:
        columns = builder.select(builder.icmp_signed("<", c_columns, width), c_columns, width)
    for row in range(rows):
        number = builder.add(first_row, _INT64(row))
        first = builder.add(A.offset, builder.mul(A.row, number))
        for place in (first, builder.add(first, before_last)):
            simd.check_range(context, builder, A.array.nitems, place, one)
        start = builder.add(C.offset, builder.mul(C.row, number))
        simd.check_range(context, builder, C.array.nitems, start, columns)
    for panel in range(panels):
        start = builder.add(B.offset, builder.mul(B.row, _INT64(panel)))
        count = builder.mul(steps, _INT64(PANEL))
        simd.check_range(context, builder, B.array.nitems, start, count)


def _compiled_tile(
    rows: int, panels: int, edge: bool, emitter: Any = _Emitter, half: bool = False
) -> Any:
    def tile(
        typing_context: Any, A: Any, B: Any, C: Any, row: Any, steps: Any, columns: Any, add: Any
    ) -> Any:
        n = types.intp
        signature = types.void(A, B, C, n, n, n, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first_row, steps, columns, add = arguments[3:]
            A, B, C = (
                _EmitterOperand(context, builder, kind, value)
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            if BOUNDS_CHECKED:
                numbers = (first_row, steps, columns)
                _compiled_bounds_check(context, builder, (A, B, C), numbers, rows, panels, edge)
            emit = emitter(builder, rows, panels * _VECTORS - half)
            masks = [emit.mask(columns, j) for j in emit.columns] if edge else []
            a_base = emit.at(A.array.data, A.offset, builder.mul(A.row, first_row))
            a_rows = [emit.at(a_base, builder.mul(A.row, _INT64(i))) for i in emit.rows]
            b_panels = [
                emit.at(B.array.data, B.offset, builder.mul(B.row, _INT64(p)))
                for p in range(panels)
            ]
            c_base = emit.at(C.array.data, C.offset, builder.mul(C.row, first_row))

            def c_at(i: int, j: int) -> Any:
                return emit.at(c_base, builder.mul(C.row, _INT64(i)), _INT64(j * LANES))

            def start(i: int, j: int) -> Any:
                at = c_at(i, j)
                zero = ir.Constant(_VECTOR, [0.0] * LANES)
                before = emit.masked_load(at, masks[j]) if edge else emit.load(at)
                return builder.select(add, before, zero)

            starts = [[start(i, j) for j in emit.columns] for i in emit.rows]
            results = emit.loop(starts, a_rows, A.step, b_panels, steps)
            for i in emit.rows:
                for j in emit.columns:
                    if edge:
                        emit.masked_store(results[i][j], c_at(i, j), masks[j])
                    else:
                        emit.store(results[i][j], c_at(i, j))
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(tile)


def _python_multiply_add(a: Any, b: Any, total: Any) -> Any:
    return np.float32(np.float64(a) * b + total)  # float64 products are exact


def halves(pairs: Any) -> tuple[Any, Any]:
    """Returns the two float32 numbers of each pair, the second one first."""
    bits = np.asarray(pairs, np.float32).view(np.uint32)
    second = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    first = (bits << np.uint32(16)).view(np.float32)
    return second, first


def _python_multiply_add_pairs(a: Any, b: Any, total: Any) -> Any:
    for left, right in zip(halves(a), halves(b), strict=True):  # the order of the instruction
        total = _python_multiply_add(left, right, np.float64(total))
    return total


def _python_tile(
    rows: int, panels: int, edge: bool, multiply_add: Any = _python_multiply_add
) -> Any:
    def tile(
        A: Operand, B: Operand, C: Operand, row: int, steps: int, columns: int, add: bool
    ) -> None:
        a_flat = A.data.reshape(-1)
        b_flat = B.data.reshape(-1)
        c_flat = C.data.reshape(-1)
        for i in range(row, row + rows):
            left = a_flat[A.offset + i * A.row :][: (steps - 1) * A.step + 1 : A.step]
            for p in range(panels):
                start = C.offset + i * C.row + p * PANEL
                width = min(PANEL, columns - p * PANEL) if edge else PANEL
                out = c_flat[start : start + width]
                block = b_flat[B.offset + p * B.row :][: steps * PANEL].reshape(steps, PANEL)
                block = block[:, :width]
                total = out.astype(np.float64) if add else np.zeros(width)
                for k in range(steps):
                    total = multiply_add(left[k], block[k], total).astype(np.float64)
                out[:] = total

    return tile


def make_gemm_tile(
    rows: int, panels: int, edge: bool, pairs: bool = False, half: bool = False
) -> Any:
    """Makes a tile of `rows` rows and `panels` panels.

    Args:
        rows: rows of A and C, 1 to ROWS.
        panels: panels of B next to each other; rows * panels * 2 accumulators must fit the
            registers.
        edge: C may end within the last panel; no column past its end is read or written.
        pairs: A and B hold pairs of bfloat16 numbers, each as the float32 number of its bits.
        half: C ends within the first half of the last panel, LANES columns, so that the other
            half need not be computed; only with `edge`.

    Returns:
        A function for compiled code, tile(A, B, C, row, steps, columns, add). A, B and C are
        `Operand`s, B of packed panels; the step of C is 1. The tile computes `rows` rows of C
        from number `row` on. `steps`, the length of the chain, is at least 1. `columns`, the
        columns that C has, matters to a tile with an edge only. `add` continues from the values
        in C rather than from 0.
    """
    if PYTHON_MODE:
        step = _python_multiply_add_pairs if pairs else _python_multiply_add
        return _python_tile(rows, panels, edge, step)
    return _compiled_tile(rows, panels, edge, _EmitterForPairs if pairs else _Emitter, half)


_tile = make_gemm_tile(ROWS, 1, edge=False)
_tile4 = make_gemm_tile(4, 1, edge=False)
_edge = make_gemm_tile(ROWS, 1, edge=True)
_edge1 = make_gemm_tile(1, 1, edge=True)
_half = make_gemm_tile(ROWS, 1, edge=True, half=True)


@jit_views
def multiply_panel(
    A: Operand, B: Operand, C: Operand, rows: int, steps: int, columns: int, add: bool
) -> None:
    """Computes the columns of C that one panel holds: C (+)= A B.

    Args:
        A: (rows, steps).
        B: one packed panel, (steps, PANEL).
        C: (rows, columns), written; its step is 1.
        rows: rows of A and C.
        steps: length of the sums, at least 1.
        columns: columns of C; where they are more than PANEL, the first PANEL are computed.
        add: continue from the values in C rather than from 0.
    """
    i = 0
    if columns >= PANEL:
        while i + ROWS <= rows:
            _tile(A, B, C, i, steps, columns, add)
            i += ROWS
        while i + 4 <= rows:
            _tile4(A, B, C, i, steps, columns, add)
            i += 4
    elif columns <= LANES:
        while i + ROWS <= rows:
            _half(A, B, C, i, steps, columns, add)
            i += ROWS
    while i + ROWS <= rows:
        _edge(A, B, C, i, steps, columns, add)
        i += ROWS
    while i < rows:
        _edge1(A, B, C, i, steps, columns, add)
        i += 1
