"""Products of bfloat16 numbers against NumPy in float64, and bit for bit against their chain."""

import numpy as np
import pytest
from numpy.typing import NDArray
from product_oracle import draw, fused, guarded
from small_networks import relative_error, same_bytes

from treadle.kernels import gemm_bf16, gemm_dispatch, gemm_transposed
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL, ROWS, halves
from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.structs import ROW_BLOCK

Floats = NDArray[np.float32]
Pairs = NDArray[np.uint32]

pytestmark = pytest.mark.skipif(bool(BF16_MISSING), reason=BF16_MISSING)

RUBBISH = 0x7FC07FC0  # a pair of NaNs

SIZES = [(1, 1, 1), (7, 33, 132), (13, 5, 65), (ROWS + 5, 3, PANEL), (69, 34, 9), (16, 65, 64)]
"""(M, K, N): odd and even, less than a tile, more rows than are rounded at once."""


def rounded(values: Floats) -> Floats:
    """The nearest bfloat16 numbers, ties to even, as float32: by scaling, not by bits."""
    _, exponent = np.frexp(values)
    unit = np.ldexp(1.0, exponent - 8)
    nearest: Floats = (np.round(values.astype(np.float64) / unit) * unit).astype(np.float32)
    return nearest


def packed(matrix: Floats, transpose: bool = False) -> Pairs:
    """Pack into panels that hold rubbish before."""
    K, N = matrix.shape[::-1] if transpose else matrix.shape
    panels = np.full((panel_count(N), gemm_bf16.pair_count(K), PANEL), RUBBISH, np.uint32)
    (gemm_bf16.pack_transposed if transpose else gemm_bf16.pack)(matrix, panels)
    return panels


def product(A: Floats, B: Floats, C: Floats | None = None) -> Floats:
    out = np.full((len(A), B.shape[1]), np.nan, np.float32) if C is None else C.copy()
    gemm_bf16.matmul(A, packed(B), out, C is not None)
    return out


def product_transposed(A: Floats, B: Floats, C: Floats, panels: int = 2) -> Floats:
    """C + A^T B, by a block that holds rubbish before."""
    block = gemm_bf16.allocate_pair_block(A.shape[1], panels * PANEL)
    out = C.copy()
    for part in block:
        part.view(np.uint32)[...] = RUBBISH
    gemm_bf16.add_matmul_transposed(A, B, block, out)
    return out


def chain(A: Floats, B: Floats, C: Floats) -> Floats:
    """C + A B, every element one chain: of each pair the second product first."""
    A = rounded(A)
    B = rounded(B)
    total = C.copy()
    for k in range(0, A.shape[1], 2):
        for step in (k + 1, k):
            if step < A.shape[1]:
                total = fused(A[:, step : step + 1], B[step : step + 1], total)
    return total


def test_rounding() -> None:
    one = np.float32(1)
    step = np.float32(2.0**-7)
    values = np.array(
        [1, one + step / 2, one + step * 1.5, 3e38, -3.4e38, 0.0, -0.0, np.inf, -np.inf, 1e-40],
        np.float32,
    )
    expected = np.array([1, 1, one + 2 * step, 0, -np.inf, 0, -0.0, np.inf, -np.inf, 0], np.float32)
    expected[3] = rounded(values[3:4])[0]
    matrix = np.ascontiguousarray(values.reshape(-1, 1).repeat(3, axis=1))
    _, low = halves(packed(matrix[:1]).view(np.float32))
    assert low[0, 0, 0] == 1
    panels = packed(matrix).view(np.float32)[0, :, :3]
    second, first = halves(panels)
    both = np.stack([first, second], axis=1).reshape(-1, 3)
    assert same_bytes(both[:, 0], expected)
    assert same_bytes(
        gemm_bf16.python_round(values).astype(np.uint32) << 16, expected.view(np.uint32)
    )
    nothing = packed(np.full((1, 1), np.nan, np.float32)).view(np.float32)
    assert np.isnan(halves(nothing)[1][0, 0, 0])


@pytest.mark.parametrize("columns", [1, 15, 16, 17, PANEL, PANEL + 1, 3 * PANEL + 2])
@pytest.mark.parametrize("K", [1, 2, 7, 40])
def test_pack(K: int, columns: int) -> None:
    matrix = draw(1, K, columns)
    panels = packed(matrix)
    assert same_bytes(panels, packed(np.ascontiguousarray(matrix.T), transpose=True))
    second, first = halves(panels.view(np.float32))
    both = np.stack([first, second], axis=2).transpose(1, 2, 0, 3).reshape(panels.shape[1] * 2, -1)
    assert same_bytes(np.ascontiguousarray(both[:K, :columns]), rounded(matrix))
    assert not both[K:].any()
    assert not both[:, columns:].any()


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_matmul(M: int, K: int, N: int) -> None:
    A = draw(3, M, K)
    B = draw(4, K, N)
    C = draw(5, M, N)
    exact = rounded(A).astype(np.float64) @ rounded(B)
    assert relative_error(product(A, B), exact) < 1e-6
    assert relative_error(product(A, B, C), C + exact) < 1e-6


@pytest.mark.parametrize(("M", "K", "N"), [*SIZES, (5, 2 * ROW_BLOCK + 87, 3)])
def test_add_matmul_transposed(M: int, K: int, N: int) -> None:
    A = draw(6, K, M)
    B = draw(7, K, N)
    C = draw(8, M, N)
    exact = C + rounded(A).T.astype(np.float64) @ rounded(B)
    assert relative_error(product_transposed(A, B, C), exact) < 2e-6


@pytest.mark.jit
@pytest.mark.parametrize(("M", "K", "N"), [*SIZES, (5, 2 * ROW_BLOCK + 87, 3)])
def test_every_element_is_one_chain(M: int, K: int, N: int) -> None:
    A = draw(9, M, K)
    B = draw(10, K, N)
    C = draw(11, M, N)
    assert same_bytes(product(A, B), chain(A, B, np.zeros_like(C)))
    assert same_bytes(product(A, B, C), chain(A, B, C))
    assert same_bytes(product_transposed(np.ascontiguousarray(A.T), B, C), chain(A, B, C))


@pytest.mark.parametrize("M", [2, 3, ROWS, ROWS + 5])
def test_a_row_alone_is_the_row_among_others(M: int) -> None:
    A = draw(12, M, 11)
    B = draw(13, 11, PANEL + 3)
    together = product(A, B)
    for m in range(M):
        assert same_bytes(product(A[m : m + 1], B), together[m : m + 1])


@pytest.mark.parametrize("rows", [1, 15, 16, ROW_BLOCK])
@pytest.mark.parametrize(("M", "N"), [(3, 5), (2 * ROWS + 3, PANEL + 1), (PANEL + 4, 7)])
def test_gathered_rows_are_one_sum(rows: int, M: int, N: int) -> None:
    """Every call begins a pair: an odd number of rows counts as one more, of zeros."""
    calls = 2 * ROW_BLOCK // rows + 1
    A = draw(27, calls, rows, M)
    B = draw(28, calls, rows, N)
    C = draw(29, M, N)
    out = C.copy()
    block = gemm_bf16.allocate_pair_block(M, N)
    gathered = 0
    for call in range(calls):
        last = call == calls - 1
        gathered = gemm_bf16.add_rows_transposed(A[call], B[call], block, gathered, out, last)
    assert gathered == 0
    zeros = ((0, 0), (0, rows % 2), (0, 0))
    A, B = (np.pad(X, zeros).reshape(-1, X.shape[2]) for X in (A, B))
    assert same_bytes(out, product_transposed(A, B, C))


@pytest.mark.parametrize("N", [1, PANEL - 1, PANEL, PANEL + 1])
@pytest.mark.parametrize("M", [1, 4, ROWS + 5])
@pytest.mark.parametrize("add", [False, True])
def test_nothing_is_written_past_the_result(M: int, N: int, add: bool) -> None:
    A = draw(19, M, 3)
    B = draw(20, 3, N)
    C, untouched = guarded(np.zeros((M, N), np.float32))
    gemm_bf16.matmul(A, packed(B), C, add)
    assert same_bytes(C, product(A, B))
    assert untouched()
    left = np.ascontiguousarray(A.T)
    C, untouched = guarded(np.zeros((M, N), np.float32))
    gemm_bf16.add_matmul_transposed(left, B, gemm_bf16.allocate_pair_block(M, N), C)
    assert same_bytes(C, product(A, B))
    assert untouched()


def test_numbers_past_the_last_are_not_read() -> None:
    """What stands behind a matrix in memory, even NaN, is no part of a product."""
    buffer = np.full(3 * 5 + 2 * PANEL, np.nan, np.float32)
    A = buffer[: 3 * 5].reshape(3, 5)
    A[...] = draw(23, 3, 5)
    assert np.isfinite(product(A, draw(24, 5, 4))).all()
    assert np.isfinite(product(draw(24, 4, 3), A)).all()
    assert np.isfinite(product_transposed(A, A, np.zeros((5, 5), np.float32))).all()


def test_the_type_of_the_panels_decides() -> None:
    A = draw(30, 5, 7)
    B = draw(31, 7, 9)
    for kind, K in ((np.float32, 7), (np.uint32, 4)):
        panels = np.zeros((1, K, PANEL), kind)
        C = np.zeros((5, 9), np.float32)
        gemm_dispatch.pack(B, panels)
        again = np.zeros_like(panels)
        gemm_dispatch.pack_transposed(np.ascontiguousarray(B.T), again)
        assert same_bytes(panels, again)
        gemm_dispatch.matmul(A, panels, C, False)
        make = (
            gemm_bf16.allocate_pair_block
            if kind == np.uint32
            else gemm_transposed.allocate_row_block
        )
        block = make(5, 9)
        left = np.ascontiguousarray(A.T)
        D = C * 0
        E = C * 0
        gemm_dispatch.add_matmul_transposed(left, B, block, D)
        gemm_dispatch.add_rows_transposed(left, B, block, 0, E, True)
        assert same_bytes(C, D)
        assert same_bytes(C, E)
        exact = rounded(A) @ rounded(B) if kind == np.uint32 else A @ B
        assert relative_error(C, exact) < 1e-6
