"""`jit` compiles a kernel; this module alone sets the options, processor target and disk cache.

Every other module of this package takes its decorator from here, so that one policy holds:

- no fast-math and no contraction left to the compiler: the same source gives the same bits on
  every processor; where a product is added, `intrinsics.fma` is written;
- NumPy's error model, without which divisions do not vectorize;
- `nogil`, so that threads of one process run kernels side by side;
- cached on disk, by the state of the sources that a kernel is compiled from: see `disk_cache`.

The environment is read once, at import:

- `TREADLE_CPU_TARGET`: `host` (default) compiles for this very processor; `portable` for
  x86-64-v4 or x86-64-v3, whichever it has, so that an image can carry both ready-made;
- `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` name a target directly and take precedence over it;
- `NUMBA_CACHE_DIR`: where compiled kernels are kept. Default: `treadle/kernels` in the user's
  cache folder. A folder that cannot be written is copied to a temporary one, since Numba
  refuses to read from such a cache: see `cache_folder`;
- `NUMBA_BOUNDSCHECK`: 1 compiles kernels that check every index, those of vectors and GEMM tiles
  included, and raise an IndexError. They are kept in a folder of their own, since Numba's own
  cache does not distinguish them from others.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding as llvm
from numba.core import config

from treadle.kernels.cache_folder import choose_cache_folder
from treadle.kernels.disk_cache import DiskCache, toolchain
from treadle.kernels.dispatcher import Kernel
from treadle.kernels.source_digests import function_digest, read_all, source_digest

Function = TypeVar("Function", bound=Callable[..., Any])

_WIDE_NAMES = ("x86-64-v4", "skylake-avx512", "cascadelake", "icelake", "sapphirerapids", "znver4")
_MIDDLE_NAMES = ("x86-64-v3", "haswell", "broadwell", "skylake", "alderlake", "znver")

_DIGITS = 16
"""Digits of a digest in names of files and code."""

_BF16_NAMES = ("cooperlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5")


@dataclass(frozen=True)
class Target:
    """The processor that kernels are compiled for, and the GEMM tile that fits it."""

    name: str
    """The processor in LLVM's naming."""
    lanes: int
    """Floats in one vector register."""
    rows: int
    """Rows of the GEMM tile: rows * 2 accumulators, 2 panel vectors and a broadcast fit the
    registers (32 with AVX-512 and NEON, 16 with AVX2 and SSE)."""

    @property
    def panel(self) -> int:
        """Columns of the GEMM tile, and of one packed panel: two vectors."""
        return 2 * self.lanes


def _host_features() -> dict[str, bool]:
    try:
        return cast("dict[str, bool]", dict(llvm.get_host_cpu_features()))
    except RuntimeError:  # LLVM does not know this processor's features
        return {}


def _has_wide(features: dict[str, bool]) -> bool:
    names = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
    return all(features.get(name, False) for name in names)


def _has_middle(features: dict[str, bool]) -> bool:
    return all(features.get(name, False) for name in ("avx2", "fma", "bmi2", "f16c"))


def _choose_portable(features: dict[str, bool]) -> None:
    """Sets Numba's target to the highest x86-64 level this processor has; else to the host."""
    if config.CPU_NAME is not None:
        return
    if _has_wide(features):
        config.CPU_NAME = "x86-64-v4"
        config.CPU_FEATURES = "-prefer-256-bit"
    elif _has_middle(features):
        config.CPU_NAME = "x86-64-v3"
        config.CPU_FEATURES = ""


def _named_width(name: str, extra: str) -> int:
    """Returns the vector width, in floats, of a processor by its LLVM name and features."""
    if name.startswith(_WIDE_NAMES) or "+avx512f" in extra:
        return 16
    if name.startswith(_MIDDLE_NAMES) or "+avx2" in extra:
        return 8
    return 4


def _bf16_missing() -> str:
    """Returns why products of bfloat16 numbers cannot be compiled; empty where they can."""
    if not _host_features().get("avx512bf16", False):
        return "this processor lacks AVX512_BF16"
    extra = config.CPU_FEATURES or ""
    named = config.CPU_NAME is not None or config.CPU_FEATURES is not None
    supported = "+avx512bf16" in extra or (config.CPU_NAME or "").startswith(_BF16_NAMES)
    if TARGET.lanes != 16 or "-avx512bf16" in extra or (named and not supported):
        return (
            f"kernels are compiled for {TARGET.name}, which lacks AVX512_BF16 (this processor "
            "has it: unset TREADLE_CPU_TARGET and NUMBA_CPU_NAME)"
        )
    return ""


def _host_width(features: dict[str, bool]) -> int:
    """Returns the vector width, in floats, of this processor."""
    if _has_wide(features):
        return 16
    return 8 if _has_middle(features) else 4


def _choose_target() -> Target:
    """Sets Numba's target from the environment, and returns it.

    Raises:
        ValueError: TREADLE_CPU_TARGET is neither host nor portable.
    """
    features = _host_features()
    asked = os.environ.get("TREADLE_CPU_TARGET", "host")
    if asked not in ("host", "portable"):
        raise ValueError(f"TREADLE_CPU_TARGET must be host or portable, not {asked!r}")
    if asked == "portable":
        _choose_portable(features)
    if config.CPU_NAME is None:
        name = llvm.get_host_cpu_name()
        lanes = _host_width(features)
    else:
        name = config.CPU_NAME
        if config.CPU_FEATURES is None:  # else Numba would add the host's own features
            config.CPU_FEATURES = ""
        lanes = _named_width(name, config.CPU_FEATURES)
    many_registers = lanes == 16 or platform.machine() in ("aarch64", "arm64")
    return Target(name, lanes, rows=8 if many_registers else 6)


def _choose_cache() -> str:
    """Sets Numba's cache to the folder of this target.

    Returns:
        Why it is a temporary folder; empty where it is not.
    """
    checked = "-checked" if BOUNDS_CHECKED else ""
    folder = choose_cache_folder(f"{TARGET.name}{checked}", config.CACHE_DIR or "")
    config.CACHE_DIR = str(folder.path)
    read_all()
    return folder.reason


BOUNDS_CHECKED = bool(config.BOUNDSCHECK)
"""True under NUMBA_BOUNDSCHECK=1: every index is checked."""

TARGET = _choose_target()

FEATURES = repr((config.CPU_FEATURES, sorted(_host_features().items())))
"""What decides, besides the target's name, what code kernels are compiled to."""

TEMPORARY_CACHE = "" if config.DISABLE_JIT else _choose_cache()
"""Why compiled kernels are kept only until this process ends; empty where they are kept on."""

BF16_MISSING = _bf16_missing()
"""Why products of bfloat16 numbers (see `gemm_bf16`) cannot be compiled; empty where they can."""

PYTHON_MODE = bool(config.DISABLE_JIT)
"""True under NUMBA_DISABLE_JIT=1: kernels run as plain Python, for coverage and debugging."""


_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "no_cfunc_wrapper": True,
}

KERNELS: list[Any] = []
"""Every kernel under this policy, in the order of the imports."""


def jit(function: Function) -> Function:
    """Compiles a kernel under the policy of this module.

    Its code is copied into every kernel that calls it, and optimized there again.

    Args:
        function: a function over NumPy arrays and numbers.

    Returns:
        The compiled function; the function itself under NUMBA_DISABLE_JIT=1.
    """
    return _compiled(function)


def jit_apart(function: Function) -> Function:
    """Compiles a kernel that other kernels call without a copy of its code (see `dispatcher`).

    For kernels that do so much in a call that a copy gains nothing: a copy takes as long to
    compile as the kernel itself, in every kernel above it.

    Args:
        function: a function over NumPy arrays and numbers.

    Returns:
        The compiled function; the function itself under NUMBA_DISABLE_JIT=1.
    """
    return _compiled(function, apart=True)


def jit_views(function: Function) -> Function:
    """Compiles a kernel that allocates no array, without counting references to arrays.

    A view of an array, such as a row, and each use of a tuple of arrays otherwise cost an atomic
    addition for every array, which together take longer than the arithmetic of a small network.
    What such a kernel calls may allocate arrays, but not return any.

    Args:
        function: a function over NumPy arrays, numbers and vectors.

    Returns:
        The compiled function; the function itself under NUMBA_DISABLE_JIT=1.
    """
    return _compiled(function, counts_references=False)


def jit_views_apart(function: Function) -> Function:
    """Compiles a kernel as `jit_views`, and apart as `jit_apart`."""
    return _compiled(function, counts_references=False, apart=True)


def _compiled(
    function: Function, *, counts_references: bool = True, apart: bool = False
) -> Function:
    """Compiles a kernel; the function itself under NUMBA_DISABLE_JIT=1."""
    compiled: Any = function
    if not PYTHON_MODE:
        options = {**_OPTIONS, "_nrt": counts_references}  # else a callee has its first caller's
        options["no_cpython_wrapper"] = function.__closure__ is None  # see `dispatcher`
        path = Path(inspect.getfile(function))
        module = _module_state(path)
        state = ""
        if function.__closure__ is None:
            text = f"{module} {options} {function_digest(function)}"
            state = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        compiled = Kernel(function, options, state, apart=apart)
        if state:
            folder = Path(config.CACHE_DIR, f"{path.stem}-{module[:_DIGITS]}")
            compiled._cache = DiskCache(compiled, folder, state)
    KERNELS.append(compiled)
    return cast("Function", compiled)


@cache
def _module_state(path: Path) -> str:
    """Returns a digest of all that decides what the kernels of a module are compiled to."""
    stamp = (source_digest(path), TARGET, bool(BF16_MISSING), BOUNDS_CHECKED, toolchain())
    return hashlib.sha256(repr(stamp).encode()).hexdigest()


def specialize(kernel: Function, *arguments: Any) -> Function:
    """Returns a kernel as it is compiled for arguments of these types.

    A call of the kernel itself looks at every argument to find the types, which takes 7 us for
    tuples of many arrays. What is returned must get no other types.

    Args:
        kernel: made by `jit`.
        arguments: what it is called with.

    Returns:
        The compiled function; the kernel itself under NUMBA_DISABLE_JIT=1.
    """
    if PYTHON_MODE:
        return kernel
    compiled: Any = kernel
    types = tuple(compiled.typeof_pyval(each) for each in arguments)
    return cast("Function", compiled.entry(types))


def jit_inline(function: Function) -> Function:
    """Compiles a few lines of arithmetic into the loops of each caller.

    LLVM vectorizes a loop only once the calls in it are inlined. Numba's own inlining ensures that.

    Args:
        function: a function over NumPy arrays, numbers and vectors.

    Returns:
        The function for compiled code; the function itself under NUMBA_DISABLE_JIT=1.
    """
    compiled = numba.njit(inline="always", error_model="numpy", fastmath=False)(function)
    return cast("Function", compiled)


def jit_value(function: Function) -> Function:
    """Compiles a function of numbers or vectors into the loops of each caller.

    It is typed and optimized once for each kind of argument, and LLVM copies it into callers, which
    takes less time than `jit_inline` for functions that others use several times.

    Args:
        function: a function over numbers and vectors.

    Returns:
        The function for compiled code; the function itself under NUMBA_DISABLE_JIT=1.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": False, "_nrt": False}
    compiled = numba.njit(forceinline=True, no_cfunc_wrapper=True, **options)(function)
    return cast("Function", compiled)
