"""`Kernel` compiles a function once for each set of types, and says how its callers reach it.

Numba copies the code of all that a function calls into the function and optimizes it again, at
every level of the calls. That is right for small functions. A kernel that is compiled *apart*
is not copied: callers hold its name alone, and the code is looked up when they are loaded. So a
matrix product is optimized once, not once in every function above it.

The name is made of the function's name, its types and the state of the sources, so that it is the
same in every process. Cached code can therefore refer to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

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
        pipeline = {"pipeline_class": _Compiler} if state else {}
        super().__init__(function, targetoptions={"nopython": True, **options}, **pipeline)
        if state:
            _STATES[function] = state
            _KERNELS[function.__module__, function.__qualname__] = self

    def compile(self, sig: Any) -> Any:
        """Compiles or loads the function for some types."""
        try:
            return super().compile(sig)
        finally:
            release = getattr(self._cache, "release", None)  # Numba's own caches have none
            if release is not None:
                release()

    def add_overload(self, cres: Any) -> None:
        """Takes up what was compiled or loaded."""
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
            kernel.compile(types)
            if name not in _APART:
                return False
        self.called[arguments] = tuple(name for name, _ in callees)
        return True


def _called(library: Any) -> tuple[str, ...]:
    """Returns the names of what is compiled apart that a library refers to."""
    functions = library._final_module.functions
    return tuple(each.name for each in functions if each.is_declaration and each.name in _APART)
