"""`DiskCache` keeps compiled kernels on disk, each under the state of the sources it came from.

It takes the place of Numba's own cache, which

- does not notice that a jitted function in *another* file changed (numba#1833). Here a module's
  kernels lie in a folder that is named by a digest of the module and of all it imports (see
  `source_digests`). So an edit compiles again what depends on it and nothing else, and
  versions of this package do not overwrite each other's kernels;
- keeps one index a function, which two processes that compile at the same time overwrite. Here
  each kernel is one file, named by its types and by the processor, and a process waits for another
  one that compiles the same;
- holds the path of the sources, so that no two installations share it.

A file that is damaged counts as missing.

Numba's own way of loading also prepares for callers that are compiled later and link a copy of the
code: it reads the bitcode and registers everything that Numba can compile, which takes longer than
all else. Here that waits until a caller is compiled.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import llvmlite
import numba
import numpy as np
from llvmlite import binding as llvm
from numba.core import sigutils
from numba.core.caching import _Cache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

_DIGEST_BYTES = hashlib.sha256().digest_size
_DIGITS = 16
_CODE = ".nbc"
_ENTRY = ".nbe"
"""What the names of the files of compiled kernels, and of their entries, end with."""
_USED_S = 86_400.0
"""Seconds after which the use of a folder is noted again."""


class Kernel(Protocol):
    """What the cache needs of a kernel."""

    py_func: Any

    def callees(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns what compiled code calls by name."""

    def load_callees(self, arguments: tuple[Any, ...], callees: tuple[Any, ...]) -> bool:
        """Makes ready what loaded code calls by name; returns whether it is there."""


class DiskCache(_Cache):  # type: ignore[misc]
    """The compiled forms of one kernel on disk, by the types of its arguments."""

    def __init__(self, kernel: Kernel, folder: Path, state: str) -> None:
        """Reads nothing yet.

        Args:
            kernel: the kernel.
            folder: of the kernels of its module.
            state: the digest of all that decides what it is compiled to.
        """
        self._kernel = kernel
        self._folder = folder
        self._name = kernel.py_func.__qualname__.replace("<", "").replace(">", "")
        self._state = state
        self._enabled = True
        self._locks: list[tuple[int, Path]] = []

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
        for suffix in (_CODE, _ENTRY):
            for path in self._folder.glob(f"{self._name}-*{suffix}"):
                path.unlink(missing_ok=True)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the compiled form for some types; None where the disk lacks it."""
        if not self._enabled:
            return None
        path = self._path(sig, target_context.codegen())
        data = _read(path)
        if data is None:
            self._lock(path)
            data = _read(path)  # another process may have compiled it meanwhile
        if data is None:
            return None
        _note_use(self._folder)
        callees, parts = pickle.loads(data)
        arguments, _ = sigutils.normalize_signature(sig)
        if not self._kernel.load_callees(arguments, callees):
            return None
        return _load(target_context, parts)

    def load_entry(self, arguments: tuple[Any, ...], target_context: Any) -> tuple[Any, Any] | None:
        """Returns the entry for some types, as it was given to `save_entry`; None without one."""
        if not self._enabled:
            return None
        codegen = target_context.codegen()
        path = self._path(arguments, codegen).with_suffix(_ENTRY)
        data = _read(path)
        if data is None:
            self._lock(path)
            data = _read(path)
        if data is None:
            return None
        name, object_code, constants = pickle.loads(data)
        library = _Library(codegen, name, object_code, b"")
        codegen._engine._defined_symbols.add(name)
        return library, constants

    def save_entry(
        self, arguments: tuple[Any, ...], library: Any, constants: tuple[Any, ...]
    ) -> None:
        """Keeps the code of an entry, and the objects of Python that it needs."""
        if self._enabled:
            path = self._path(arguments, library.codegen).with_suffix(_ENTRY)
            parts = (library.name, library._get_compiled_object(), constants)
            _keep(path, dumps(parts))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled form."""
        if not self._enabled or data.library.has_dynamic_globals or data.lifted:
            return
        callees = self._kernel.callees(data.signature.args)
        payload = dumps((callees, data._reduce()))
        _keep(self._path(sig, data.codegen), payload)

    def release(self) -> None:
        """Lets other processes compile this kernel; to be called once it is compiled or failed."""
        while self._locks:
            handle, lock = self._locks.pop()
            with suppress(OSError):
                lock.unlink()
            os.close(handle)

    def is_filled(self) -> bool:
        """Returns whether the disk has any compiled form of this kernel."""
        return any(self._folder.glob(f"{self._name}-*{_CODE}"))

    def _lock(self, path: Path) -> None:
        """Waits while another process compiles the same, and then keeps others from it.

        Numba holds a lock of this process meanwhile. Kernels do not call each other in circles, so
        no two processes wait for each other.
        """
        lock = path.with_suffix(".lock")
        with suppress(OSError):  # without a lock, both compile
            lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._locks.append((handle, lock))
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _path(self, sig: Any, codegen: Any) -> Path:
        """Returns the file of the compiled form for some types."""
        arguments, _ = sigutils.normalize_signature(sig)
        key = ([str(kind) for kind in arguments], codegen.magic_tuple(), self._state)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:_DIGITS]
        return self._folder / f"{self._name}-{digest}{_CODE}"


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """Code that was compiled before."""

    def __init__(self, codegen: Any, name: str, object_code: bytes, bitcode: bytes) -> None:
        """Makes the code ready to be called.

        Args:
            codegen: what links it.
            name: its name.
            object_code: the code itself.
            bitcode: the same in a form that callers copy.
        """
        super().__init__(codegen, name)
        self._bitcode = bitcode
        self._linkable: Any = None
        self.enable_object_caching()
        self._set_compiled_object(object_code)
        self._finalize_final_module()

    def _get_module_for_linking(self) -> Any:
        """Returns the bitcode, for a caller that is compiled."""
        if self._linkable is None:
            self._linkable = llvm.parse_bitcode(self._bitcode)
        return self._linkable


def _load(context: Any, parts: tuple[Any, ...]) -> Any:
    """Returns a compiled form as Numba had it when it was compiled.

    Args:
        context: Numba's, of this processor.
        parts: what `CompileResult._reduce` returned.
    """
    library, described, environment, signature, is_object_mode, lifted, text, begin, others = parts
    for function in begin:
        function()
    rtsys.initialize(context)
    name, _, (object_code, bitcode) = library
    code = _Library(context.codegen(), name, object_code, bitcode)
    compiled = CompileResult(
        target_context=context,
        typing_context=context.typing_context,
        library=code,
        environment=environment,
        entry_point=context.get_executable(code, described, environment),
        fndesc=described,
        type_annotation=text,
        signature=signature,
        objectmode=is_object_mode,
        lifted=lifted,
        typing_error=None,
        call_helper=None,
        metadata=None,
        reload_init=begin,
        referenced_envs=others,
    )
    for other in others:
        code.codegen.set_env(other.env_name, other)
    return compiled


def _read(path: Path) -> bytes | None:
    """Returns what `_write` was given; None where the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = data[_DIGEST_BYTES:]
    return payload if hashlib.sha256(payload).digest() == data[:_DIGEST_BYTES] else None


def _keep(path: Path, data: bytes) -> None:
    """Writes a file; a warning where that fails, for what was compiled can be used."""
    try:
        _write(path, data)
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror or error}"
        warnings.warn(f"a compiled kernel is not kept: {reason}", RuntimeWarning, stacklevel=3)


def _write(path: Path, data: bytes) -> None:
    """Writes data with its digest, under another name first, so that none reads a part of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=f"{path.name}.tmp.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        os.replace(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


@cache
def toolchain() -> tuple[str, ...]:
    """Returns the versions of all that compiles."""
    python = sys.implementation.cache_tag or sys.version
    return (python, numba.__version__, llvmlite.__version__, np.__version__)


@cache
def _note_use(folder: Path) -> None:
    """Gives a folder today's time, by which folders of old versions are found."""
    with suppress(OSError):  # as where it belongs to another user
        if time.time() - folder.stat().st_mtime > _USED_S:
            os.utime(folder)
