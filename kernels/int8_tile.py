"""`make_int8_tile` builds the innermost loop of products of int8 numbers, as LLVM vectors.

A tile computes C[i, j] (+)= scale[j] * sum_k (u[i, k] - 128) w[k, j] for a few rows i and one or
more panels of PANEL columns j. u are bytes, activations in steps and shifted by 128, w are int8.
A sum begins with the column's correction, -128 times the sum of its weights, and is an exact int32
in any order. It is then converted to float32, rounded to the nearest, and scaled and added by one
fused multiply-add.

See `gemm_int8` for the layout of panels, and `int8_instructions` for the instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels import simd
from treadle.kernels.int8_instructions import INSTRUCTIONS, Instructions
from treadle.kernels.jit import BOUNDS_CHECKED, PYTHON_MODE, TARGET

Array = npt.NDArray[np.float32]
Quads = npt.NDArray[np.int32]

EXTRA_ROWS = 2
"""Rows of a panel behind those of the weights: the corrections, the scales."""

ROWS = 8 if TARGET.rows == 8 else 4
"""Rows of the largest tile; a whole number of fours."""

_LANES = TARGET.lanes
_PANEL = TARGET.panel
_VECTORS = _PANEL // _LANES

_INT16 = ir.IntType(16)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INTS = ir.VectorType(_INT32, _LANES)
_HALVES = ir.VectorType(_INT16, 2 * _LANES)


_PAIRS_NAMES = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}


class _Dot:
    """Four products an instruction, from bytes as they are."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        kind = ir.FunctionType(_INTS, [_INTS] * 3)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * _LANES}"
        self.function = cgutils.get_or_insert_function(builder.module, kind, name)

    def activations(self, quads: Any) -> Any:
        return quads

    def weights(self, quads: Any) -> Any:
        return quads

    def multiply_add(self, u: Any, w: Any, total: Any) -> Any:
        return self.builder.call(self.function, [total, u, w])


class _Pairs:
    """Two products an instruction, from 16-bit numbers: bytes 0 and 2, bytes 1 and 3."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        kind = ir.FunctionType(_INTS, [_HALVES] * 2)
        name = f"llvm.x86.{_PAIRS_NAMES[_LANES]}"
        self.function = cgutils.get_or_insert_function(builder.module, kind, name)

    def _constant(self, value: int) -> Any:
        return ir.Constant(_HALVES, [value] * (2 * _LANES))

    def activations(self, quads: Any) -> Any:
        halves = self.builder.bitcast(quads, _HALVES)
        even = self.builder.and_(halves, self._constant(0xFF))
        return even, self.builder.lshr(halves, self._constant(8))

    def weights(self, quads: Any) -> Any:
        eight = self._constant(8)
        halves = self.builder.bitcast(quads, _HALVES)
        even = self.builder.ashr(self.builder.shl(halves, eight), eight)
        return even, self.builder.ashr(halves, eight)

    def multiply_add(self, u: Any, w: Any, total: Any) -> Any:
        even, odd = (
            self.builder.call(self.function, [left, right])
            for left, right in zip(u, w, strict=True)
        )
        return self.builder.add(total, self.builder.add(even, odd))


class _Plain:
    """One product at a time, from 32-bit numbers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def _bytes(self, quads: Any, extend: Any) -> Any:
        top = ir.Constant(_INTS, [24] * _LANES)
        left = [ir.Constant(_INTS, [bits] * _LANES) for bits in (24, 16, 8, 0)]
        return [extend(self.builder.shl(quads, shift), top) for shift in left]

    def activations(self, quads: Any) -> Any:
        return self._bytes(quads, self.builder.lshr)

    def weights(self, quads: Any) -> Any:
        return self._bytes(quads, self.builder.ashr)

    def multiply_add(self, u: Any, w: Any, total: Any) -> Any:
        for left, right in zip(u, w, strict=True):
            total = self.builder.add(total, self.builder.mul(left, right))
        return total


_EMITTERS: dict[Instructions, Any] = {
    Instructions.DOT: _Dot,
    Instructions.PAIRS: _Pairs,
    Instructions.PLAIN: _Plain,
}


class _Places:
    """Addresses of what a tile reads and writes."""

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
        self.builder = builder
        self.arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(kinds[:3], arguments[:3], strict=True)
        ]
        self.row, self.panel, self.at, self.stride, self.columns, self.quads = arguments[3:9]
        self.rows_of_panel = builder.add(self.quads, _INT64(EXTRA_ROWS))

    def activations(self, i: int) -> Any:
        """Emits the number of row i's first int32."""
        return self.builder.mul(self.builder.add(self.row, _INT64(i)), self.quads)

    def weights(self, p: int) -> Any:
        """Emits the number of panel p's first int32."""
        panel = self.builder.add(self.panel, _INT64(p))
        size = self.builder.mul(self.rows_of_panel, _INT64(_PANEL))
        return self.builder.mul(panel, size)

    def result(self, i: int) -> Any:
        """Emits the number of row i's first float32."""
        return self.builder.add(self.at, self.builder.mul(self.stride, _INT64(i)))

    def vector(self, array: Any, kind: Any, *terms: Any) -> Any:
        """Emits the address of a vector; its offset is the sum of `terms`."""
        offset = _INT64(0)
        for term in terms:
            offset = self.builder.add(offset, term)
        return self.builder.bitcast(self.builder.gep(array.data, [offset]), kind.as_pointer())

    def check(self, context: Any, rows: int, panels: int) -> None:
        """Emits the checks of all that the tile reads and writes."""
        A, B, C = self.arrays
        builder = self.builder
        width = _INT64(panels * _PANEL)
        fewer = builder.icmp_signed("<", self.columns, width)
        columns = builder.select(fewer, self.columns, width)
        for i in range(rows):
            simd.check_range(context, builder, A.nitems, self.activations(i), self.quads)
            simd.check_range(context, builder, C.nitems, self.result(i), columns)
        size = builder.mul(self.rows_of_panel, width)
        simd.check_range(context, builder, B.nitems, self.weights(0), size)


def _emit_sums(
    builder: Any, places: _Places, rows: int, panels: int, instructions: Instructions
) -> list[list[Any]]:
    """Emits the loop over the quads and returns the int32 sums, [row][vector of columns]."""
    A, B, _ = places.arrays
    emit = _EMITTERS[instructions](builder)
    vectors = range(panels * _VECTORS)
    starts = [places.activations(i) for i in range(rows)]
    bases = [places.weights(p) for p in range(panels)]

    def load(j: int, row: Any) -> Any:
        lanes = _INT64(j % _VECTORS * _LANES)
        at = builder.mul(row, _INT64(_PANEL))
        value = builder.load(places.vector(B, _INTS, bases[j // _VECTORS], at, lanes))
        value.align = 4
        return value

    corrections = [load(j, places.quads) for j in vectors]
    entry = builder.block
    body = builder.append_basic_block("int8_k")
    done = builder.append_basic_block("int8_end")
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(_INT64)
    k.add_incoming(_INT64(0), entry)
    sums = [[builder.phi(_INTS) for _ in vectors] for _ in range(rows)]
    w = [emit.weights(load(j, k)) for j in vectors]
    for i in range(rows):
        quad = builder.load(builder.gep(A.data, [builder.add(starts[i], k)]))
        u = emit.activations(simd.broadcast(builder, quad, _LANES))
        for j in vectors:
            total = emit.multiply_add(u, w[j], sums[i][j])
            sums[i][j].add_incoming(corrections[j], entry)
            sums[i][j].add_incoming(total, body)
    following = builder.add(k, _INT64(1))
    k.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, places.quads), body, done)
    builder.position_at_end(done)
    return [[total.incomings[1][0] for total in row] for row in sums]


def _compiled_tile(rows: int, panels: int, instructions: Instructions) -> Any:
    def tile(
        typing_context: Any,
        A: Any,
        B: Any,
        C: Any,
        row: Any,
        panel: Any,
        at: Any,
        stride: Any,
        columns: Any,
        quads: Any,
        add: Any,
    ) -> Any:
        signature = types.void(A, B, C, *[types.intp] * 6, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places = _Places(context, builder, signature.args, arguments)
            add = arguments[9]
            if BOUNDS_CHECKED:
                places.check(context, rows, panels)
            sums = _emit_sums(builder, places, rows, panels, instructions)
            _, B, C = places.arrays
            limit = builder.trunc(places.columns, _INT32)
            zero = ir.Constant(_FLOATS, [0.0] * _LANES)
            last = builder.add(places.quads, _INT64(1))
            for j in range(panels * _VECTORS):
                p = j // _VECTORS
                lanes = _INT64(j % _VECTORS * _LANES)
                offset = builder.mul(last, _INT64(_PANEL))
                scale = builder.load(places.vector(B, _FLOATS, places.weights(p), offset, lanes))
                scale.align = 4
                mask = simd.lanes_below(builder, limit, j * _LANES, _LANES)
                for i in range(rows):
                    out = places.vector(C, _FLOATS, places.result(i), _INT64(j * _LANES))
                    before = simd.masked_load(builder, out, mask, zero)
                    before = builder.select(add, before, zero)
                    value = builder.sitofp(sums[i][j], _FLOATS)
                    value = simd.call(builder, "llvm.fma", value, scale, before)
                    simd.masked_store(builder, value, out, mask)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(tile)


def _python_tile(rows: int, panels: int) -> Any:
    def tile(
        A: Quads,
        B: Quads,
        C: Array,
        row: int,
        panel: int,
        at: int,
        stride: int,
        columns: int,
        quads: int,
        add: bool,
    ) -> None:
        packed = B.reshape(-1, quads + EXTRA_ROWS, _PANEL)
        steps = A.reshape(-1)[row * quads :][: rows * quads].reshape(rows, quads)
        u = steps.view(np.uint8).astype(np.int32)
        out = C.reshape(-1)
        for p in range(panels):
            width = min(_PANEL, columns - p * _PANEL)
            this = packed[panel + p]
            w = this[:quads].view(np.int8).reshape(quads, _PANEL, 4).transpose(0, 2, 1)
            total = u @ w.reshape(4 * quads, _PANEL).astype(np.int32) + this[quads]
            scale = this[quads + 1].view(np.float32).astype(np.float64)
            value = total.astype(np.float32) * scale
            for i in range(rows):
                start = at + i * stride + p * _PANEL
                before = out[start : start + max(0, width)]
                result = value[i, : max(0, width)] + (before if add else 0)
                out[start : start + max(0, width)] = result

    return tile


def make_int8_tile(rows: int, panels: int, instructions: Instructions = INSTRUCTIONS) -> Any:
    """Makes a tile of `rows` rows and `panels` panels.

    Args:
        rows: rows of A and C, 1 to ROWS.
        panels: panels of B next to each other.
        instructions: what multiplies.

    Returns:
        A function for compiled code, tile(A, B, C, row, panel, at, stride, columns, quads, add).
        A holds rows of `quads` int32, four bytes u each; B is packed. The tile computes `rows` rows
        of C, C-contiguous and of any shape, from rows `row` of A and panels `panel` on.
        C.flat[at] is the first element, the next row begins `stride` elements later, and C ends
        after `columns` columns; none past it is read or written. `add` adds to the values in C.
    """
    if PYTHON_MODE:
        return _python_tile(rows, panels)
    return _compiled_tile(rows, panels, instructions)
