"""Multiplies int8 numbers, runs an LSTM with them, and prints every result to the bit, as JSON.

    python tests/exactness/int8_run.py

Run for several processors, by the environment, it must print the same. Little is compiled for each:
the product and the steps of one cell, since all else is float32 as `small_run` runs it.
"""

import json
import sys
from hashlib import sha256
from typing import Any

import numpy as np

from treadle.kernels import gemm_int8
from treadle.kernels.lstm import lstm_forward

SIZES = [(1, 64, 256), (1, 33, 65), (7, 5, 40), (45, 130, 97)]
"""(M, K, N) of products: one row and many, whole vectors and parts of them."""


def product(M: int, K: int, N: int) -> str:
    """Returns a hash of C + A B."""
    rng = np.random.default_rng(K)
    A = rng.uniform(-1.1, 1.1, (M, K)).astype(np.float32)
    A[0, :3] = np.nan, 1, -1
    C = rng.uniform(-1, 1, (M, N)).astype(np.float32)
    B = rng.uniform(-2, 2, (K, N)).astype(np.float32)
    B[:, 0] = np.where(np.arange(K) % 4 < 2, 3, -3)  # pairs of products at their largest
    gemm_int8.matmul(A, gemm_int8.pack(B), C, True)
    return sha256(C.tobytes()).hexdigest()


def states(B: int) -> str:
    """Returns a hash of the states of B rows over twenty steps."""
    T = 20
    H = 37
    rng = np.random.default_rng(B)
    gates = rng.uniform(-2, 2, (T, B, 4 * H)).astype(np.float32)
    Wh = rng.uniform(-0.5, 0.5, (H, 4 * H)).astype(np.float32)
    hs = np.zeros((T + 1, B, H), np.float32)
    cs = np.zeros((T + 1, B, H), np.float32)
    packed: Any = gemm_int8.pack(Wh)  # the type of the panels decides how they multiply
    lstm_forward(gates, hs, cs, packed, T)
    return sha256(hs.tobytes() + cs.tobytes()).hexdigest()


def results() -> dict[str, Any]:
    """Returns all of them."""
    return {"products": [product(*size) for size in SIZES], "states": [states(1), states(13)]}


if __name__ == "__main__":
    json.dump(results(), sys.stdout)
