"""`KernelLibrary` is a piece of code that LLVM optimizes once, where Numba does so three times.

Numba optimizes each function as soon as it is written, then links it with all that it calls, and
optimizes the whole twice: a little, so that it finds more references to arrays that need not be
counted, and then thoroughly, with the same passes and more. Here the first time only makes the code
small, and the second one is left out where nothing is counted. LLVM keeps every bit of a result
whatever passes run.
"""

from __future__ import annotations

from typing import Any

from llvmlite.binding import newpassmanagers
from numba.core import config
from numba.core.codegen import JITCodeLibrary, _parse_refprune_flags


class KernelLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a kernel, or of what Numba compiles for it."""

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


class EntryLibrary(KernelLibrary):
    """The code of an entry: it runs once a call, from its beginning to its end."""

    def _optimize_final_module(self) -> None:
        """Optimizes a little."""
        builder = self._codegen._pass_builder(opt=1, loop_vectorize=False, slp_vectorize=False)
        builder.getModulePassManager().run(self._final_module, builder)
