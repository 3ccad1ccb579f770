"""`open_tensors` opens a safetensors file, and `safetensors_parts` makes the content of one."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

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

_LARGEST_HEADER = 100_000_000
"""Most bytes of a header: what the library allows."""

_MOST_TENSORS = 4096
"""Most tensors of a file: far more than any network of Treadle has, with its optimizer's state."""

_MOST_PARTS = 32 * _MOST_TENSORS
"""Most numbers, lists and texts in a header."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_OPENING = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*\{")
"""What follows the name of a tensor."""

_ENDS = re.compile(rb'"data_offsets"\s*:\s*\[\s*[0-9]{1,20}\s*,\s*([0-9]{1,20})\s*\]')
"""The end of a tensor's data."""


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Opens a safetensors file.

    Args:
        path: The file.

    Yields:
        What `safetensors.safe_open` returns: `keys()`, `metadata()`, `get_tensor(name)`.

    Raises:
        LoadError: It is not a complete safetensors file, or holds too many tensors, or one twice.
        OSError: It cannot be read.
    """
    with _opened(path) as regular:
        _check_header(regular)
    with no_panics("safetensors", "read a file", LoadError):
        try:
            file = safe_open(os.fspath(path), framework="numpy")
        except SafetensorError as fault:
            raise LoadError(f"the file is not a complete safetensors file: {fault}") from fault
        with file:
            yield file


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a regular file, without waiting for a pipe in its place.

    Yields:
        The file.

    Raises:
        OSError: It is missing, cannot be read, or is not a regular file.
    """
    # With this flag the open of a pipe returns at once. That of a directory fails as usual.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        yield file


def _check_header(file: BinaryIO) -> None:
    """Checks the header of a file before the library reads it.

    The library takes a minute and gigabytes for a header of millions of tensors, and the last one
    of two tensors with the same name.

    Raises:
        LoadError: The header is not within the file, or holds too much, or a name twice.
    """
    left = os.fstat(file.fileno()).st_size - 8
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= min(left, _LARGEST_HEADER):
        text = f"its header should have {size:,} bytes, and {max(left, 0):,} follow"
        if size > _LARGEST_HEADER:
            text = "it does not begin with the size of a header"
        raise LoadError(f"the file is not a complete safetensors file: {text}")
    header = file.read(size)
    bare = _STRING.sub(b'"', header)
    if bare.count(b"{") > _MOST_TENSORS or sum(map(bare.count, (b",", b"[", b'"'))) > _MOST_PARTS:
        raise LoadError(f"the file's header has more than {_MOST_TENSORS:,} tensors")
    names = Counter(
        string[0] for string in _STRING.finditer(header) if _OPENING.match(header, string.end())
    )
    double = next((name for name, count in names.items() if count > 1), None)
    if double is not None:
        shown = double[:40].decode(errors="replace")
        raise LoadError(f"the file's header has the name {shown} twice")
    # The library maps the whole file into memory before it compares this.
    end = max((int(end) for end in _ENDS.findall(header)), default=0)
    if end != left - size:
        text = f"its tensors should have {end:,} bytes, and {left - size:,} follow its header"
        raise LoadError(f"the file is not a complete safetensors file: {text}")


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
