"""`no_panics` turns panics of packages written in Rust into errors.

PyO3 raises a panic as a `PanicException`, which is a BaseException: no handler of errors catches
it, so it would end the thread and whatever else runs there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from treadle.model.errors import ModelError, PackageError


@contextmanager
def no_panics(package: str, doing: str, error: type[ModelError] = PackageError) -> Iterator[None]:
    """Turns a panic within the block into an error; other exceptions pass.

    Args:
        package: The name of the package on PyPI.
        doing: The action in the message, such as "read a model file".
        error: The type of error to raise.

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
