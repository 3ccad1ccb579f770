"""The matrix tile: the innermost loop of every product, emitted as LLVM vectors.

`C[i, j] (+)= sum_k A[i, k] B[k, j]` for a few rows i and one or more panels of PANEL columns j.
Each element is one chain of fused multiply-adds over ascending k that starts from 0, or from C
where the tile adds to it. Which rows and panels share a tile changes their speed, not a bit.

B lies packed in panels, (panel, k, PANEL), so that the loop reads it in one stream; A is
read through two strides, which serves A and its transpose alike. The technique is that of
Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), and of BLIS.

A tile of pairs is the same with two bfloat16 numbers, k and k + 1, where else one float32 number
stands (see `gemm_bf16`): A's and B's elements are products of both, added in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels import simd
from treadle.kernels.jit import BOUNDS_CHECKED, PYTHON_MODE, TARGET

LANES = TARGET.lanes
VECTORS = 2
PANEL = LANES * VECTORS
"""Columns of one packed panel."""
ROWS = TARGET.rows
"""Rows of the largest tile."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class _Emitter:
    """Writes one tile's loop with an IR builder."""

    def __init__(self, builder: Any, rows: int, panels: int) -> None:
        self.builder = builder
        self.rows = range(rows)
        self.columns = range(panels * VECTORS)
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

    def masked(self, columns: Any, j: int) -> Any:
        """Which lanes of column vector j are below `columns`."""
        limit = self.builder.trunc(columns, _INT32)
        return simd.lanes_below(self.builder, limit, j * LANES, LANES)

    def load_some(self, pointer: Any, mask: Any) -> Any:
        at = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return simd.masked_load(self.builder, at, mask, zero)

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        at = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        simd.masked_store(self.builder, value, at, mask)

    def broadcast(self, scalar: Any) -> Any:
        return simd.broadcast(self.builder, scalar, LANES)

    def at(self, base: Any, *terms: Any) -> Any:
        offset = _INT64(0)
        for term in terms:
            offset = self.builder.add(offset, term)
        return self.builder.gep(base, [offset])

    def loop(self, starts: Any, a_rows: Any, a_step: Any, panels: Any, steps: Any) -> Any:
        """Emit the loop over k and return the accumulators, [row][column]."""
        builder = self.builder
        entry = builder.block
        body, done = builder.append_basic_block("tile_k"), builder.append_basic_block("tile_end")
        builder.branch(body)
        builder.position_at_end(body)
        k = builder.phi(_INT64)
        k.add_incoming(_INT64(0), entry)
        sums = [[builder.phi(_VECTOR) for _ in self.columns] for _ in self.rows]
        in_panel, in_row = builder.mul(k, _INT64(PANEL)), builder.mul(k, a_step)
        b = [
            self.load(self.at(panels[j // VECTORS], in_panel, _INT64(j % VECTORS * LANES)))
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
"""LLVM's type of a vector of pairs."""


class _EmitterOfPairs(_Emitter):
    """Writes one tile's loop over pairs; they are loaded and broadcast like floats."""

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR, PAIRS, PAIRS])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        pairs = [self.builder.bitcast(value, PAIRS) for value in (a, b)]
        return self.builder.call(function, [total, *pairs])


def _compiled_check(
    context: Any, builder: Any, sizes: list[Any], arguments: Any, rows: int, panels: int, edge: bool
) -> None:
    """Emit the checks of all that a tile reads and writes, before its loop.

    Args:
        context: Numba's.
        builder: of the function's code.
        sizes: elements of A, B and C.
        arguments: the tile's.
        rows: its rows.
        panels: its panels.
        edge: whether C may end within the last panel.
    """
    _, a_offset, a_row, a_step, _, b_offset, b_panel, steps, _ = arguments[:9]
    c_offset, c_row, c_columns, _ = arguments[9:]
    one, width = _INT64(1), _INT64(panels * PANEL)
    before_last = builder.mul(builder.sub(steps, one), a_step)
    columns = width
    if edge:
        columns = builder.select(builder.icmp_signed("<", c_columns, width), c_columns, width)
    for row in range(rows):
        first = builder.add(a_offset, builder.mul(a_row, _INT64(row)))
        for place in (first, builder.add(first, before_last)):
            simd.check_range(context, builder, sizes[0], place, one)
        start = builder.add(c_offset, builder.mul(c_row, _INT64(row)))
        simd.check_range(context, builder, sizes[2], start, columns)
    for panel in range(panels):
        start = builder.add(b_offset, builder.mul(b_panel, _INT64(panel)))
        count = builder.mul(steps, _INT64(PANEL))
        simd.check_range(context, builder, sizes[1], start, count)


def _compiled_tile(rows: int, panels: int, edge: bool, emitter: Any = _Emitter) -> Any:
    def tile(
        typing_context: Any,
        a: Any,
        a_offset: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_offset: Any,
        b_panel: Any,
        steps: Any,
        c: Any,
        c_offset: Any,
        c_row: Any,
        c_columns: Any,
        add: Any,
    ) -> Any:
        n = types.intp
        signature = types.void(a, n, n, n, b, n, n, n, c, n, n, n, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def array(index: int) -> Any:
                kind = signature.args[index]
                return context.make_array(kind)(context, builder, arguments[index])

            _, a_offset, a_row, a_step, _, b_offset, b_panel, steps, _ = arguments[:9]
            c_offset, c_row, c_columns, add = arguments[9:]
            A, B, C = (array(index) for index in (0, 4, 8))
            if BOUNDS_CHECKED:
                sizes = [A.nitems, B.nitems, C.nitems]
                _compiled_check(context, builder, sizes, arguments, rows, panels, edge)
            emit = emitter(builder, rows, panels)
            masks = [emit.masked(c_columns, j) for j in emit.columns] if edge else []
            a_rows = [emit.at(A.data, a_offset, builder.mul(a_row, _INT64(i))) for i in emit.rows]
            b_panels = [
                emit.at(B.data, b_offset, builder.mul(b_panel, _INT64(p))) for p in range(panels)
            ]
            c_base = emit.at(C.data, c_offset)

            def c_at(i: int, j: int) -> Any:
                return emit.at(c_base, builder.mul(c_row, _INT64(i)), _INT64(j * LANES))

            def start(i: int, j: int) -> Any:
                at, zero = c_at(i, j), ir.Constant(_VECTOR, [0.0] * LANES)
                before = emit.load_some(at, masks[j]) if edge else emit.load(at)
                return builder.select(add, before, zero)

            starts = [[start(i, j) for j in emit.columns] for i in emit.rows]
            results = emit.loop(starts, a_rows, a_step, b_panels, steps)
            for i in emit.rows:
                for j in emit.columns:
                    if edge:
                        emit.store_some(results[i][j], c_at(i, j), masks[j])
                    else:
                        emit.store(results[i][j], c_at(i, j))
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(tile)


def _python_multiply_add(a: Any, b: Any, total: Any) -> Any:
    return np.float32(np.float64(a) * b + total)  # float64 products are exact


def halves(pairs: Any) -> tuple[Any, Any]:
    """Return the two numbers of pairs, the second one first, in float32."""
    bits = np.asarray(pairs, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32), (bits << np.uint32(16)).view(np.float32)


def _python_multiply_add_pairs(a: Any, b: Any, total: Any) -> Any:
    for left, right in zip(halves(a), halves(b), strict=True):  # the order of the instruction
        total = _python_multiply_add(left, right, np.float64(total))
    return total


def _python_tile(
    rows: int, panels: int, edge: bool, multiply_add: Any = _python_multiply_add
) -> Any:
    def tile(
        a: Any,
        a_offset: int,
        a_row: int,
        a_step: int,
        b: Any,
        b_offset: int,
        b_panel: int,
        steps: int,
        c: Any,
        c_offset: int,
        c_row: int,
        c_columns: int,
        add: bool,
    ) -> None:
        a_flat, b_flat, c_flat = a.reshape(-1), b.reshape(-1), c.reshape(-1)
        for i in range(rows):
            left = a_flat[a_offset + i * a_row :][: (steps - 1) * a_step + 1 : a_step]
            for p in range(panels):
                start = c_offset + i * c_row + p * PANEL
                width = min(PANEL, c_columns - p * PANEL) if edge else PANEL
                out = c_flat[start : start + width]
                block = b_flat[b_offset + p * b_panel :][: steps * PANEL].reshape(steps, PANEL)
                block = block[:, :width]
                total = out.astype(np.float64) if add else np.zeros(width)
                for k in range(steps):
                    total = multiply_add(left[k], block[k], total).astype(np.float64)
                out[:] = total

    return tile


def make_gemm_tile(rows: int, panels: int, edge: bool, pairs: bool = False) -> Any:
    """Make a tile of `rows` rows and `panels` panels.

    Args:
        rows: rows of A and C, 1 to ROWS.
        panels: panels of B side by side. rows * panels * 2 accumulators must fit the registers.
        edge: C may end within the last panel; no column past its end is read or written.
        pairs: A and B hold pairs of bfloat16 numbers, each as the float32 number of its bits.

    Returns:
        A function for compiled code: tile(a, a_offset, a_row, a_step, b, b_offset, b_panel,
        steps, c, c_offset, c_row, c_columns, add). All offsets and strides count float32 elements
        from an array's beginning; element (i, k) of A is a[a_offset + i * a_row + k * a_step];
        panel p of B begins at b_offset + p * b_panel; `steps`, the length of the chain, must be
        above 0; `c_columns`, the columns of C from here on, matters at the edge only; `add`
        starts from C rather than from 0.
    """
    if PYTHON_MODE:
        step = _python_multiply_add_pairs if pairs else _python_multiply_add
        return _python_tile(rows, panels, edge, step)
    return _compiled_tile(rows, panels, edge, _EmitterOfPairs if pairs else _Emitter)
