"""Single machine instructions that neither NumPy nor Numba offers, each with a Python stand-in.

The stand-ins serve NUMBA_DISABLE_JIT=1 only. `fma` rounds once in hardware; its stand-in adds
the exact product in float64 and rounds to float32, which differs in rare last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.kernels.compile import PYTHON_MODE

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)


def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32")
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _float_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bit pattern is the int32 `bits`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


def _bits_from_float(typing_context: Any, value: Any) -> Any:
    """The bit pattern of a float32, as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.int32(types.float32), generate


def python_fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """Stand-in for `fma`; also takes arrays."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def python_float_from_bits(bits: np.int32) -> np.float32:
    """Stand-in for `float_from_bits`."""
    return np.int32(bits).view(np.float32)


def python_bits_from_float(value: np.float32) -> np.int32:
    """Stand-in for `bits_from_float`."""
    return np.float32(value).view(np.int32)


fma: Callable[[np.float32, np.float32, np.float32], np.float32] = (
    python_fma if PYTHON_MODE else intrinsic(_fma)
)
float_from_bits: Callable[[np.int32], np.float32] = (
    python_float_from_bits if PYTHON_MODE else intrinsic(_float_from_bits)
)
bits_from_float: Callable[[np.float32], np.int32] = (
    python_bits_from_float if PYTHON_MODE else intrinsic(_bits_from_float)
)
