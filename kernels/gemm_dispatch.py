"""`matmul` and its kin multiply in float32, bfloat16 or int8, as the packed operand says.

Panels and row blocks of float32 hold float32 numbers, those of uint32 hold pairs of bfloat16
numbers (see `gemm_bf16`). Panels of int32 hold int8 numbers (see `gemm_int8`); they are packed
once for inference, so that only `matmul` knows them. For panels of these types Numba decides when
it compiles a caller. A network's panels are of one type whatever they hold, the float32 words of
`panel_words`, and so each of its kernels is compiled once; the width of the panels then decides at
run time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from treadle.kernels import gemm, gemm_bf16, gemm_int8, gemm_packing, gemm_transposed
from treadle.kernels.gemm_packing import PANEL
from treadle.kernels.jit import BF16_MISSING, PYTHON_MODE, jit_views, jit_views_apart
from treadle.kernels.panel_words import QUADS_WIDTH, pairs, quads
from treadle.kernels.structs import RowBlock

Array = npt.NDArray[np.float32]

_HAS_PAIRS = PYTHON_MODE or not BF16_MISSING
"""Whether products of bfloat16 numbers can be compiled."""


@jit_views
def _pair_block(block: RowBlock) -> RowBlock:
    """Returns a row block of words as one of pairs."""
    return RowBlock(pairs(block.left), pairs(block.right))  # type: ignore[arg-type]


@jit_views_apart
def matmul_words(A: Array, panels: Array, C: Array, add: bool) -> None:
    """Computes C (+)= A B for panels of float32 numbers or of words."""
    width = panels.shape[2]
    if width == PANEL:
        gemm.matmul(A, panels, C, add)
        return
    if width == QUADS_WIDTH:
        gemm_int8.matmul(A, quads(panels), C, add)
        return
    if _HAS_PAIRS:
        gemm_bf16.matmul(A, pairs(panels), C, add)


@jit_views_apart
def matmul_rows_words(A: Array, panels: Array, first: int, C: Array, add: bool) -> None:
    """Computes C (+)= A B' for panels of float32 numbers or of words of pairs."""
    if panels.shape[2] == PANEL:
        gemm.matmul_rows(A, panels, first, C, add)
        return
    if _HAS_PAIRS:
        gemm_bf16.matmul_rows(A, pairs(panels), first, C, add)


@jit_views_apart
def pack_words(matrix: Array, panels: Array) -> None:
    """Packs a (K, N) matrix into panels of float32 numbers or of words of pairs."""
    if panels.shape[2] == PANEL:
        gemm_packing.pack(matrix, panels)
        return
    if _HAS_PAIRS:
        gemm_bf16.pack(matrix, pairs(panels))


@jit_views_apart
def pack_transposed_words(matrix: Array, panels: Array) -> None:
    """Packs the transpose of an (N, K) matrix likewise."""
    if panels.shape[2] == PANEL:
        gemm_packing.pack_transposed(matrix, panels)
        return
    if _HAS_PAIRS:
        gemm_bf16.pack_transposed(matrix, pairs(panels))


@jit_views_apart
def add_rows_words(A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool) -> int:
    """Gathers rows for C += A^T B in a block of float32 numbers or of words of pairs."""
    if block.right.shape[2] == PANEL:
        return gemm_transposed.add_rows_transposed(A, B, block, gathered, C, last)
    if _HAS_PAIRS:
        return gemm_bf16.add_rows_transposed(A, B, _pair_block(block), gathered, C, last)
    return gathered


@jit_views_apart
def add_columns_words(A: Array, B: Array, block: RowBlock, C: Array, column: int) -> None:
    """Adds A^T B to some columns of C, with a block of float32 numbers or of words of pairs."""
    if block.right.shape[2] == PANEL:
        gemm_transposed.add_columns_transposed(A, B, block, C, column)
        return
    if _HAS_PAIRS:
        gemm_bf16.add_columns_transposed(A, B, _pair_block(block), C, column)


def _dtype(packed: Any) -> Any:
    """Returns the type of panels or of a row block; takes arrays and Numba's types alike."""
    if isinstance(packed, types.BaseTuple | tuple):
        packed = packed[0]
    return packed.dtype


def _is_bf16(packed: Any) -> bool:
    """True for panels or a row block of bfloat16 pairs by their type."""
    return bool(_dtype(packed) in (np.uint32, types.uint32))


def _is_int8(packed: Any) -> bool:
    """True for panels of int8 numbers by their type."""
    return bool(_dtype(packed) in (np.int32, types.int32))


def _chosen(packed: Any, name: str, words: Any) -> Any:
    """Returns the function of that name for packed numbers, or `words` where the width decides."""
    if _is_int8(packed):
        return getattr(gemm_int8, name)
    return getattr(gemm_bf16, name) if _is_bf16(packed) else words


def pack(matrix: Array, panels: Any) -> None:
    """Packs a (K, N) matrix into panels, as `gemm_packing.pack`."""
    _chosen(panels, "pack", pack_words)(matrix, panels)


def pack_transposed(matrix: Array, panels: Any) -> None:
    """Packs the transpose of an (N, K) matrix, as `gemm_packing.pack_transposed`."""
    _chosen(panels, "pack_transposed", pack_transposed_words)(matrix, panels)


def matmul(A: Array, panels: Any, C: Array, add: bool) -> None:
    """Computes C (+)= A B, as `gemm.matmul`."""
    _chosen(panels, "matmul", matmul_words)(A, panels, C, add)


def matmul_rows(A: Array, panels: Any, first: int, C: Array, add: bool) -> None:
    """Computes C (+)= A B', as `gemm.matmul_rows`."""
    _chosen(panels, "matmul_rows", matmul_rows_words)(A, panels, first, C, add)


def add_rows_transposed(
    A: Array, B: Array, block: RowBlock, gathered: int, C: Array, last: bool
) -> int:
    """Gathers rows for C += A^T B, as `gemm_transposed.add_rows_transposed`."""
    chosen = _chosen(block, "add_rows_transposed", add_rows_words)
    return int(chosen(A, B, block, gathered, C, last))


def add_columns_transposed(A: Array, B: Array, block: RowBlock, C: Array, column: int) -> None:
    """Adds A^T B to some columns of C, as `gemm_transposed.add_columns_transposed`."""
    _chosen(block, "add_columns_transposed", add_columns_words)(A, B, block, C, column)


def add_matmul_transposed(A: Array, B: Array, block: RowBlock, C: Array) -> None:
    """Computes C += A^T B, as `gemm_transposed.add_matmul_transposed`."""
    add_columns_transposed(A, B, block, C, 0)


def _overload(stand_in: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what compiled code calls where plain Python calls `stand_in`."""
    register: Callable[[Callable[..., Any]], Callable[..., Any]] = overload(stand_in, strict=False)
    return register


# Each overload returns a function that calls the chosen one. `inline="always"` would spare that
# call, but Numba 0.68 then compiles `decode` wrong: every token read is the first one.


@_overload(pack)
def _pack(matrix: Any, panels: Any) -> Any:
    chosen = _chosen(panels, "pack", pack_words)
    return lambda matrix, panels: chosen(matrix, panels)


@_overload(pack_transposed)
def _pack_transposed(matrix: Any, panels: Any) -> Any:
    chosen = _chosen(panels, "pack_transposed", pack_transposed_words)
    return lambda matrix, panels: chosen(matrix, panels)


@_overload(matmul)
def _matmul(A: Any, panels: Any, C: Any, add: Any) -> Any:
    chosen = _chosen(panels, "matmul", matmul_words)
    return lambda A, panels, C, add: chosen(A, panels, C, add)


@_overload(matmul_rows)
def _matmul_rows(A: Any, panels: Any, first: Any, C: Any, add: Any) -> Any:
    chosen = _chosen(panels, "matmul_rows", matmul_rows_words)
    return lambda A, panels, first, C, add: chosen(A, panels, first, C, add)


@_overload(add_rows_transposed)
def _add_rows_transposed(A: Any, B: Any, block: Any, gathered: Any, C: Any, last: Any) -> Any:
    chosen = _chosen(block, "add_rows_transposed", add_rows_words)
    return lambda A, B, block, gathered, C, last: chosen(A, B, block, gathered, C, last)


@_overload(add_columns_transposed)
def _add_columns_transposed(A: Any, B: Any, block: Any, C: Any, column: Any) -> Any:
    chosen = _chosen(block, "add_columns_transposed", add_columns_words)
    return lambda A, B, block, C, column: chosen(A, B, block, C, column)


@_overload(add_matmul_transposed)
def _add_matmul_transposed(A: Any, B: Any, block: Any, C: Any) -> Any:
    chosen = _chosen(block, "add_columns_transposed", add_columns_words)
    return lambda A, B, block, C: chosen(A, B, block, C, 0)
