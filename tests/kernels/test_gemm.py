"""Packed matrix products against NumPy in float64, and bit for bit against one chain of fma."""

import numpy as np
import pytest
from numpy.typing import NDArray
from product_oracle import draw, fused, guarded
from small_networks import relative_error, same_bytes

from treadle.kernels import gemm_transposed
from treadle.kernels.gemm import add_rows, matmul
from treadle.kernels.gemm_packing import pack, pack_transposed, panel_count
from treadle.kernels.gemm_tile import LANES, PANEL, ROWS
from treadle.kernels.gemm_transposed import add_rows_transposed, allocate_row_block
from treadle.kernels.structs import ROW_BLOCK

Floats = NDArray[np.float32]

SIZES = [(1, 1, 1), (7, 33, 132), (13, 5, 65), (1, 9, 4 * PANEL + 5), (ROWS + 5, 3, PANEL)]
SIZES += [
    (1, 9, N) for N in (PANEL - 1, PANEL + LANES, 2 * PANEL + 1, 4 * PANEL - 1, 4 * PANEL - LANES)
]
"""(M, K, N): less than a tile, all sizes of tile, four panels at once, no partial panel; then a
single row whose last panel is full or not, and of which half a panel is enough or not."""


def packed(matrix: Floats) -> Floats:
    """Pack into panels that hold rubbish before."""
    panels = np.full((panel_count(matrix.shape[1]), matrix.shape[0], PANEL), np.nan, np.float32)
    pack(matrix, panels)
    return panels


def product(A: Floats, B: Floats, C: Floats | None = None) -> Floats:
    """C + A B; without a C, A B."""
    out = np.full((len(A), B.shape[1]), np.nan, np.float32) if C is None else C.copy()
    matmul(A, packed(B), out, C is not None)
    return out


def add_matmul_transposed(A: Floats, B: Floats, C: Floats, panels: int = 2) -> None:
    """C += A^T B, by a block that holds rubbish before, and `panels` panels of B at once."""
    block = allocate_row_block(A.shape[1], panels * PANEL)
    for part in block:
        part[...] = np.nan
    gemm_transposed.add_matmul_transposed(A, B, block, C)


def chain(A: Floats, B: Floats, C: Floats) -> Floats:
    """C + A B, every element one chain over ascending k."""
    total = C.copy()
    for k in range(A.shape[1]):
        total = fused(A[:, k : k + 1], B[k : k + 1], total)
    return total


@pytest.mark.parametrize("columns", [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL + 2])
def test_pack(columns: int) -> None:
    matrix = draw(1, 3, columns)
    panels = packed(matrix)
    assert panels.shape == (panel_count(columns), 3, PANEL)
    flat = panels.transpose(1, 0, 2).reshape(3, -1)
    assert same_bytes(np.ascontiguousarray(flat[:, :columns]), matrix)
    assert (flat[:, columns:] == 0).all()


@pytest.mark.parametrize("columns", [1, PANEL, 2 * PANEL + 3])
def test_pack_transposed(columns: int) -> None:
    matrix = draw(2, 5, columns)
    panels = np.full((panel_count(5), columns, PANEL), np.nan, np.float32)
    pack_transposed(matrix, panels)
    assert same_bytes(panels, packed(np.ascontiguousarray(matrix.T)))


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_matmul(M: int, K: int, N: int) -> None:
    A = draw(3, M, K)
    B = draw(4, K, N)
    C = draw(5, M, N)
    exact = A.astype(np.float64) @ B
    assert relative_error(product(A, B), exact) < 1e-6
    assert relative_error(product(A, B, C), C + exact) < 1e-6


@pytest.mark.parametrize(("M", "K", "N"), [*SIZES, (5, 2 * ROW_BLOCK + 88, 3)])
def test_add_matmul_transposed(M: int, K: int, N: int) -> None:
    A = draw(6, K, M)
    B = draw(7, K, N)
    C = draw(8, M, N)
    exact = C + A.T.astype(np.float64) @ B
    add_matmul_transposed(A, B, C)
    assert relative_error(C, exact) < 2e-6


@pytest.mark.jit
@pytest.mark.parametrize(("M", "K", "N"), [*SIZES, (5, 2 * ROW_BLOCK + 88, 3)])
def test_every_element_is_one_chain(M: int, K: int, N: int) -> None:
    A = draw(9, M, K)
    B = draw(10, K, N)
    C = draw(11, M, N)
    assert same_bytes(product(A, B), chain(A, B, np.zeros_like(C)))
    assert same_bytes(product(A, B, C), chain(A, B, C))
    left = np.ascontiguousarray(A.T)
    expected = chain(A, B, C)
    add_matmul_transposed(left, B, C)
    assert same_bytes(C, expected)


@pytest.mark.parametrize("M", range(2, ROWS + 6))
def test_a_row_alone_is_the_row_among_others(M: int) -> None:
    A = draw(12, M, 11)
    B = draw(13, 11, 5 * PANEL + 3)
    C = draw(14, M, 5 * PANEL + 3)
    together = product(A, B)
    added = product(A, B, C)
    for m in range(M):
        row = slice(m, m + 1)
        assert same_bytes(product(A[row], B), together[row])
        assert same_bytes(product(A[row], B, C[row]), added[row])


@pytest.mark.parametrize("cut", [1, 16, 32])
def test_adding_goes_on_with_the_chain(cut: int) -> None:
    A = draw(15, 6, 33)
    B = draw(16, 33, PANEL + 9)
    first = product(np.ascontiguousarray(A[:, :cut]), B[:cut])
    assert same_bytes(product(np.ascontiguousarray(A[:, cut:]), B[cut:], first), product(A, B))


@pytest.mark.parametrize("rows", [1, 7, ROW_BLOCK - 1, ROW_BLOCK])
def test_blocks_of_rows_do_not_matter(rows: int) -> None:
    K = ROW_BLOCK + 9
    A = draw(17, K, 3)
    B = draw(18, K, 5)
    at_once, in_parts = np.zeros((2, 3, 5), np.float32)
    add_matmul_transposed(A, B, at_once)
    for k in range(0, K, rows):
        add_matmul_transposed(A[k : k + rows], B[k : k + rows], in_parts)
    assert same_bytes(at_once, in_parts)


@pytest.mark.parametrize("rows", [1, 16, 100, ROW_BLOCK])
@pytest.mark.parametrize(("M", "N"), [(3, 5), (ROWS, PANEL), (2 * ROWS + 3, PANEL + 1)])
def test_gathered_rows_are_one_sum(rows: int, M: int, N: int) -> None:
    K = 2 * ROW_BLOCK + 9
    A = draw(27, K, M)
    B = draw(28, K, N)
    C = draw(29, M, N)
    expected = C.copy()
    block = allocate_row_block(M, N)
    gathered = 0
    for k in range(0, K, rows):
        part = slice(k, min(K, k + rows))
        gathered = add_rows_transposed(A[part], B[part], block, gathered, C, part.stop == K)
    assert gathered == 0
    add_matmul_transposed(A, B, expected)
    assert same_bytes(C, expected)


@pytest.mark.parametrize("N", [1, PANEL - 1, PANEL, PANEL + 1, 4 * PANEL, 4 * PANEL + 1])
@pytest.mark.parametrize("M", [1, ROWS + 5])
@pytest.mark.parametrize("add", [False, True])
def test_nothing_is_written_past_the_result(M: int, N: int, add: bool) -> None:
    A = draw(19, M, 3)
    B = draw(20, 3, N)
    C, untouched = guarded(np.zeros((M, N), np.float32))
    matmul(A, packed(B), C, add)
    assert same_bytes(C, product(A, B))
    assert untouched()


@pytest.mark.parametrize("N", [1, PANEL, PANEL + 1])
@pytest.mark.parametrize("M", [1, ROWS + 5])
def test_nothing_is_written_past_the_transposed_result(M: int, N: int) -> None:
    A = draw(21, 3, M)
    B = draw(22, 3, N)
    C, untouched = guarded(np.zeros((M, N), np.float32))
    add_matmul_transposed(A, B, C)
    assert same_bytes(C, product(np.ascontiguousarray(A.T), B))
    assert untouched()


def test_columns_past_the_last_are_not_read() -> None:
    """What stands behind a matrix in memory, even NaN, is no part of a product."""
    buffer = np.full(3 * 5 + 2 * PANEL, np.nan, np.float32)
    B = buffer[: 3 * 5].reshape(3, 5)
    B[...] = draw(23, 3, 5)
    A = draw(24, 3, 4)
    C = np.zeros((4, 5), np.float32)
    add_matmul_transposed(A, B, C)
    assert np.isfinite(C).all()


def test_add_rows() -> None:
    rows = draw(25, 9, 5)
    total = draw(26, 5)
    expected = total.copy()
    for row in rows:
        expected += row
    add_rows(rows, total)
    assert same_bytes(total, expected)


def test_the_oracle_rounds_once() -> None:
    def one(value: float) -> Floats:
        return np.array([value], np.float32)

    x = 2.0**-12
    # (1 + x) (1 - x) - 1 = -x^2, of which a product rounded by itself leaves nothing.
    assert fused(one(1 + x), one(1 - x), one(-1)) == -x * x
    # With x = 2^-11, (1 + x) (1 - x + x^2) = 1 + x^3: the sum is 2^-57 above the middle of two
    # floats. Rounding to float64 first loses that and goes to the even one, down.
    x = 2.0**-11
    assert fused(one(2.0**-24 * (1 + x)), one(1 - x + x * x), one(1)) == 1 + 2.0**-23
