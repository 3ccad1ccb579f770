"""Products of int8 numbers against exact integers, bit for bit, whatever instructions multiply."""

import numpy as np
import pytest
from numpy.typing import NDArray
from product_oracle import draw, fused, guarded
from small_networks import same_bytes

from treadle.kernels import gemm_dispatch, gemm_int8, int8_tile
from treadle.kernels.int8_instructions import INSTRUCTIONS, Instructions, choose
from treadle.kernels.jit import jit
from treadle.kernels.reference import Int8Matrix, int8_activations

Floats = NDArray[np.float32]

PANEL = gemm_int8.PANEL
ROWS = int8_tile.ROWS

SIZES = [
    (1, 1, 1),
    (1, 33, 4 * PANEL),
    (1, 5, 7 * PANEL - 3),
    (2, 16, PANEL + 1),
    (5, 31, 65),
    (ROWS + 7, 64, 2 * PANEL),
    (33, 17, 9),
    (67, 4, PANEL),
]
"""(M, K, N): whole and partial quads, less than a tile, more rows than are rounded at once."""


def states(seed: int, *shape: int) -> Floats:
    """Activations, some of them out of range."""
    return np.random.default_rng(seed).uniform(-1.1, 1.1, shape).astype(np.float32)


def product(A: Floats, B: Floats, C: Floats | None = None) -> Floats:
    out = np.full((len(A), B.shape[1]), np.nan, np.float32) if C is None else C.copy()
    gemm_int8.matmul(A, gemm_int8.pack(B), out, C is not None)
    return out


def twin(A: Floats, B: Floats, C: Floats) -> Floats:
    """C + A B: the reference's exact sums, scaled and added with one rounding."""
    matrix = Int8Matrix(B)
    sums = matrix.sums(A).astype(np.float32)
    return fused(sums, np.broadcast_to(matrix.scale, sums.shape), C)


def test_a_weight_is_the_nearest_step_of_its_column() -> None:
    W = draw(1, 40, 9)
    W[:, 3] = 0
    W[7, 4] = -20
    steps, scale = gemm_int8.quantize_weights(W)
    largest = np.abs(W).max(axis=0)
    step = largest.astype(np.float64) / 127
    assert (np.abs(steps * step - W) <= step / 2 * (1 + 1e-9)).all()
    assert np.abs(steps).max(axis=0).tolist() == [127 * (column != 3) for column in range(9)]
    assert steps[7, 4] == -127
    np.testing.assert_allclose(scale, step / 127, rtol=1e-7)
    assert (steps == Int8Matrix(W).steps).all()


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_column_that_is_not_finite_gives_nan_and_spoils_no_other(strange: float) -> None:
    W = draw(2, 6, 5)
    fine = product(states(1, 3, 6), W)
    W[2, 1] = strange
    out = product(states(1, 3, 6), W)
    assert np.isnan(out[:, 1]).all()
    assert same_bytes(np.delete(out, 1, axis=1), np.delete(fine, 1, axis=1))


def test_the_smallest_numbers_are_packed_without_a_warning() -> None:
    W = np.full((3, 2), 1e-45, np.float32)
    steps, scale = gemm_int8.quantize_weights(W)
    assert (steps == 127).all()
    assert (scale == 0).all()


@pytest.mark.parametrize("columns", [1, PANEL, PANEL + 1])
@pytest.mark.parametrize("K", [1, 4, 7])
def test_pack(K: int, columns: int) -> None:
    W = draw(3, K, columns)
    panels = gemm_int8.pack(W)
    steps, scale = gemm_int8.quantize_weights(W)
    quads = gemm_int8.quad_count(K)
    assert panels.shape == (-(-columns // PANEL), gemm_int8.row_count(K), PANEL)
    assert panels.ctypes.data % 64 == 0
    across = panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)
    for k in range(4 * quads):
        byte = across[k // 4] >> 8 * (k % 4) & 0xFF
        expected = steps[k] if k < K else np.zeros(columns, np.int8)
        assert byte[:columns].astype(np.uint8).view(np.int8).tolist() == expected.tolist()
    assert across[quads, :columns].tolist() == (-128 * steps.astype(int).sum(axis=0)).tolist()
    assert same_bytes(across[quads + 1, :columns].view(np.float32).copy(), scale)
    assert not across[:, columns:].any()


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_matmul_is_the_exact_sum_scaled(M: int, K: int, N: int) -> None:
    A = states(4, M, K)
    B = draw(5, K, N)
    assert same_bytes(product(A, B), A @ Int8Matrix(B))


@pytest.mark.jit
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_adding_rounds_once(M: int, K: int, N: int) -> None:
    A = states(6, M, K)
    B = draw(7, K, N)
    C = draw(8, M, N)
    assert same_bytes(product(A, B, C), twin(A, B, C))
    out = C.copy()
    gemm_dispatch.matmul(A, gemm_int8.pack(B), out, True)  # the type of the panels decides
    assert same_bytes(out, twin(A, B, C))


def test_activations_are_rounded_to_the_nearest_step() -> None:
    """Halves to even, and what is out of range is cut off."""
    ties = (np.arange(-127, 127) + 0.5) / 127
    near = np.concatenate(
        [np.nextafter(ties.astype(np.float32), np.float32(side)) for side in (-2, 0, 2)]
    )
    values = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, np.inf, -np.inf, 1e-45, 3e38]
    a = np.concatenate([ties, near, values]).astype(np.float32)
    one = np.ones((1, 1), np.float32)
    steps = product(a.reshape(-1, 1), one) / (np.float32(1 / 127**2) * np.float32(127))
    assert np.rint(steps[:, 0]).astype(int).tolist() == int8_activations(a).tolist()
    assert np.abs(steps - np.rint(steps)).max() < 1e-4


def test_nan_counts_as_one_whatever_its_bits() -> None:
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    A = bits.view(np.float32).reshape(-1, 1)
    B = draw(9, 1, 3)
    assert same_bytes(product(A, B), product(np.ones_like(A), B))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_saturate(sign: int) -> None:
    """Pairs of products of bytes pass 16 bits, and the sum of the widest network 24."""
    A = np.ones((9, 4096), np.float32)
    A[1] = -1
    B = np.full((4096, 2), np.float32(sign))
    B[0, 1] = -sign
    out = product(A, B)
    matrix = Int8Matrix(B)
    assert matrix.sums(A)[0, 0] == sign * 127 * 127 * 4096
    assert same_bytes(out, A @ matrix)


@pytest.mark.parametrize("M", [2, 3, 4, ROWS, ROWS + 7, 64])
def test_a_row_alone_is_the_row_among_others(M: int) -> None:
    A = states(10, M, 13)
    B = draw(11, 13, 3 * PANEL + 3)
    together = product(A, B)
    for m in range(M):
        assert same_bytes(product(A[m : m + 1], B), together[m : m + 1])


@pytest.mark.parametrize("N", [1, PANEL - 1, PANEL, PANEL + 1])
@pytest.mark.parametrize("M", [1, 4, ROWS + 5])
@pytest.mark.parametrize("add", [False, True])
def test_nothing_is_written_past_the_result(M: int, N: int, add: bool) -> None:
    A = states(12, M, 3)
    B = draw(13, 3, N)
    C, untouched = guarded(np.zeros((M, N), np.float32))
    gemm_int8.matmul(A, gemm_int8.pack(B), C, add)
    assert same_bytes(C, product(A, B))
    assert untouched()


def test_numbers_past_the_last_are_not_read() -> None:
    buffer = np.full(3 * 5 + 2 * PANEL, np.nan, np.float32)
    A = buffer[: 3 * 5].reshape(3, 5)
    A[...] = states(14, 3, 5)
    B = draw(15, 5, 4)
    assert same_bytes(product(A, B), product(A.copy(), B))


RUNNABLE = [
    kind
    for kind in Instructions
    if kind is not Instructions.DOT or INSTRUCTIONS is Instructions.DOT
    if kind is not Instructions.PAIRS or INSTRUCTIONS is not Instructions.PLAIN
]
"""What this processor can run."""


@pytest.mark.jit
@pytest.mark.parametrize("kind", RUNNABLE)
def test_all_instructions_give_the_same_bits(kind: Instructions) -> None:
    """The largest numbers included, at which a sum of 16 bits would saturate."""
    tile = int8_tile.make_int8_tile(2, 2, kind)

    @jit
    def multiply(u: NDArray[np.int32], panels: NDArray[np.int32], C: Floats, quads: int) -> None:
        tile(u, panels, C, 0, 0, 0, C.shape[1], C.shape[1], quads, False)

    K = 23
    rng = np.random.default_rng(16)
    B = draw(17, K, 2 * PANEL - 5)
    B[:, 0] = 1
    B[:, 1] = -1
    B[:, 2] = np.where(np.arange(K) % 4 < 2, 1, -1)
    u = rng.integers(1, 256, (2, 24), dtype=np.uint8)
    u[0, :12] = 255
    u[1, :12] = 1
    C = np.zeros((2, B.shape[1]), np.float32)
    multiply(u.view(np.int32), gemm_int8.pack(B), C, 6)
    matrix = Int8Matrix(B)
    sums = (u[:, :K].astype(np.int64) - 128) @ matrix.steps
    assert same_bytes(C, sums.astype(np.float32) * matrix.scale)


@pytest.mark.parametrize(
    ("name", "extra", "host", "lanes", "machine", "expected"),
    [
        (None, None, "avx512vnni avx512vl avx512bw", 16, "x86_64", Instructions.DOT),
        (None, None, "avx512vnni avx512bw", 8, "x86_64", Instructions.PAIRS),
        (None, None, "avxvnni avx2", 8, "x86_64", Instructions.DOT),
        (None, None, "avxvnni avx512bw", 16, "AMD64", Instructions.PAIRS),
        (None, None, "avx2", 8, "x86_64", Instructions.PAIRS),
        (None, None, "", 4, "x86_64", Instructions.PAIRS),
        (None, None, "", 4, "aarch64", Instructions.PLAIN),
        ("znver4", "", "", 16, "x86_64", Instructions.DOT),
        ("sapphirerapids", None, "", 16, "x86_64", Instructions.DOT),
        ("sapphirerapids", "-avx512vnni", "", 16, "x86_64", Instructions.PAIRS),
        ("alderlake", "", "", 8, "x86_64", Instructions.DOT),
        ("skylake-avx512", "", "avx512vnni", 16, "x86_64", Instructions.PAIRS),
        ("x86-64-v4", "-prefer-256-bit", "avx512vnni", 16, "x86_64", Instructions.PAIRS),
        ("haswell", "", "avx512vnni", 8, "x86_64", Instructions.PAIRS),
        ("haswell", "+avx512vnni,+avx512vl", "", 8, "x86_64", Instructions.DOT),
        ("x86-64", "+avx512f", "", 16, "x86_64", Instructions.PLAIN),
        ("x86-64", "", "avx512vnni", 4, "x86_64", Instructions.PAIRS),
    ],
)
def test_the_processor_decides_on_the_instructions(
    name: str | None, extra: str | None, host: str, lanes: int, machine: str, expected: Instructions
) -> None:
    features = dict.fromkeys(host.split(), True) | {"avx512er": False}
    assert choose(name, extra, features, lanes, machine) is expected
