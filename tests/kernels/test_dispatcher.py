"""Kernels that are compiled apart: callers hold their name, in this process and on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jit

PROGRAM = """
import numpy as np
from treadle.kernels.jit import KERNELS, jit, jit_apart

@jit_apart
def total(x):
    sum = x[0]
    for n in range(1, x.size):
        sum += x[n]
    if sum < 0:
        raise ValueError("below zero")
    return sum

@jit
def doubled(x):
    return 2 * total(x)

@jit_apart
def caller(x):
    return 1 + doubled(x)

@jit
def with_row(x, n):
    return caller(x[n])

x = np.arange(4, dtype=np.float32)
print(float(caller(x)), float(caller(x.astype(np.float64))), float(with_row(x.reshape(2, 2), 1)))
try:
    caller(-x)
except ValueError as error:
    print(error)
names = ("total", "doubled", "caller", "with_row")
print(*(sum(globals()[n].stats.cache_misses.values()) for n in names))
print(*(sum(globals()[n].stats.cache_hits.values()) for n in names))
print(sorted(len(called) for called in caller.called.values()))
"""


def run(program: Path, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(program.parent)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    values, error, *rest = done.stdout.splitlines()
    assert values == "13.0 13.0 11.0"
    assert error == "below zero"
    return rest


@pytest.mark.parametrize("checked", ["0", "1"])
def test_code_that_is_called_by_name_is_found_again(checked: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # `total` is not copied into `doubled`, nor with it into `caller`; nor `caller` into `with_row`.
    assert run(program, NUMBA_BOUNDSCHECK=checked) == ["2 2 2 1", "0 0 0 0", "[1, 1]"]
    # What a caller needs is loaded with it, and what it has a copy of is not.
    assert run(program, NUMBA_BOUNDSCHECK=checked) == ["0 0 0 0", "2 0 2 1", "[1, 1]"]
    # A part that is missing is compiled again, for the same name.
    for path in tmp_path.rglob("total-*.nbc"):
        path.unlink()
    assert run(program, NUMBA_BOUNDSCHECK=checked) == ["2 0 0 0", "0 0 2 1", "[1, 1]"]


def test_what_is_called_by_name_works_uncompiled(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = PROGRAM.splitlines()
    program.write_text(
        "\n".join(line for line in lines if "stats" not in line and "called" not in line)
    )
    assert run(program, NUMBA_DISABLE_JIT="1") == []


def test_a_caller_whose_part_is_another_kernel_by_now_is_compiled_again(tmp_path: Path) -> None:
    """A name that is missing would end the process."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run(program)
    code = "\nKERNELS[:] = []\nfrom treadle.kernels import dispatcher\n"
    lost = "dispatcher._KERNELS.pop((__name__, 'total'))\n"
    before, after = PROGRAM.split("x = np.arange")
    program.write_text(f"{before}{code}{lost}x = np.arange{after}")
    done = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"13.0 13.0 11.0")


ENTRIES = """
import sys
import numpy as np
from treadle.kernels.jit import KERNELS, jit

@jit
def ramp(n):
    return np.arange(n), np.zeros(n, np.int8), "text"

@jit
def half(x):
    if x < 0:
        raise ValueError("below zero")
    return x / 2

@jit
def first(pair):
    return pair[0]

@jit
def quarter(x):
    return half(first((x, x))) / 2

print(quarter(1.0), *(half(first((float(word), 0.0))) for word in sys.argv[1:]))
print(sum(sum(kernel.stats.cache_misses.values()) for kernel in KERNELS))
try:
    quarter(-1.0)
except ValueError as error:
    print(error)
if "3" in sys.argv:  # an entry that makes objects of Python
    print(ramp(2))
"""


def run_entries(program: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *words],
        env=os.environ | {"NUMBA_CACHE_DIR": str(program.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines.pop() == "(array([0, 1]), array([0, 0], dtype=int8), 'text')" if words else True
    return lines


def test_only_what_python_calls_has_an_entry(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ENTRIES)

    def entries() -> list[str]:
        return sorted(path.name.split("-")[0] for path in tmp_path.rglob("*.nbe"))

    assert run_entries(program) == ["0.25", "3", "below zero"]
    assert entries() == ["quarter"]
    assert run_entries(program) == ["0.25", "0", "below zero"]
    # It is made when Python calls; the kernel itself is not compiled again.
    assert run_entries(program, "3") == ["0.25 1.5", "0", "below zero"]
    assert entries() == ["first", "half", "quarter", "ramp"]
    # A damaged one is made again.
    for path in tmp_path.rglob("*.nbe"):
        path.write_bytes(path.read_bytes()[:-9])
    assert run_entries(program, "3") == ["0.25 1.5", "0", "below zero"]
    assert run_entries(program, "3") == ["0.25 1.5", "0", "below zero"]
