"""Packed numbers of any type pass as float32 words, and their width says what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from product_oracle import draw
from small_networks import same_bytes

from treadle.kernels import gemm_bf16, gemm_dispatch, gemm_int8
from treadle.kernels.gemm_packing import PANEL, panel_count
from treadle.kernels.jit import BF16_MISSING, jit_views
from treadle.kernels.panel_words import as_words, pairs, quads
from treadle.kernels.structs import RowBlock

SIZES = [(1, 1, 1), (1, 33, 65), (7, 34, PANEL), (9, 5, 2 * PANEL + 3)]
"""(M, K, N)."""

needs_pairs = pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)


@jit_views
def first_pair(words: Any) -> int:
    return int(pairs(words)[1, 2, 3])


@jit_views
def last_quad(words: Any) -> int:
    return int(quads(words)[-1, -1, -1])


def test_words_are_the_same_bytes() -> None:
    panels = np.arange(3 * 5 * PANEL).reshape(3, 5, PANEL)
    for kind, numbers in ((np.uint32, 2), (np.int32, 4)):
        words = as_words(panels.astype(kind))
        assert words.shape == (3, 5 * numbers, PANEL // numbers)
        assert same_bytes(words.view(kind).reshape(panels.shape), panels.astype(kind))
    assert first_pair(as_words(panels.astype(np.uint32))) == panels[1, 2, 3]
    assert last_quad(as_words(panels.astype(np.int32))) == panels[-1, -1, -1]
    empty: Any = np.zeros((2, 0, 4, PANEL), np.uint32)
    assert as_words(empty).shape == (2, 0, 8, PANEL // 2)


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_words_of_quads_multiply_as_quads(M: int, K: int, N: int) -> None:
    A = draw(1, M, K)
    panels = gemm_int8.pack(draw(2, K, N))
    for add in (False, True):
        expected = draw(3, M, N)
        C = expected.copy()
        gemm_int8.matmul(A, panels, expected, add)
        gemm_dispatch.matmul(A, as_words(panels), C, add)
        assert same_bytes(C, expected)


@needs_pairs
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_words_of_pairs_multiply_as_pairs(M: int, K: int, N: int) -> None:
    A = draw(1, M, K)
    B = draw(2, K, N)
    panels = np.zeros((panel_count(N), gemm_bf16.pair_count(K), PANEL), np.uint32)
    gemm_bf16.pack(B, panels)
    for pack, matrix in (
        (gemm_dispatch.pack, B),
        (gemm_dispatch.pack_transposed, np.ascontiguousarray(B.T)),
    ):
        words = as_words(np.zeros_like(panels))
        pack(matrix, words)
        assert same_bytes(words, as_words(panels))
    for add in (False, True):
        expected = draw(3, M, N)
        C = expected.copy()
        D = expected.copy()
        gemm_bf16.matmul(A, panels, expected, add)
        gemm_dispatch.matmul(A, as_words(panels), C, add)
        gemm_dispatch.matmul_rows(A, as_words(panels), 0, D, add)
        assert same_bytes(C, expected)
        assert same_bytes(D, expected)


@needs_pairs
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_blocks_of_words_add_as_those_of_pairs(M: int, K: int, N: int) -> None:
    A = draw(1, K, M)
    B = draw(2, K, N)
    block = gemm_bf16.allocate_pair_block(M, N)
    words = RowBlock(as_words(block.left), as_words(block.right))
    expected = draw(3, M, N)
    gathered = expected.copy()
    summed = expected.copy()
    columns = expected.copy()
    gemm_bf16.add_matmul_transposed(A, B, block, expected)
    half = (K + 3) // 4 * 2  # every call begins a pair
    count = gemm_dispatch.add_rows_transposed(A[:half], B[:half], words, 0, gathered, half >= K)
    assert count == (0 if half >= K else half // 2)
    if half < K:
        gemm_dispatch.add_rows_transposed(A[half:], B[half:], words, count, gathered, True)
    gemm_dispatch.add_matmul_transposed(A, B, words, summed)
    gemm_dispatch.add_columns_transposed(A, B, words, columns, 0)
    for each in (gathered, summed, columns):
        assert same_bytes(each, expected)
