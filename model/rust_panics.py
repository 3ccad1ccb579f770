"""Panics of packages written in Rust, raised as errors of ours: `no_panics`.

PyO3 raises a panic as a `PanicException`, which is a BaseException: nothing that catches errors
catches it, so it would end the thread that it comes to, whoever else is served there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from treadle.model.errors import ModelError, PackageError


@contextmanager
def no_panics(package: str, doing: str, error: type[ModelError] = PackageError) -> Iterator[None]:
    """Turns a panic within the block into an error; everything else passes.

    Args:
        package: The package that is called, as pip knows it.
        doing: What it is asked to do, such as "read a model file".
        error: What to raise.

    Raises:
        ModelError: The package panicked; of the type `error`.
    """
    try:
        yield
    except BaseException as fault:
        # Each package has a PanicException of its own, and none of them can be imported.
        if type(fault).__module__ != "pyo3_runtime":
            raise
        reason = str(fault).partition("\n")[0][:200]
        raise error(f"the package {package} failed to {doing}: {reason}") from fault
