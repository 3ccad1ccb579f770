"""`DiskCache` keeps compiled kernels on disk, each under the state of the sources it came from.

It takes the place of Numba's own cache, which

- does not notice that a jitted function in *another* file changed (numba#1833). Here a module's
  kernels lie in a folder that is named by a digest of the module and of all it imports (see
  `source_digests`). So an edit compiles again what depends on it and nothing else, and
  versions of this package do not overwrite each other's kernels;
- keeps one index a function, which two processes that compile at the same time overwrite. Here
  each kernel is one file, named by its types and by the processor;
- holds the path of the sources, so that no two installations share it.

A file that is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config, sigutils
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

_DIGEST_BYTES = hashlib.sha256().digest_size
_DIGITS = 16
_USED_S = 86_400.0
"""Seconds after which the use of a folder is noted again."""


class DiskCache(_Cache):  # type: ignore[misc]
    """The compiled forms of one kernel on disk, by the types of its arguments."""

    def __init__(self, function: Callable[..., Any], sources: str, policy: str) -> None:
        """Finds the folder of a kernel.

        Args:
            function: the kernel, of a module that has a source file.
            sources: the digest of what it is compiled from.
            policy: all else that decides what it is compiled to.
        """
        stamp = (sources, policy, _toolchain())
        digest = hashlib.sha256(repr(stamp).encode()).hexdigest()[:_DIGITS]
        module = Path(inspect.getfile(function)).stem
        self._folder = Path(config.CACHE_DIR, f"{module}-{digest}")
        self._name = function.__qualname__.replace("<", "").replace(">", "")
        # Functions of one name may lie in one module.
        self._code = hashlib.sha256(function.__code__.co_code).hexdigest()
        self._enabled = function.__closure__ is None

    @property
    def cache_path(self) -> str:
        """The folder of this kernel's module."""
        return str(self._folder)

    def enable(self) -> None:
        """Begins to load and save."""
        self._enabled = True

    def disable(self) -> None:
        """Ends loading and saving."""
        self._enabled = False

    def flush(self) -> None:
        """Removes the kernel from the disk."""
        for path in self._folder.glob(f"{self._name}-*.nbc"):
            path.unlink(missing_ok=True)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the compiled form for some types; None where the disk lacks it."""
        if not self._enabled:
            return None
        target_context.refresh()
        try:
            data = self._path(sig, target_context.codegen()).read_bytes()
        except OSError:
            return None
        payload = memoryview(data)[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
            return None
        _note_use(self._folder)
        return CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled form."""
        if not self._enabled or data.library.has_dynamic_globals or data.lifted:
            return
        payload = dumps(data._reduce())
        path = self._path(sig, data.codegen)
        try:
            _write(path, hashlib.sha256(payload).digest() + payload)
        except OSError as error:  # the kernel itself can be used
            reason = f"{path} cannot be written: {error.strerror or error}"
            warnings.warn(f"a compiled kernel is not kept: {reason}", RuntimeWarning, stacklevel=2)

    def _path(self, sig: Any, codegen: Any) -> Path:
        """Returns the file of the compiled form for some types."""
        arguments, _ = sigutils.normalize_signature(sig)
        key = ([str(kind) for kind in arguments], codegen.magic_tuple(), self._code)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:_DIGITS]
        return self._folder / f"{self._name}-{digest}.nbc"


def _write(path: Path, data: bytes) -> None:
    """Writes a file, under another name first, so that no process reads a part of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=f"{path.name}.tmp.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


@cache
def _toolchain() -> tuple[str, ...]:
    """Returns the versions of all that compiles."""
    python = sys.implementation.cache_tag or sys.version
    return (python, numba.__version__, llvmlite.__version__, np.__version__)


@cache
def _note_use(folder: Path) -> None:
    """Gives a folder today's time, by which folders of old versions are found."""
    with suppress(OSError):  # as where it belongs to another user
        if time.time() - folder.stat().st_mtime > _USED_S:
            os.utime(folder)
