"""`matmul` and its kin multiply in float32, bfloat16 or int8, as the packed operand's type says.

Panels and row blocks of float32 hold float32 numbers, those of uint32 hold pairs of bfloat16
numbers (see `gemm_bf16`). Panels of int32 hold int8 numbers (see `gemm_int8`); they are packed
once for inference, so that only `matmul` knows them. Numba decides when it compiles a caller, so
that cells and layers are written once and compiled for each, and no decision is left for run time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from treadle.kernels import gemm, gemm_bf16, gemm_int8, gemm_packing, gemm_transposed
from treadle.kernels.structs import RowBlock

Array = npt.NDArray[np.float32]


def _is_bf16(packed: Any) -> bool:
    """True for panels or a row block of bfloat16 pairs; takes arrays and Numba's types alike."""
    if isinstance(packed, types.BaseTuple | tuple):
        packed = packed[0]
    return bool(packed.dtype in (np.uint32, types.uint32))


def _multiplier(panels: Any) -> Any:
    """Returns the `matmul` of panels; takes arrays and Numba's types alike."""
    if panels.dtype in (np.int32, types.int32):
        return gemm_int8.matmul
    return gemm_bf16.matmul if _is_bf16(panels) else gemm.matmul


def pack(matrix: Array, panels: Any) -> None:
    """Packs a (K, N) matrix into panels, as `gemm_packing.pack`."""
    chosen = gemm_bf16 if _is_bf16(panels) else gemm_packing
    chosen.pack(matrix, panels)


def pack_transposed(matrix: Array, panels: Any) -> None:
    """Packs the transpose of an (N, K) matrix, as `gemm_packing.pack_transposed`."""
    chosen = gemm_bf16 if _is_bf16(panels) else gemm_packing
    chosen.pack_transposed(matrix, panels)


def matmul(A: Array, panels: Any, C: Array, add: bool) -> None:
    """Computes C (+)= A B, as `gemm.matmul`."""
    _multiplier(panels)(A, panels, C, add)


def matmul_rows(A: Array, panels: Any, first: int, C: Array, add: bool) -> None:
    """Computes C (+)= A B', as `gemm.matmul_rows`."""
    chosen = gemm_bf16 if _is_bf16(panels) else gemm
    chosen.matmul_rows(A, panels, first, C, add)


def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gathers rows for C += A^T B, as `gemm_transposed.add_rows_transposed`."""
    if _is_bf16(block):
        return gemm_bf16.add_rows_transposed(A, B, block, gathered, C, last)
    return gemm_transposed.add_rows_transposed(A, B, block, gathered, C, last)


def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """Computes C += A^T B, as `gemm_transposed.add_matmul_transposed`."""
    chosen = gemm_bf16 if _is_bf16(block) else gemm_transposed
    chosen.add_matmul_transposed(A, B, block, C)


def add_columns_transposed(A: Array, B: Array, block: RowBlock, C: Array, column: int) -> None:
    """Adds A^T B to some columns of C, as `gemm_transposed.add_columns_transposed`."""
    chosen = gemm_bf16 if _is_bf16(block) else gemm_transposed
    chosen.add_columns_transposed(A, B, block, C, column)


def _overload(stand_in: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what compiled code calls where plain Python calls `stand_in`."""
    register: Callable[[Callable[..., Any]], Callable[..., Any]] = overload(stand_in, strict=False)
    return register


# Each overload returns a function that calls the chosen one. `inline="always"` would spare that
# call, but Numba 0.68 then compiles `decode` wrong: every token read is the first one.


@_overload(pack)
def _pack(matrix: Any, panels: Any) -> Any:
    chosen = gemm_bf16.pack if _is_bf16(panels) else gemm_packing.pack
    return lambda matrix, panels: chosen(matrix, panels)


@_overload(pack_transposed)
def _pack_transposed(matrix: Any, panels: Any) -> Any:
    chosen = gemm_bf16.pack_transposed if _is_bf16(panels) else gemm_packing.pack_transposed
    return lambda matrix, panels: chosen(matrix, panels)


@_overload(matmul)
def _matmul(A: Any, panels: Any, C: Any, add: Any) -> Any:
    chosen = _multiplier(panels)
    return lambda A, panels, C, add: chosen(A, panels, C, add)


@_overload(matmul_rows)
def _matmul_rows(A: Any, panels: Any, first: Any, C: Any, add: Any) -> Any:
    chosen = gemm_bf16.matmul_rows if _is_bf16(panels) else gemm.matmul_rows
    return lambda A, panels, first, C, add: chosen(A, panels, first, C, add)


@_overload(add_rows_transposed)
def _add_rows_transposed(A: Any, B: Any, block: Any, gathered: Any, C: Any, last: Any) -> Any:
    module = gemm_bf16 if _is_bf16(block) else gemm_transposed
    chosen = module.add_rows_transposed
    return lambda A, B, block, gathered, C, last: chosen(A, B, block, gathered, C, last)


@_overload(add_matmul_transposed)
def _add_matmul_transposed(A: Any, B: Any, block: Any, C: Any) -> Any:
    module = gemm_bf16 if _is_bf16(block) else gemm_transposed
    chosen = module.add_matmul_transposed
    return lambda A, B, block, C: chosen(A, B, block, C)


@_overload(add_columns_transposed)
def _add_columns_transposed(A: Any, B: Any, block: Any, C: Any, column: Any) -> Any:
    module = gemm_bf16 if _is_bf16(block) else gemm_transposed
    chosen = module.add_columns_transposed
    return lambda A, B, block, C, column: chosen(A, B, block, C, column)
