"""Kernels compiled for other processors, and other processes, give the same bits."""

from typing import Any

import numpy as np
import pytest
from exactness import small_run
from exactness.processor_runs import IS_X86_64, NUMPY_PLAIN, finish, start
from llvmlite import binding as llvm

RUNS: dict[str, dict[str, str]] = {
    "host": {},
    "host again": {},
    # AVX2: vectors of 8 and a tile of 6 rows, where AVX-512 has 16 and 8.
    "haswell": {"NUMBA_CPU_NAME": "haswell"},
    # SSE2: vectors of 4, and no fused multiply-add but the C library's.
    "x86-64": {"NUMBA_CPU_NAME": "x86-64", "NPY_DISABLE_CPU_FEATURES": NUMPY_PLAIN},
}
"""The environment of each run."""

pytestmark = [pytest.mark.jit, pytest.mark.skipif(not IS_X86_64, reason="compiles for x86-64")]


def can_run(name: str) -> bool:
    return name != "haswell" or bool(llvm.get_host_cpu_features().get("fma", False))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What each run printed.

    Where no kernels are kept from earlier, each run for another processor compiles its own:
    these run in parallel. The host's runs follow one another, to compile only once.
    """
    others = {
        name: start("small_run.py", extra)
        for name, extra in RUNS.items()
        if extra and can_run(name)
    }
    try:
        printed = {
            name: finish(start("small_run.py", {})) for name, extra in RUNS.items() if not extra
        }
        return printed | {name: finish(process) for name, process in others.items()}
    finally:
        for process in others.values():
            process.kill()
            process.communicate()


@pytest.mark.parametrize("cell", list(small_run.CONFIGS))
@pytest.mark.parametrize("name", [name for name in RUNS if name != "host"])
def test_a_run_gives_the_same_bits(name: str, cell: str, results: dict[str, Any]) -> None:
    if name not in results:
        pytest.skip(f"this processor cannot run code for {name}")
    ours = results[name][cell]
    expected = results["host"][cell]
    assert ours.keys() == expected.keys()
    for what, result in expected.items():
        assert ours[what] == result, what


def test_runs_say_something(results: dict[str, Any]) -> None:
    """Equal nothings would be no proof."""
    cells = results["host"]
    assert len({cell["weights"] for cell in cells.values()}) == len(small_run.CONFIGS)
    for name, cell in cells.items():
        step, sample, train_loss, valid_loss, norm = cell["reports"][-1]
        assert step == small_run.CONFIGS[name].limits.max_steps
        assert len(sample) >= 80
        uniform = np.log(cell["vocabulary_size"])
        assert 0 < float.fromhex(train_loss) < uniform
        assert 0 < float.fromhex(valid_loss) < uniform
        assert float.fromhex(norm) > 0
        assert len({cell[how][0] for how in small_run.SAMPLINGS}) == len(small_run.SAMPLINGS)
        assert len(cell["plain"]) == 1 + 40
        assert len(set(cell["score"])) > 20
