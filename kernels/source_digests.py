"""`source_digest` names the state of the sources that a module's kernels are compiled from.

These are the module itself and the modules of this package that it imports, directly or through
others. Comments, the text of docstrings and the places of lines do not count, because they do not
reach the compiler: the digest is of byte code. Byte code differs between versions of Python, and so
do compiled kernels.

Every process asks, so what the sources say is kept next to the kernels, under a digest of the
files themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from numba.core import config

_PACKAGE = "treadle.kernels"
_FOLDER = Path(__file__).parent
_DIGITS = 16

_NEVER_COMPILED = {"cache_folder", "reference", "source_digests"}
"""Modules of this package that decide nothing about what a kernel is compiled to."""


class _Source(NamedTuple):
    """What a module's byte code says."""

    digest: bytes
    imports: frozenset[str]
    """The names of the modules of this package that it imports by itself."""


_READ: dict[Path, _Source] = {}
"""The modules of this package, by their files."""


@cache
def source_digest(path: Path) -> str:
    """Returns a digest of a module and of all that it imports from this package.

    Read once a process, so that a file that changes later does not lend its digest to code that
    was imported before.

    Args:
        path: The module's source file.
    """
    digest = hashlib.sha256(_source(path).digest)
    for name in sorted(_closure(path)):
        digest.update(name.encode())
        digest.update(_source(_FOLDER / f"{name}.py").digest)
    return digest.hexdigest()


def function_digest(function: Any) -> str:
    """Returns a digest of a function's own byte code, by which functions of one name differ."""
    code = function.__code__
    constants = tuple(each for each in code.co_consts if each != function.__doc__)
    described = _described(code.replace(co_consts=constants))
    return hashlib.sha256(described.encode()).hexdigest()


def read_all() -> None:
    """Reads the sources of this package, all at one time.

    What they say is kept in Numba's cache folder, which must have been chosen.
    """
    texts = {path: path.read_bytes() for path in sorted(_FOLDER.glob("*.py"))}
    files = [(path.name, hashlib.sha256(text).hexdigest()) for path, text in texts.items()]
    state = hashlib.sha256(repr((sys.version, files)).encode()).hexdigest()[:_DIGITS]
    kept = Path(config.CACHE_DIR, f"sources-{state}")
    found = _kept(kept)
    if found is None:
        found = {path.name: _said(path, text) for path, text in texts.items()}
        _keep(kept, found)
    _READ.update((path, found[path.name]) for path in texts)


def _kept(file: Path) -> dict[str, _Source] | None:
    """Returns what `_keep` was given; None where the file is missing or damaged."""
    try:
        digest, _, text = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    rows = json.loads(text).items()
    return {name: _Source(bytes.fromhex(own), frozenset(used)) for name, (own, used) in rows}


def _keep(file: Path, found: dict[str, _Source]) -> None:
    """Writes what was found, under another name first, so that none reads a part of it."""
    rows = {name: (source.digest.hex(), sorted(source.imports)) for name, source in found.items()}
    text = json.dumps(rows).encode()
    with suppress(OSError):  # then every process finds it by itself
        handle, new = tempfile.mkstemp(prefix=f"{file.name}.tmp.", dir=file.parent)
        with os.fdopen(handle, "wb") as written:
            written.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        os.replace(new, file)


def _closure(path: Path) -> set[str]:
    """Returns the names of the modules of this package that a module needs."""
    found: set[str] = set()
    left = [path]
    while left:
        new = _source(left.pop()).imports - found
        found |= new
        left.extend(_FOLDER / f"{name}.py" for name in new)
    return found


@cache
def _source(path: Path) -> _Source:
    """Returns what a module's byte code says.

    `import treadle.kernels.loss` and `from treadle.kernels.loss import total` name a module in one
    word. In `from treadle.kernels import loss` and `from . import loss` the module is a name among
    others, so every name that is also a module counts.
    """
    return _READ.get(path) or _said(path, path.read_bytes())


def _said(path: Path, text: bytes) -> _Source:
    """Returns what the byte code of a module's text says."""
    code = _code(path, text)
    digest = hashlib.sha256(_described(code).encode()).digest()
    found = {name.removeprefix(f"{_PACKAGE}.") for name in _names(code)}
    return _Source(digest, frozenset(found & _modules() - {path.stem}))


@cache
def _modules() -> set[str]:
    """Returns the names of the modules from which kernels take something."""
    return {path.stem for path in _FOLDER.glob("*.py")} - _NEVER_COMPILED


def _code(path: Path, text: bytes) -> CodeType:
    """Returns a module's byte code without docstrings."""
    return compile(text, path.name, "exec", dont_inherit=True, optimize=2)


def _names(code: CodeType) -> set[str]:
    """Returns every global name, attribute and module that byte code refers to."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _described(value: object) -> str:
    """Returns a text that is the same for the same byte code, or for the same constant."""
    if isinstance(value, CodeType):
        constants = [_described(constant) for constant in value.co_consts]
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        jumps = value.co_exceptiontable
        return repr((value.co_code, constants, names, counts, value.co_flags, jumps))
    if isinstance(value, frozenset):  # in an order that depends on the process
        return repr(sorted(map(_described, value)))
    if isinstance(value, tuple):
        return repr([_described(each) for each in value])
    return repr(value)
