"""`open_tensors` opens a safetensors file, and `safetensors_parts` makes the content of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from treadle.model.errors import LoadError
from treadle.model.rust_panics import no_panics

_TYPES = {
    "<i8": "I64",
    "<f4": "F32",
    "<u4": "U32",
    "<i4": "I32",
    "<u2": "U16",
    "|u1": "U8",
}
"""The types of tensors that are written, in the order in which safetensors lays them out."""


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Opens a safetensors file.

    Args:
        path: The file.

    Yields:
        What `safetensors.safe_open` returns: `keys()`, `metadata()`, `get_tensor(name)`.

    Raises:
        LoadError: It is not a complete safetensors file.
        OSError: It cannot be read.
    """
    with Path(path).open("rb"):  # a missing or unreadable file is an OSError, not a damaged one
        pass
    with no_panics("safetensors", "read a file", LoadError):
        try:
            file = safe_open(os.fspath(path), framework="numpy")
        except SafetensorError as fault:
            raise LoadError(f"the file is not a complete safetensors file: {fault}") from fault
        with file:
            yield file


def read_tensors(file: Any) -> dict[str, Any]:
    """Returns all tensors of a file by name, as NumPy arrays.

    Args:
        file: The file that `open_tensors` opened.

    Raises:
        LoadError: A tensor has a type that NumPy lacks, such as bfloat16.
    """
    try:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (TypeError, SafetensorError) as fault:
        raise LoadError(f"the file's tensors cannot be read: {fault}") from fault


def safetensors_parts(
    tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """Returns the content of a safetensors file in parts, byte for byte as the library writes it.

    The parts are the tensors' own memory; the library would copy all of them twice.

    Args:
        tensors: Arrays by name, of the types in `_TYPES`.
        metadata: The header's metadata; its keys are written in this order.
    """
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    order = sorted(whole, key=lambda name: (list(_TYPES).index(whole[name].dtype.str), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        tensor = whole[name]
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype.str],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    data = [whole[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(8, "little"), text, *data]
