"""`Kernel` compiles a function once for each set of types, and says how its callers reach it.

Numba copies the code of all that a function calls into the function and optimizes it again, at
every level of the calls. That is right for small functions. A kernel that is compiled *apart*
is not copied: callers hold its name alone, and the code is looked up when they are loaded. So a
matrix product is optimized once, not once in every function above it.

The name is made of the function's name, its types and the state of the sources, so that it is the
same in every process. Cached code can therefore refer to it.

What Python calls is an *entry*: code that takes the arguments out of Python's objects and calls the
function. For tuples of many arrays that is more code than most functions have, and
only few of them are ever called by Python. So an entry is compiled apart, when Python needs it: a
piece of code that calls the kernel by its name, and that the disk cache keeps next to the kernel's.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from llvmlite.binding import newpassmanagers
from numba import _dynfunc
from numba.core import compiler, config
from numba.core.callwrapper import PyCallWrapper
from numba.core.codegen import JITCodeLibrary, _parse_refprune_flags
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature
from numba.core.targetconfig import ConfigStack

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


class _KernelLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a kernel, or of what Numba compiles for it, which LLVM optimizes once.

    Numba optimizes each function as soon as it is written, then links it with all that it calls,
    and optimizes the whole twice: a little, so that it finds more references to arrays that need
    not be counted, and then thoroughly, with the same passes and more. Here the first time only
    makes the code small, and the second one is left out where nothing is counted. LLVM keeps every
    bit of a result whatever passes run.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        """Makes the functions of a module small, before they are linked with others."""
        ll_module.data_layout = self._codegen._data_layout
        builder = self._codegen._pass_builder()
        passes = newpassmanagers.create_new_function_pass_manager()
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        if config.LLVM_REFPRUNE_PASS:
            passes.add_refprune_pass(_parse_refprune_flags())
        for function in ll_module.functions:
            if not function.is_declaration:
                passes.run(function, builder)

    def _optimize_final_module(self) -> None:
        """Optimizes the code, once all is linked."""
        if any(function.name.startswith("NRT_") for function in self._final_module.functions):
            super()._optimize_final_module()
            return
        builder = self._codegen._pass_builder()
        builder.getModulePassManager().run(self._final_module, builder)


class _EntryLibrary(_KernelLibrary):
    """The code of an entry: it runs once a call, from its beginning to its end."""

    def _optimize_final_module(self) -> None:
        """Optimizes a little."""
        builder = self._codegen._pass_builder(opt=1, loop_vectorize=False, slp_vectorize=False)
        builder.getModulePassManager().run(self._final_module, builder)


class _Compiling(threading.local):
    """What this thread compiles."""

    for_code = False
    """Whether the kernel in hand is compiled for another kernel's code, not for Python."""


_COMPILING = _Compiling()


class _Uncollected:
    """How many threads want no garbage collected, and whether it was before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.collects = False


_UNCOLLECTED = _Uncollected()


@contextmanager
def no_collection() -> Iterator[None]:
    """Collects no garbage meanwhile.

    A compiler makes millions of objects, most of which stay until it is done. To look through them
    again and again would take a seventh of its time.
    """
    with _UNCOLLECTED.lock:
        if not _UNCOLLECTED.depth:
            _UNCOLLECTED.collects = gc.isenabled()
            gc.disable()
        _UNCOLLECTED.depth += 1
    try:
        yield
    finally:
        with _UNCOLLECTED.lock:
            _UNCOLLECTED.depth -= 1
            if not _UNCOLLECTED.depth and _UNCOLLECTED.collects:
                gc.enable()


@contextmanager
def _kernel_libraries(codegen: Any) -> Iterator[None]:
    """Has Numba put all that it compiles meanwhile into a `_KernelLibrary` each."""
    before = codegen._library_class
    codegen._library_class = _KernelLibrary
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


class _Entry(NamedTuple):
    """The entry of a kernel for some types."""

    library: Any
    """Its code."""
    constants: tuple[Any, ...]
    """Python's objects that it needs, such as the type of an array that is returned."""


def _compile_entry(kernel: Any, compiled: Any) -> _Entry:
    """Compiles the entry of a kernel.

    Args:
        kernel: the kernel.
        compiled: Numba's result of compiling it for some types.

    Returns:
        The entry, not yet bound.
    """
    kernel.targetctx.refresh()  # a kernel that was loaded has registered nothing
    flags = compiler.Flags()
    kernel.targetdescr.options.parse_as_flags(flags, kernel.targetoptions)
    context = compiler._make_subtarget(kernel.targetctx, flags)
    described = compiled.fndesc
    own = len(compiled.environment.consts)
    library = _EntryLibrary(context.codegen(), described.llvm_cpython_wrapper_name)
    library.enable_object_caching()
    with ConfigStack().enter(flags.copy()), context.push_code_library(library):
        module = context.create_module("entry")
        kind = context.call_conv.get_function_type(described.restype, described.argtypes)
        function = ir.Function(module, kind, described.llvm_func_name)
        PyCallWrapper(
            context, module, function, described, compiled.environment, None, flags.release_gil
        ).build()
        environment = module.globals.get(context.get_env_name(described))
        if environment is not None:  # the kernel's own, which is set already
            environment.linkage = "external"
            environment.initializer = None
        library.add_ir_module(module)
        library.finalize()
    return _Entry(library, tuple(compiled.environment.consts[own:]))


def _bind_entry(compiled: Any, library: Any) -> Any:
    """Returns what Python calls.

    Args:
        compiled: Numba's result of compiling the kernel.
        library: the code of its entry.
    """
    described = compiled.fndesc
    return _dynfunc.make_function(
        described.lookup_module(),
        described.qualname.split(".")[-1],
        f"entry of {described.qualname}",
        library.get_pointer_to_function(described.llvm_cpython_wrapper_name),
        compiled.environment,
        (compiled.library, library),  # kept as long as the function
    )


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
            kept = self._cache.load_entry(arguments, self.targetctx)
            if kept is None:
                entry = _compile_entry(self, compiled)
                self._cache.save_entry(arguments, *entry)
            else:
                entry = _Entry(*kept)
                compiled.environment.consts.extend(entry.constants)
            known = _bind_entry(compiled, entry.library)
            self._entries[arguments] = known
            self._insert([kind._code for kind in arguments], known, False)
        return known

    def _release(self) -> None:
        """Lets other processes load what they wait for."""
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
