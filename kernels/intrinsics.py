"""`fma` and other single instructions that neither NumPy nor Numba offers.

All but the two over bits take floats and vectors alike (see `simd`). Each has a Python stand-in for
NUMBA_DISABLE_JIT=1. `fma` rounds once in hardware; its stand-in adds the exact product in float64
and rounds to float32, which differs in rare last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from treadle.kernels.jit import PYTHON_MODE
from treadle.kernels.simd import (
    FLOAT,
    INT,
    INTS,
    LANES,
    VECTOR,
    broadcast,
    call,
    emit_maximum,
    is_number,
    is_vector,
    promote,
    vector_type,
)

Number = np.float32 | npt.NDArray[np.float32]
Value = TypeVar("Value", np.float32, npt.NDArray[np.float32])

_EXPONENT_OFFSET = 0x4B400000 - 127  # the bits of 1.5 * 2**23, less the bias of an exponent


def _typed(kinds: tuple[Any, ...], emit: Callable[..., Any]) -> Any:
    """Returns the signature of an operation over floats or vectors, and its code generator."""
    if not all(is_number(kind) for kind in kinds):
        return None
    result = vector_type if any(is_vector(kind) for kind in kinds) else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit(builder, *promote(builder, signature, arguments))

    return result(*kinds), generate


def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    return _typed((a, b, c), lambda builder, *values: call(builder, "llvm.fma", *values))


def _minimum(typing_context: Any, a: Any, b: Any) -> Any:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", a, b), b, a)

    return _typed((a, b), emit)


def _maximum(typing_context: Any, a: Any, b: Any) -> Any:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return _typed((a, b), emit)


def _larger(typing_context: Any, a: Any, b: Any) -> Any:
    return _typed((a, b), emit_maximum)


def _zero_below(typing_context: Any, x: Any, limit: Any, value: Any) -> Any:
    def emit(builder: Any, x: Any, limit: Any, value: Any) -> Any:
        zero = ir.Constant(value.type, [0.0] * LANES if value.type == VECTOR else 0.0)
        return builder.select(builder.fcmp_ordered("<", x, limit), zero, value)

    return _typed((x, limit, value), emit)


def _any_reaches(typing_context: Any, vector: Any, limit: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        limits = broadcast(builder, arguments[1])
        reached = builder.fcmp_ordered(">=", arguments[0], limits)
        bits = builder.bitcast(reached, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(vector_type, types.float32), generate


def _power_of_two(typing_context: Any, rounded: Any) -> Any:
    def emit(builder: Any, value: Any) -> Any:
        wide = value.type == VECTOR
        kind = INTS if wide else INT
        offset = ir.Constant(kind, [_EXPONENT_OFFSET] * LANES if wide else _EXPONENT_OFFSET)
        shift = ir.Constant(kind, [23] * LANES if wide else 23)
        exponent = builder.sub(builder.bitcast(value, kind), offset)
        return builder.bitcast(builder.shl(exponent, shift), value.type)

    return _typed((rounded,), emit)


def _float_from_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


def _bits_from_float(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], INT)

    return types.int32(types.float32), generate


def python_fma(a: Any, b: Any, c: Any) -> Any:
    """Stands in for `fma`."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def _selected(condition: Any, yes: Any, no: Any) -> Any:
    """Selects like np.where, and returns a float for floats."""
    return np.where(condition, yes, no).astype(np.float32)[()]


def python_minimum(a: Any, b: Any) -> Any:
    """Stands in for `minimum`."""
    return _selected(a > b, b, a)


def python_maximum(a: Any, b: Any) -> Any:
    """Stands in for `maximum`."""
    return _selected(a < b, b, a)


def python_larger(a: Any, b: Any) -> Any:
    """Stands in for `larger`."""
    return np.maximum(a, b)


def python_zero_below(x: Any, limit: Any, value: Any) -> Any:
    """Stands in for `zero_below`."""
    return _selected(x < limit, np.float32(0.0), value)


def python_any_reaches(vector: Any, limit: Any) -> bool:
    """Stands in for `any_reaches`."""
    return bool((vector >= limit).any())


def python_power_of_two(rounded: Any) -> Any:
    """Stands in for `power_of_two`."""
    bits = np.asarray(rounded, np.float32).view(np.int32)
    return ((bits - np.int32(_EXPONENT_OFFSET)) << np.int32(23)).view(np.float32)[()]


def python_float_from_bits(bits: np.int32) -> np.float32:
    """Stands in for `float_from_bits`."""
    return np.int32(bits).view(np.float32)


def python_bits_from_float(value: np.float32) -> np.int32:
    """Stands in for `bits_from_float`."""
    return np.float32(value).view(np.int32)


fma: Callable[..., Any] = python_fma if PYTHON_MODE else intrinsic(_fma)
"""fma(a, b, c): a * b + c, rounded once."""

minimum: Callable[..., Any] = python_minimum if PYTHON_MODE else intrinsic(_minimum)
"""minimum(a, b): b where a > b, else a, so that a NaN in a stays."""

maximum: Callable[..., Any] = python_maximum if PYTHON_MODE else intrinsic(_maximum)
"""maximum(a, b): b where a < b, else a, so that a NaN in a stays."""

larger: Callable[..., Any] = python_larger if PYTHON_MODE else intrinsic(_larger)
"""larger(a, b): the larger one; NaN if either is."""

zero_below: Callable[..., Any] = python_zero_below if PYTHON_MODE else intrinsic(_zero_below)
"""zero_below(x, limit, value): 0 where x < limit, else `value`."""

any_reaches: Callable[..., bool] = python_any_reaches if PYTHON_MODE else intrinsic(_any_reaches)
"""any_reaches(vector, limit): whether any element is at least `limit`; NaN is not."""

power_of_two: Callable[..., Any] = python_power_of_two if PYTHON_MODE else intrinsic(_power_of_two)
"""power_of_two(rounded): 2^n for n + 1.5 * 2**23, n a whole number from -126 to 127."""

float_from_bits: Callable[[np.int32], np.float32] = (
    python_float_from_bits if PYTHON_MODE else intrinsic(_float_from_bits)
)
"""float_from_bits(bits): the float32 whose bit pattern is the int32 `bits`."""

bits_from_float: Callable[[np.float32], np.int32] = (
    python_bits_from_float if PYTHON_MODE else intrinsic(_bits_from_float)
)
"""bits_from_float(value): the bit pattern of a float32, as int32."""
