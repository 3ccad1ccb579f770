"""The compile policy: processor, GEMM tile, and cache of compiled kernels."""

import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding as llvm
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

from treadle.kernels import jit as policy
from treadle.kernels import loss

WIDE = dict.fromkeys(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"), True)
MIDDLE = dict.fromkeys(("avx2", "fma", "bmi2", "f16c"), True)
PLAIN = {"sse2": True, "avx": True, "avx2": False}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with nothing set, on x86-64, and leaves Numba's settings as they were."""
    for name in ("CPU_NAME", "CPU_FEATURES", "CACHE_DIR"):
        monkeypatch.setattr(config, name, None)
    monkeypatch.delenv("TREADLE_CPU_TARGET", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def host(monkeypatch: pytest.MonkeyPatch, features: dict[str, bool]) -> None:
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "host-name")


@pytest.mark.parametrize(
    ("features", "lanes", "rows"),
    [(MIDDLE | WIDE, 16, 8), (MIDDLE, 8, 6), (PLAIN, 4, 6), ({}, 4, 6)],
)
def test_the_host_is_the_default(
    features: dict[str, bool], lanes: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, features)
    assert policy._choose_target() == policy.Target("host-name", lanes, rows)
    assert config.CPU_NAME is None


def test_a_host_that_llvm_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> dict[str, bool]:
        raise RuntimeError("no features on this processor")

    host(monkeypatch, {})
    monkeypatch.setattr(llvm, "get_host_cpu_features", unknown)
    assert policy._choose_target().lanes == 4


def test_arm_has_registers_for_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, {"neon": True})
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert policy._choose_target() == policy.Target("host-name", 4, 8)


@pytest.mark.parametrize(
    ("features", "expected", "extra"),
    [
        (MIDDLE | WIDE, policy.Target("x86-64-v4", 16, 8), "-prefer-256-bit"),
        (MIDDLE, policy.Target("x86-64-v3", 8, 6), ""),
        (PLAIN, policy.Target("host-name", 4, 6), None),
    ],
)
def test_portable_takes_the_highest_level(
    features: dict[str, bool],
    expected: policy.Target,
    extra: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host(monkeypatch, features)
    monkeypatch.setenv("TREADLE_CPU_TARGET", "portable")
    assert policy._choose_target() == expected
    features_added = config.CPU_FEATURES
    assert features_added == extra


@pytest.mark.parametrize("target", ["host", "portable"])
@pytest.mark.parametrize(
    ("name", "features", "lanes"),
    [
        ("haswell", None, 8),
        ("x86-64-v3", "", 8),
        ("x86-64-v4", None, 16),
        ("znver4", None, 16),
        ("nehalem", None, 4),
        ("x86-64", "+avx2,+fma", 8),
        ("haswell", "+avx512f", 16),
    ],
)
def test_a_named_processor_wins(
    target: str, name: str, features: str | None, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, MIDDLE | WIDE)
    monkeypatch.setenv("TREADLE_CPU_TARGET", target)
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert policy._choose_target() == policy.Target(name, lanes, 8 if lanes == 16 else 6)
    # None would have Numba add the host's own features to the named processor's.
    features_added = config.CPU_FEATURES
    assert features_added == (features or "")


def test_cache_is_in_the_folder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    policy._choose_cache()
    folder = Path(config.CACHE_DIR)
    assert folder.parent == tmp_path
    assert folder.is_dir()
    # One that another processor's code would not go into.
    checked = "-checked" if policy.BOUNDS_CHECKED else ""
    assert folder.name == f"{policy.TARGET.name}{checked}"


def test_another_word_for_the_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("", "Host", "native"):
        monkeypatch.setenv("TREADLE_CPU_TARGET", word)
        with pytest.raises(ValueError, match=f"must be host or portable, not '{word}'"):
            policy._choose_target()


@pytest.mark.jit
def test_what_is_compiled_is_found_while_another_thread_compiles() -> None:
    row = np.ones(3, np.float32)
    total = loss.row_sum(row)
    compiling = threading.Event()
    found = threading.Event()

    def compile_something() -> bool:
        with global_compiler_lock:
            compiling.set()
            return found.wait(60)

    with ThreadPoolExecutor() as threads:
        waited = threads.submit(compile_something)
        assert compiling.wait(60)
        finding = threads.submit(policy.specialize, loss.row_sum, row)
        try:
            assert finding.result(10)(row) == total
        finally:
            found.set()
        assert waited.result()
