"""Matrix products as the passes call them: of float32 numbers, or of bfloat16 ones.

Which it is, the type of the packed panels or of the block says, float32 or uint32 (see `bf16`),
and compiled code decides it once, when it is compiled: cells and layers are written once and
compiled for either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from treadle.kernels import bf16, transposed
from treadle.kernels import matmul as singles
from treadle.kernels.transposed import Block

Array = npt.NDArray[np.float32]


def _of_pairs(packed: Any) -> bool:
    """True for panels of pairs, or a block of them; of arrays and of Numba's types alike."""
    if isinstance(packed, types.BaseTuple | tuple):
        packed = packed[0]
    return bool(packed.dtype in (np.uint32, types.uint32))


def pack(matrix: Array, panels: Any) -> None:
    """Pack a (K, N) matrix into panels, as `matmul.pack`."""
    (bf16 if _of_pairs(panels) else singles).pack(matrix, panels)


def pack_transposed(matrix: Array, panels: Any) -> None:
    """Pack the transpose of an (N, K) matrix, as `matmul.pack_transposed`."""
    (bf16 if _of_pairs(panels) else singles).pack_transposed(matrix, panels)


def matmul(A: Array, panels: Any, C: Array, add: bool) -> None:
    """C (+)= A B, as `matmul.matmul`."""
    (bf16 if _of_pairs(panels) else singles).matmul(A, panels, C, add)


def add_rows_transposed(
    A: Array, B: Array, block: Block, gathered: int, C: Array, last: bool
) -> int:
    """Gather rows for C += A^T B, as `transposed.add_rows_transposed`."""
    if _of_pairs(block):
        return bf16.add_rows_transposed(A, B, block, gathered, C, last)
    return transposed.add_rows_transposed(A, B, block, gathered, C, last)


def add_matmul_transposed(A: Array, B: Array, block: Block, C: Array) -> None:
    """C += A^T B, as `transposed.add_matmul_transposed`."""
    (bf16 if _of_pairs(block) else transposed).add_matmul_transposed(A, B, block, C)


def _choice(stand_in: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate what picks, by types, the function that compiled code calls for a stand-in."""
    register: Callable[[Callable[..., Any]], Callable[..., Any]] = overload(stand_in, strict=False)
    return register


# Compiled code: each choice names a function for the caller to call. `inline="always"` would
# spare a call, but Numba 0.68 then compiles `decode` wrong: every token read is the first one.


@_choice(pack)
def _pack(matrix: Any, panels: Any) -> Any:
    pack = bf16.pack if _of_pairs(panels) else singles.pack
    return lambda matrix, panels: pack(matrix, panels)


@_choice(pack_transposed)
def _pack_transposed(matrix: Any, panels: Any) -> Any:
    pack = bf16.pack_transposed if _of_pairs(panels) else singles.pack_transposed
    return lambda matrix, panels: pack(matrix, panels)


@_choice(matmul)
def _matmul(A: Any, panels: Any, C: Any, add: Any) -> Any:
    multiply = bf16.matmul if _of_pairs(panels) else singles.matmul
    return lambda A, panels, C, add: multiply(A, panels, C, add)


@_choice(add_rows_transposed)
def _add_rows_transposed(A: Any, B: Any, block: Any, gathered: Any, C: Any, last: Any) -> Any:
    chosen = bf16 if _of_pairs(block) else transposed
    multiply = chosen.add_rows_transposed
    return lambda A, B, block, gathered, C, last: multiply(A, B, block, gathered, C, last)


@_choice(add_matmul_transposed)
def _add_matmul_transposed(A: Any, B: Any, block: Any, C: Any) -> Any:
    multiply = (bf16 if _of_pairs(block) else transposed).add_matmul_transposed
    return lambda A, B, block, C: multiply(A, B, block, C)
