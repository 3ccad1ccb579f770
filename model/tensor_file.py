"""Opening a safetensors file: `open_tensors`, the one place that calls the package for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from treadle.model.errors import CheckpointError
from treadle.model.rust_panics import no_panics


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Opens a file of tensors, which are read as NumPy arrays.

    Args:
        path: The file.

    Yields:
        What `safetensors.safe_open` returns: `keys()`, `metadata()`, `get_tensor(name)`.

    Raises:
        CheckpointError: It is not a whole safetensors file.
        OSError: It cannot be read.
    """
    with Path(path).open("rb"):  # a missing or unreadable file is an OSError, not a damaged one
        pass
    with no_panics("safetensors", "read a file", CheckpointError):
        try:
            file = safe_open(os.fspath(path), framework="numpy")
        except SafetensorError as fault:
            raise CheckpointError(f"the file is no whole safetensors file: {fault}") from fault
        with file:
            yield file


def read_tensors(file: Any) -> dict[str, Any]:
    """Returns all tensors of a file that `open_tensors` opened, by name, as NumPy arrays.

    Raises:
        CheckpointError: One has a type that NumPy lacks, such as bfloat16.
    """
    try:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (TypeError, SafetensorError) as fault:
        raise CheckpointError(f"the file's tensors cannot be read: {fault}") from fault
