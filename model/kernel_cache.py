"""`kernel_folder` and its neighbours report on compiled kernels and clean up their cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from treadle.kernels import cache_folder
from treadle.kernels import jit as policy
from treadle.kernels.jit import KERNELS, PYTHON_MODE, TARGET, TEMPORARY_CACHE

_UNFINISHED_S = 2 * 86_400.0
"""Seconds after which an incomplete file of compiled code must be left by a killed process."""

_UNUSED_S = 60 * 86_400.0
"""Seconds after which kernels that nothing has loaded must be those of an older version."""


def compiled_for() -> str:
    """Returns the processor that kernels are compiled for, in LLVM's naming."""
    return TARGET.name


def kernels_ready() -> tuple[int, int]:
    """Returns how many kernels are compiled so far, by this process or others, and how many are."""
    compiled = sum(1 for kernel in KERNELS if _is_compiled(kernel))
    return compiled, len(KERNELS)


def _is_compiled(kernel: Any) -> bool:
    cache = getattr(kernel, "_cache", None)
    return bool(getattr(kernel, "signatures", ()) or (cache is not None and cache.is_filled()))


def all_compiled() -> bool:
    """Returns whether `note_all_compiled` was called in the state of the sources as they are."""
    return PYTHON_MODE or _note().exists()


def note_all_compiled() -> None:
    """Notes in the disk cache that it holds every kernel; not where one could not be written.

    Later processes then load kernels without asking whether others should help to compile them.
    """
    if not PYTHON_MODE and all(_is_kept(kernel) for kernel in KERNELS):
        with suppress(OSError):  # then others ask
            _note().touch()


def _is_kept(kernel: Any) -> bool:
    """Returns whether the disk holds a kernel, where it was compiled and is to be kept."""
    return not (kernel.signatures and kernel.state) or kernel._cache.is_filled()


def _note() -> Path:
    states = sorted(str(kernel.state) for kernel in KERNELS)
    digest = hashlib.sha256(repr((states, policy.FEATURES)).encode()).hexdigest()[:16]
    return Path(kernel_folder(), f"complete-{digest}")


def kernel_folder() -> str:
    """Returns the folder of compiled kernels; empty if kernels are not compiled."""
    return str(policy.config.CACHE_DIR or "")  # type: ignore[attr-defined]


def temporary_kernels() -> str:
    """Returns why compiled kernels are kept only until this process ends; empty if they stay."""
    return TEMPORARY_CACHE


def drop_temporary_kernels() -> None:
    """Removes compiled kernels that must not outlive this process; nothing may be compiled then.

    A process does so by itself when it ends, except by `os._exit`.
    """
    cache_folder.remove_temporary_folders()


def sweep_temporary_kernels() -> int:
    """Removes compiled kernels that killed processes left.

    These are temporary folders whose process has ended, and, in the folder of this process, files
    that have been incomplete for days and kernels that nothing has loaded for months.

    Returns:
        How many folders and files were removed.

    Raises:
        OSError: The disk failed.
    """
    count = 0
    for folder in cache_folder._abandoned(Path(tempfile.gettempdir())):
        shutil.rmtree(folder, ignore_errors=True)
        count += 1
    home = kernel_folder()
    for path in Path(home).rglob("*.tmp.*") if home else ():
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                path.unlink()
                count += 1
    for module in Path(home).glob("*-*") if home else ():
        with suppress(FileNotFoundError, NotADirectoryError):
            if time.time() - module.stat().st_mtime > _UNUSED_S:
                for note in Path(home).glob("complete-*"):  # it would no longer be true
                    note.unlink()
                shutil.rmtree(module)
                count += 1
    return count
