"""Kernels compiled under NUMBA_BOUNDSCHECK=1 check every index, those of vectors and tiles too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jit

PROGRAM = """
import json
import numpy as np
from numba.core import config
from treadle.kernels.jit import BOUNDS_CHECKED, jit
from treadle.kernels.gemm_tile import PANEL, Operand, make_gemm_tile
from treadle.kernels.int8_tile import EXTRA_ROWS, make_int8_tile
from treadle.kernels.simd import LANES, ZERO, load, splat, lane_sum, store

tile = make_gemm_tile(2, 1, False)
edge = make_gemm_tile(1, 1, True)
int8 = make_int8_tile(2, 1)

@jit
def read(array, first, count):
    return lane_sum(load(array, first, count))

@jit
def write(array, first, count):
    store(array, first, count, splat(ZERO))

@jit
def index(array, first, count):
    return array[first]

@jit
def whole(A, B, C, at, row):
    right = Operand(B, 0, 3 * PANEL, PANEL)
    tile(Operand(A, at, row, 1), right, Operand(C, 0, PANEL, 1), 0, 3, PANEL, False)

@jit
def part(A, B, C, at, columns):
    right = Operand(B, 0, 3 * PANEL, PANEL)
    edge(Operand(A, 0, 3, 1), right, Operand(C, at, PANEL, 1), 0, 3, columns, False)

@jit
def bytewise(steps, panels, C, panel, at):
    int8(steps, panels, C, 0, panel, at, PANEL, PANEL - 1, 3, False)

def raises(kernel, *arguments):
    try:
        kernel(*arguments)
    except IndexError:
        return True
    return False

row = np.ones(LANES + 4, np.float32)
A = np.ones(6, np.float32)
B = np.ones(3 * PANEL, np.float32)
C = np.zeros(2 * PANEL, np.float32)
steps = np.zeros(6, np.int32)
panels = np.zeros((2, 3 + EXTRA_ROWS, PANEL), np.int32)
print(json.dumps({
    "checked": BOUNDS_CHECKED,
    "folder": config.CACHE_DIR,
    "legal": [
        raises(kernel, row, *place)
        for kernel in (read, write, index)
        for place in ((0, LANES), (4, LANES), (4, 10**9), (LANES + 3, 1), (0, 0))
    ] + [
        raises(whole, A, B, C, 0, 3),
        raises(part, A, B, C, PANEL, 5),
        raises(part, A, B, C, 0, 99),
        raises(bytewise, steps, panels, C, 1, 1),
    ],
    "odd": [
        raises(kernel, row, *place)
        for kernel in (read, write)
        for place in ((5, LANES), (LANES + 4, 1), (-1, 1), (-(10**9), 4), (10**9, 4))
    ] + [
        raises(index, row, LANES + 4, 0),
        raises(whole, A, B, C, 1, 3),
        raises(whole, A, B, C, -1, 3),
        raises(whole, A, B, C, 0, 4),
        raises(whole, A, B[1:], C, 0, 3),
        raises(bytewise, steps[1:], panels, C, 1, 1),
        raises(bytewise, steps, panels, C, 2, 1),
        raises(bytewise, steps, panels, C, -1, 1),
        raises(bytewise, steps, panels, C, 1, 2),
        raises(whole, A, B, C[1:], 0, 3),
        raises(part, A, B, C, PANEL + 1, 99),
        raises(part, A, B, C, 2 * PANEL, 1),
    ],
}))
"""


def test_every_index_is_checked(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # Numba keeps what it compiles of files alone
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["checked"]
    assert seen["folder"].startswith(str(tmp_path))
    assert seen["folder"].endswith("-checked")  # never kept with those that check nothing
    assert seen["legal"] == [False] * len(seen["legal"])
    assert seen["odd"] == [True] * len(seen["odd"])
