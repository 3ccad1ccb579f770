"""`as_words` hides the type of packed numbers, so that one compiled kernel takes panels of any.

Panels of float32 numbers are (..., k, PANEL). Those of bfloat16 pairs, uint32, and of int8 quads,
int32, are passed as float32 words as well. PANEL numbers then fill PANEL / 2 or PANEL / 4 words,
so that the last axis says at run time what they are. The bytes are the same; no arithmetic is done
on words. If the type said it, every kernel above a product would be compiled once for each type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from treadle.kernels.gemm_packing import PANEL
from treadle.kernels.jit import PYTHON_MODE

Array = npt.NDArray[np.float32]

PAIRS_WIDTH = PANEL // 2
"""The last axis of words that hold two bfloat16 numbers each."""

QUADS_WIDTH = PANEL // 4
"""The last axis of words that hold four int8 numbers each."""

_NUMBERS = {np.dtype(np.uint32): 2, np.dtype(np.int32): 4}
_ITEM_BYTES = 4


def as_words(panels: npt.NDArray[Any]) -> Array:
    """Returns panels (..., rows, PANEL) of pairs or quads as float32 words, without a copy."""
    numbers = _NUMBERS[panels.dtype]
    *stack, rows, width = panels.shape
    return panels.view(np.float32).reshape(*stack, rows * numbers, width // numbers)


def _typed(kind: Any, numbers: int) -> Callable[..., Any]:
    """Returns the intrinsic that gives words (n, rows, width) their own type again."""
    shift = numbers.bit_length() - 1

    def typed(typing_context: Any, words: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = context.make_array(signature.args[0])(context, builder, arguments[0])
            panels = context.make_array(signature.return_type)(context, builder)
            count, rows, width = cgutils.unpack_tuple(builder, given.shape, words.ndim)
            places = ir.Constant(rows.type, shift)
            item = ir.Constant(rows.type, _ITEM_BYTES)
            wide = builder.shl(width, places)
            size = builder.mul(wide, item)
            populate_array(  # it owns nothing: the words are there for as long as the caller
                panels,
                data=builder.bitcast(given.data, panels.data.type),
                shape=(count, builder.lshr(rows, places), wide),
                strides=(cgutils.unpack_tuple(builder, given.strides, words.ndim)[0], size, item),
                itemsize=item,
                meminfo=None,
            )
            return panels._getvalue()

        return types.Array(kind, words.ndim, "C")(words), generate

    return typed


def _python_typed(kind: Any, numbers: int) -> Callable[[Array], npt.NDArray[Any]]:
    def typed(words: Array) -> npt.NDArray[Any]:
        count, rows, width = words.shape
        return words.view(kind).reshape(count, rows // numbers, width * numbers)  # type: ignore[no-any-return]

    return typed


pairs: Callable[[Array], npt.NDArray[np.uint32]] = (
    _python_typed(np.uint32, 2) if PYTHON_MODE else intrinsic(_typed(types.uint32, 2))
)
"""pairs(words): the panels (n, rows, PANEL) of bfloat16 pairs that `as_words` was given."""

quads: Callable[[Array], npt.NDArray[np.int32]] = (
    _python_typed(np.int32, 4) if PYTHON_MODE else intrinsic(_typed(types.int32, 4))
)
"""quads(words): the same for panels of int8 quads."""
