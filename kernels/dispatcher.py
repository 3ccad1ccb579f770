"""`Kernel` compiles a function once for each set of types, and says how its callers reach it.

Numba copies the code of all that a function calls into the function and optimizes it again, at
every level of the calls. That is right for small functions. A kernel that is compiled *apart*
is not copied: callers hold its name alone, and the code is looked up when they are loaded. So a
matrix product is optimized once, not once in every function above it.

The name is made of the function's name, its types and the state of the sources, so that it is the
same in every process. Cached code can therefore refer to it.

What Python calls is an *entry*: code that takes the arguments out of Python's objects and calls the
function (see `entries`). For tuples of many arrays that is more code than most functions have, and
only few of them are ever called by Python. So an entry is compiled apart, when Python needs it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

from treadle.kernels.code_library import KernelLibrary
from treadle.kernels.entries import bind_entry, compile_entry

Code = tuple[str, str, tuple[Any, ...]]
"""Where a kernel's code comes from: its module, its name, and the types of its arguments."""

_STATES: dict[Any, str] = {}
"""The state of the sources of each kernel's function."""

_KERNELS: dict[tuple[str, str], Kernel] = {}
"""Kernels by module and name."""

_APART: dict[str, _Apart] = {}
"""The code that callers hold by name, by that name."""


class _Compiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, for names that do not depend on the order in which kernels are compiled."""

    def _compile_bytecode(self) -> Any:
        identity = self.state.func_id
        identity.unique_id = _STATES[identity.func]
        identity.unique_name = f"{identity.func_qualname}${identity.unique_id}"
        return super()._compile_bytecode()


class _Compiling(threading.local):
    """What this thread compiles."""

    for_code = False
    """Whether the kernel in hand is compiled for another kernel's code, not for Python."""


_COMPILING = _Compiling()


@contextmanager
def no_collection() -> Iterator[None]:
    """Collects no garbage meanwhile.

    A compiler makes millions of objects, most of which stay until it is done. To look through them
    again and again would take a seventh of its time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _kernel_libraries(codegen: Any) -> Iterator[None]:
    """Has Numba put all that it compiles meanwhile into a `KernelLibrary` each."""
    before = codegen._library_class
    codegen._library_class = KernelLibrary
    try:
        yield
    finally:
        codegen._library_class = before


@contextmanager
def _for_code() -> Iterator[None]:
    """Has kernels compiled for the code of others, which needs no entries."""
    before = _COMPILING.for_code
    _COMPILING.for_code = True
    try:
        yield
    finally:
        _COMPILING.for_code = before


class _Apart(NamedTuple):
    """Code that is compiled apart."""

    kernel: Kernel
    arguments: tuple[Any, ...]


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """A function that is compiled when it is first called with some types."""

    def __init__(
        self, function: Callable[..., Any], options: dict[str, Any], state: str, *, apart: bool
    ) -> None:
        """Compiles nothing yet.

        Args:
            function: what to compile.
            options: Numba's.
            state: a digest of all that decides what it is compiled to; empty where the function
                depends on more than its module, and is not kept.
            apart: whether its callers hold its name alone.
        """
        self.state = state
        self.apart = apart and bool(state)
        self.called: dict[tuple[Any, ...], tuple[str, ...]] = {}
        """By types: the names of what is compiled apart and called."""
        self._entries: dict[tuple[Any, ...], Any] = {}
        """By types: what Python calls."""
        pipeline = {"pipeline_class": _Compiler} if state else {}
        super().__init__(function, targetoptions={"nopython": True, **options}, **pipeline)
        if state:
            _STATES[function] = state
            _KERNELS[function.__module__, function.__qualname__] = self

    def compile(self, sig: Any) -> Any:
        """Compiles or loads the function for some types.

        Returns:
            What Python calls; where the function is compiled for other code, what stands for it.
        """
        codegen = self.targetctx.codegen()
        with global_compiler_lock, no_collection(), _kernel_libraries(codegen):
            try:
                code = super().compile(sig)
                self._release()
                if not self.state or _COMPILING.for_code:
                    return code
                arguments, _ = normalize_signature(sig)
                return self._entry(tuple(arguments))
            finally:
                self._release()

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Returns the types of a call in another kernel."""
        with _for_code():
            return super().get_call_template(args, kws)

    def entry(self, arguments: tuple[Any, ...]) -> Any:
        """Returns what Python calls, for some types."""
        known = self._entries.get(arguments)
        if known is not None:  # `compile` would wait while another thread compiles anything
            return known
        return self.compile(arguments)

    def _entry(self, arguments: tuple[Any, ...]) -> Any:
        known = self._entries.get(arguments)
        if known is None:
            compiled = self.overloads[arguments]
            entry = self._cache.load_entry(arguments, self.targetctx)
            if entry is None:
                entry = compile_entry(self, compiled)
                self._cache.save_entry(arguments, entry)
            else:
                compiled.environment.consts.extend(entry.constants)
            known = bind_entry(compiled, entry.library)
            self._entries[arguments] = known
            self._insert([kind._code for kind in arguments], known, False)
        return known

    def _release(self) -> None:
        """Lets other processes go on that wait for what was compiled."""
        release = getattr(self._cache, "release", None)  # Numba's own caches have none
        if release is not None:
            release()

    def add_overload(self, cres: Any) -> None:
        """Takes up what was compiled or loaded."""
        if self.state:
            self.overloads[tuple(cres.signature.args)] = cres
        else:
            super().add_overload(cres)
        arguments = cres.signature.args
        if arguments not in self.called:
            self.called[arguments] = _called(cres.library)
        if self.apart:
            name = cres.fndesc.mangled_name
            _APART[name] = _Apart(self, arguments)
            # As Numba has done, but without the library that it would link into callers.
            self.targetctx.remove_user_function(cres.entry_point)
            self.targetctx.insert_user_function(cres.entry_point, cres.fndesc)

    def callees(self, arguments: tuple[Any, ...]) -> tuple[tuple[str, Code], ...]:
        """Returns what compiled code calls by name: the names, and where their code comes from."""
        found = []
        for name in self.called[arguments]:
            apart = _APART[name]
            function = apart.kernel.py_func
            code = (function.__module__, function.__qualname__, apart.arguments)
            found.append((name, code))
        return tuple(found)

    def load_callees(
        self, arguments: tuple[Any, ...], callees: tuple[tuple[str, Code], ...]
    ) -> bool:
        """Makes the code ready that loaded code calls by name; returns whether it is all there."""
        for name, (module, function, types) in callees:
            kernel = _KERNELS.get((module, function))
            if kernel is None or not kernel.apart:
                return False
            with _for_code():
                kernel.compile(types)
            if name not in _APART:
                return False
        self.called[arguments] = tuple(name for name, _ in callees)
        return True


def _called(library: Any) -> tuple[str, ...]:
    """Returns the names of what is compiled apart that a library refers to."""
    functions = library._final_module.functions
    return tuple(each.name for each in functions if each.is_declaration and each.name in _APART)
