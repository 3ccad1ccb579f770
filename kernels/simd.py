"""`load` and `store` move vectors of sixteen float32 values, a type of their own in compiled code.

LLVM does not vectorize a fused gate loop over a dozen arrays by itself, so such loops are written
over vectors. A body is written once, with `load` and `store` of LANES elements, and runs over a row
in whole vectors and then in one partial vector, whose other lanes are neither read nor written.
LLVM splits a vector into the registers that the processor has. LANES is therefore the same on
every processor, and so are sums over lanes.

`+`, `-`, `*`, `/` and unary `-` work between vectors, and between a vector and a float32; so do
the functions of `intrinsics`. Under NUMBA_DISABLE_JIT=1 a vector is a NumPy array of LANES
elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from treadle.kernels.jit import BOUNDS_CHECKED, PYTHON_MODE, jit, jit_inline

Array = npt.NDArray[np.float32]

ZERO = np.float32(0.0)

LANES = 16
"""Elements of a vector. The bits of sums over lanes depend on it, so it is fixed."""

FLOAT = ir.FloatType()
INT = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT, LANES)


class VectorType(types.Type):  # type: ignore[misc]
    """The type of LANES float32 values."""

    def __init__(self) -> None:
        super().__init__("Vector")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


vector_type = VectorType()


def is_vector(kind: Any) -> bool:
    """Returns True for the type of a vector."""
    return isinstance(kind, VectorType)


def is_number(kind: Any) -> bool:
    """Returns True for the types that arithmetic here works on: vectors and float32."""
    return is_vector(kind) or bool(kind == types.float32)


def broadcast(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    """Emits a vector of one value, a float or an int32."""
    blank = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(blank, scalar, INT(0))
    zeros = ir.Constant(ir.VectorType(INT, lanes), [0] * lanes)
    return builder.shuffle_vector(first, blank, zeros)


def lanes_below(builder: Any, limit: Any, first: int = 0, lanes: int = LANES) -> Any:
    """Emits the mask of the lanes whose number, counted from `first`, is below an int32."""
    numbers = ir.Constant(ir.VectorType(INT, lanes), list(range(first, first + lanes)))
    return builder.icmp_signed("<", numbers, broadcast(builder, limit, lanes))


def masked_load(builder: Any, pointer: Any, mask: Any, others: Any) -> Any:
    """Emits a load of the masked lanes of a vector of floats; `others` fills the rest."""
    vector = others.type
    kind = ir.FunctionType(vector, [pointer.type, INT, mask.type, vector])
    name = f"llvm.masked.load.v{vector.count}f32.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [pointer, INT(4), mask, others])


def masked_store(builder: Any, value: Any, pointer: Any, mask: Any) -> None:
    """Emits a store of the masked lanes of a vector of floats."""
    kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, INT, mask.type])
    name = f"llvm.masked.store.v{value.type.count}f32.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(function, [value, pointer, INT(4), mask])


def promote(builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Returns an operation's arguments, all of them vectors if its result is one."""
    if not is_vector(signature.return_type):
        return list(arguments)
    pairs = zip(signature.args, arguments, strict=True)
    return [value if is_vector(kind) else broadcast(builder, value) for kind, value in pairs]


def call(builder: Any, name: str, *values: Any) -> Any:
    """Emits a call of an LLVM intrinsic over floats or vectors, such as `llvm.fma`."""
    kind = values[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function_type = ir.FunctionType(kind, [kind] * len(values))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{suffix}")
    return builder.call(function, values)


def check_range(context: Any, builder: Any, size: Any, first: Any, count: Any) -> None:
    """Emits an IndexError for elements that an array does not have; nothing in other builds.

    Args:
        context: Numba's.
        builder: of the function's code.
        size: elements of the array.
        first: the first element that is read or written.
        count: how many are; 0 or less for none.
    """
    if not BOUNDS_CHECKED:
        return
    zero = ir.Constant(first.type, 0)
    last = builder.add(first, count)
    outside = builder.or_(
        builder.icmp_signed("<", first, zero), builder.icmp_signed(">", last, size)
    )
    some = builder.icmp_signed(">", count, zero)
    with builder.if_then(builder.and_(some, outside), likely=False):
        context.call_conv.return_user_exc(builder, IndexError, ("a vector is out of bounds",))


def _place(
    context: Any, builder: Any, kind: Any, array: Any, offset: Any, count: Any
) -> tuple[Any, Any]:
    """Emits the address of a vector in an array, and the mask of its lanes below `count`."""
    made = context.make_array(kind)(context, builder, array)
    check_range(context, builder, made.nitems, offset, _bounded(builder, count))
    pointer = builder.bitcast(builder.gep(made.data, [offset]), VECTOR.as_pointer())
    return pointer, _mask(builder, count)


def _mask(builder: Any, count: Any) -> Any:
    """Emits the mask of the lanes below `count`; it folds away for the constant LANES."""
    return lanes_below(builder, builder.trunc(_bounded(builder, count), INT))


def _bounded(builder: Any, count: Any) -> Any:
    """Emits the smaller one of `count` and LANES."""
    top = ir.Constant(count.type, LANES)
    return builder.select(builder.icmp_signed(">", count, top), top, count)


def _load_padded(typing_context: Any, array: Any, offset: Any, count: Any, fill: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, mask = _place(context, builder, signature.args[0], *arguments[:3])
        return masked_load(builder, pointer, mask, broadcast(builder, arguments[3]))

    return vector_type(array, types.intp, types.intp, types.float32), generate


def _load(typing_context: Any, array: Any, offset: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, mask = _place(context, builder, signature.args[0], *arguments)
        return masked_load(builder, pointer, mask, ir.Constant(VECTOR, [0.0] * LANES))

    return vector_type(array, types.intp, types.intp), generate


def _store(typing_context: Any, array: Any, offset: Any, count: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, mask = _place(context, builder, signature.args[0], *arguments[:3])
        masked_store(builder, arguments[3], pointer, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector_type), generate


def _splat(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return broadcast(builder, arguments[0])

    return vector_type(types.float32), generate


def _part(builder: Any, vector: Any, first: int, width: int) -> Any:
    """Emits lanes `first` to `first + width`, as a vector of that width."""
    lanes = ir.Constant(ir.VectorType(INT, width), list(range(first, first + width)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _folding(combine: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Returns the intrinsic that folds a vector's upper half into its lower one, down to one."""

    def fold(typing_context: Any, vector: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = arguments[0]
            width = LANES
            while width > 1:
                width //= 2
                low = _part(builder, value, 0, width)
                high = _part(builder, value, width, width)
                value = combine(builder, low, high)
            return builder.extract_element(value, INT(0))

        return types.float32(vector), generate

    return fold


def emit_maximum(builder: Any, a: Any, b: Any) -> Any:
    """Emits the larger of two values of one type; NaN if either is."""
    return call(builder, "llvm.maximum", a, b)


def python_load_padded(array: Array, offset: int, count: int, fill: np.float32) -> Array:
    """Stands in for `load_padded`."""
    vector = np.full(LANES, fill, np.float32)
    part = array.reshape(-1)[offset : offset + min(count, LANES)]
    vector[: part.size] = part
    return vector


def python_load(array: Array, offset: int, count: int) -> Array:
    """Stands in for `load`."""
    return python_load_padded(array, offset, count, ZERO)


def python_store(array: Array, offset: int, count: int, value: Array) -> None:
    """Stands in for `store`."""
    width = min(count, LANES)
    array.reshape(-1)[offset : offset + width] = value[:width]


def python_splat(value: np.float32) -> Array:
    """Stands in for `splat`."""
    return np.full(LANES, value, np.float32)


def _python_folding(combine: Callable[[Array, Array], Array]) -> Callable[[Array], np.float32]:
    def fold(vector: Array) -> np.float32:
        while vector.size > 1:
            vector = combine(vector[: vector.size // 2], vector[vector.size // 2 :])
        return np.float32(vector[0])

    return fold


load_padded: Callable[[Array, int, int, np.float32], Array] = (
    python_load_padded if PYTHON_MODE else intrinsic(_load_padded)
)
"""load_padded(array, offset, count, fill): element n is array.flat[offset + n], or `fill` from
`count` on."""

load: Callable[[Array, int, int], Array] = python_load if PYTHON_MODE else intrinsic(_load)
"""load(array, offset, count): element n is array.flat[offset + n], or 0 from `count` on."""

store: Callable[[Array, int, int, Array], None] = python_store if PYTHON_MODE else intrinsic(_store)
"""store(array, offset, count, vector): array.flat[offset + n] = vector[n] for n below `count`."""

splat: Callable[[np.float32], Array] = python_splat if PYTHON_MODE else intrinsic(_splat)
"""splat(value): a vector of one value."""

lane_sum: Callable[[Array], np.float32] = (
    _python_folding(np.add)
    if PYTHON_MODE
    else intrinsic(_folding(lambda builder, a, b: builder.fadd(a, b)))
)
"""lane_sum(vector): its sum, the upper half added to the lower one until one is left."""

lane_maximum: Callable[[Array], np.float32] = (
    _python_folding(np.maximum) if PYTHON_MODE else intrinsic(_folding(emit_maximum))
)
"""lane_maximum(vector): its largest element; NaN if one is NaN."""


_ROUNDS = [1 << bit for bit in range(LANES.bit_length() - 1)]
"""Distances between rows that a transpose in registers swaps elements of, round by round: between
two rows whose numbers differ in that bit, the elements whose column has it (Eklundh, "A fast
computer method for matrix transposing", 1972)."""


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


def _check_rows(context: Any, builder: Any, array: Any, first: Any, row: Any) -> None:
    """Emits the bounds check of LANES rows of LANES elements, `row` apart."""
    whole = ir.Constant(first.type, LANES)
    last = builder.add(first, builder.mul(row, ir.Constant(first.type, LANES - 1)))
    for place in (first, last):
        check_range(context, builder, array.nitems, place, whole)


def _move_transposed(
    typing_context: Any, source: Any, start: Any, row: Any, target: Any, to: Any, step: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, row, target, to, step = arguments
        given = context.make_array(signature.args[0])(context, builder, source)
        taken = context.make_array(signature.args[3])(context, builder, target)
        _check_rows(context, builder, given, start, row)
        _check_rows(context, builder, taken, to, step)

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


@jit_inline
def move(source: Array, start: int, target: Array, to: int, width: int, count: int) -> None:
    """Writes `count` floats of source.flat[start:], then zeros, to target.flat[to : to + width].

    Where `width` and `count` are constants, the masks fold away.
    """
    for x in range(0, width, LANES):
        store(target, to + x, width - x, load(source, start + x, count - x))


@jit
def copy(source: Array, start: int, target: Array, to: int, count: int) -> None:
    """Copies source.flat[start : start + count] to target.flat[to : to + count]."""
    whole = count // LANES * LANES
    for n in range(0, whole, LANES):
        store(target, to + n, LANES, load(source, start + n, LANES))
    if whole < count:
        store(target, to + whole, count - whole, load(source, start + whole, count - whole))


@jit_inline
def copy_array(source: Array, target: Array) -> None:
    """Copies an array to another of the same size; both are C-contiguous.

    `target[:] = source` does the same, but Numba adds to it how it words an error about the
    shapes, which takes a second to compile wherever it stands.
    """
    copy(source, 0, target, 0, source.size)


@jit
def add_row(source: Array, start: int, target: Array, to: int, count: int) -> None:
    """Adds source.flat[start : start + count] to target.flat[to : to + count]."""
    whole = count // LANES * LANES
    for n in range(0, whole, LANES):
        store(target, to + n, LANES, load(target, to + n, LANES) + load(source, start + n, LANES))
    if whole < count:
        left = count - whole
        at = to + whole
        store(target, at, left, load(target, at, left) + load(source, start + whole, left))


_OPERATORS: dict[Any, str] = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}


def _register(symbol: Any, instruction: str) -> None:
    """Teaches Numba one operator between vectors and floats."""

    def typed(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            mixed = is_number(a) and is_number(b) and (is_vector(a) or is_vector(b))
            return vector_type if mixed else None

        return typer

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*promote(builder, signature, arguments))

    type_callable(symbol)(typed)
    for kinds in (
        (VectorType, VectorType),
        (VectorType, types.Float),
        (types.Float, VectorType),
    ):
        lower_builtin(symbol, *kinds)(generate)


def _register_negation() -> None:
    def typed(context: Any) -> Any:
        return lambda a: vector_type if is_vector(a) else None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fneg(arguments[0])

    type_callable(operator.neg)(typed)
    lower_builtin(operator.neg, VectorType)(generate)


for _symbol, _instruction in _OPERATORS.items():
    _register(_symbol, _instruction)
_register_negation()
