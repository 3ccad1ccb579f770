"""Compiled kernels are found again by other processes, and nothing else is taken for one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jit

PROGRAM = """
import warnings
import numpy as np
from treadle.kernels.jit import jit

@jit
def half(x):
    return x / 2

half(np.float32(3))
half(np.int64(3))
print(half(1.0), sum(half.stats.cache_hits.values()), sum(half.stats.cache_misses.values()))
"""


def run(program: Path, cache: Path, *words: str) -> tuple[int, int]:
    """Runs a program; returns how many kernels it loaded, and its last number.

    That is how many it compiled, in the first program here.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *words],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    value, loaded, number = done.stdout.split()
    assert value == "0.5"
    return int(loaded), int(number)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "program.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return path


def test_a_kernel_is_compiled_once(program: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(program, cache) == (0, 3)
    assert run(program, cache) == (3, 0)
    (folder,) = cache.glob("*/program-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    # Comments and the place of the file change nothing.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program.write_text(f"# A comment.\n\n{PROGRAM}")
    moved = Path(shutil.move(program, elsewhere))
    assert run(moved, cache) == (3, 0)
    # Damaged files are compiled again, without a word.
    whole, cut, empty = folder.glob("*.nbc")
    cut.write_bytes(cut.read_bytes()[:-9])
    empty.write_bytes(b"")
    assert run(moved, cache) == (1, 2)
    assert run(moved, cache) == (3, 0)
    assert whole.exists()
    # Another function of the same name and place is another kernel.
    moved.write_text(PROGRAM.replace("x / 2", "x * np.float32(0.5)"))
    assert run(moved, cache) == (0, 3)
    assert len(list(cache.glob("*/program-*"))) == 2
    assert not list(cache.rglob("*.tmp.*"))


CALLED = """
from treadle.kernels.jit import jit

@jit
def half(x):
    return x / 2
"""

CALLER = """
import sys
from llvmlite import binding
from numba.core.registry import cpu_target
from called import half
from treadle.kernels.jit import jit

read = []
parse = binding.parse_bitcode
binding.parse_bitcode = lambda code: (read.append(code), parse(code))[1]
registered = []
register = cpu_target.target_context.refresh
cpu_target.target_context.refresh = lambda: (registered.append(1), register())

value = half(1.0)
prepared = len(read) + len(registered)

@jit
def quarter(x):
    return half(x) / 2

if "call" in sys.argv:
    value = 2 * quarter(1.0)
print(value, sum(half.stats.cache_hits.values()), prepared)
"""


def test_loading_prepares_nothing_for_callers_that_are_not_compiled(tmp_path: Path) -> None:
    (tmp_path / "called.py").write_text(CALLED)
    program = tmp_path / "caller.py"
    program.write_text(CALLER)
    assert run(program, tmp_path / "cache")[0] == 0
    assert run(program, tmp_path / "cache") == (1, 0)
    # A caller that is compiled links a copy all the same.
    assert run(program, tmp_path / "cache", "call") == (1, 0)
