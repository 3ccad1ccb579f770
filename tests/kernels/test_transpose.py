"""The block transpose in registers against its Python stand-in."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic
from small_networks import same_bytes

from treadle.kernels import transpose
from treadle.kernels.simd import LANES

move_transposed = intrinsic(transpose._move_transposed)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    dispatcher: Callable[..., Any] = CPUDispatcher(function, targetoptions={"nopython": True})
    return dispatcher


def test_a_block_is_transposed_and_nothing_else_is_written() -> None:
    @compiled
    def move(source: Any, start: int, row: int, target: Any, to: int, step: int) -> None:
        move_transposed(source, start, row, target, to, step)

    row = LANES + 3
    step = LANES + 5
    source = np.random.default_rng(1).standard_normal((LANES + 1, row), np.float32)
    ours = np.full((LANES + 1, step), np.float32(-1))
    theirs = ours.copy()
    move(source, 2, row, ours, 4, step)
    transpose.python_move_transposed(source, 2, row, theirs, 4, step)
    assert same_bytes(ours, theirs)
    expected = np.full((LANES + 1, step), np.float32(-1))
    expected[:LANES, 4 : 4 + LANES] = source[:LANES, 2 : 2 + LANES].T
    assert same_bytes(ours, expected)
