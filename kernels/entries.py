"""`compile_entry` makes what Python calls of a kernel that is compiled already.

It takes the arguments out of Python's objects, gives up the interpreter lock, calls the kernel by
its name, and makes an object of the result. It is a library of its own, which the disk cache keeps
next to the kernel's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import _dynfunc
from numba.core import compiler
from numba.core.callwrapper import PyCallWrapper
from numba.core.targetconfig import ConfigStack

from treadle.kernels.code_library import EntryLibrary


class Entry(NamedTuple):
    """The entry of a kernel for some types."""

    library: Any
    """Its code."""
    constants: tuple[Any, ...]
    """Python's objects that it needs, such as the type of an array that is returned."""


def compile_entry(kernel: Any, compiled: Any) -> Entry:
    """Compiles the entry of a kernel.

    Args:
        kernel: the kernel.
        compiled: Numba's result of compiling it for some types.

    Returns:
        The entry, not yet bound.
    """
    flags = compiler.Flags()
    kernel.targetdescr.options.parse_as_flags(flags, kernel.targetoptions)
    context = compiler._make_subtarget(kernel.targetctx, flags)
    described = compiled.fndesc
    own = len(compiled.environment.consts)
    library = EntryLibrary(context.codegen(), described.llvm_cpython_wrapper_name)
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
    return Entry(library, tuple(compiled.environment.consts[own:]))


def bind_entry(compiled: Any, library: Any) -> Any:
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
