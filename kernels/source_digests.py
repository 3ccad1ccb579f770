"""`source_digest` names the state of the sources that a module's kernels are compiled from.

These are the module itself and the modules of this package that it imports, directly or through
others. Comments, the text of docstrings and the places of lines do not count, because they do not
reach the compiler: the digest is of byte code. Byte code differs between versions of Python, and so
do compiled kernels.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

_PACKAGE = "treadle.kernels"
_FOLDER = Path(__file__).parent

_NEVER_COMPILED = {"cache_folder", "disk_cache", "dispatcher", "reference", "source_digests"}
"""Modules of this package from which no kernel takes anything."""


@cache
def source_digest(path: Path) -> str:
    """Returns a digest of a module and of all that it imports from this package.

    Read once a process, so that a file that changes later does not lend its digest to code that
    was imported before.

    Args:
        path: The module's source file.
    """
    digest = hashlib.sha256(_own_digest(path))
    for name in sorted(_closure(path)):
        digest.update(name.encode())
        digest.update(_own_digest(_FOLDER / f"{name}.py"))
    return digest.hexdigest()


def function_digest(function: Any) -> str:
    """Returns a digest of a function's own byte code, by which functions of one name differ."""
    code = function.__code__
    constants = tuple(each for each in code.co_consts if each != function.__doc__)
    described = _described(code.replace(co_consts=constants))
    return hashlib.sha256(described.encode()).hexdigest()


def read_all() -> None:
    """Reads the sources of this package, all at one time."""
    for path in _FOLDER.glob("*.py"):
        _code(path)


def _closure(path: Path) -> set[str]:
    """Returns the names of the modules of this package that a module needs."""
    found: set[str] = set()
    left = [path]
    while left:
        new = _imports(left.pop()) - found
        found |= new
        left.extend(_FOLDER / f"{name}.py" for name in new)
    return found


@cache
def _imports(path: Path) -> set[str]:
    """Returns the names of the modules of this package that a module imports by itself.

    `import treadle.kernels.loss` and `from treadle.kernels.loss import total` name a module in one
    word. In `from treadle.kernels import loss` and `from . import loss` the module is a name among
    others, so every name that is also a module counts.
    """
    names = _names(_code(path))
    found = {name.removeprefix(f"{_PACKAGE}.") for name in names}
    return {name for name in found & _modules() if name != path.stem}


@cache
def _modules() -> set[str]:
    """Returns the names of the modules from which kernels take something."""
    return {path.stem for path in _FOLDER.glob("*.py")} - _NEVER_COMPILED


@cache
def _code(path: Path) -> CodeType:
    """Returns a module's byte code without docstrings."""
    return compile(path.read_bytes(), path.name, "exec", dont_inherit=True, optimize=2)


def _names(code: CodeType) -> set[str]:
    """Returns every global name, attribute and module that byte code refers to."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


@cache
def _own_digest(path: Path) -> bytes:
    """Returns a digest of a module's byte code."""
    return hashlib.sha256(_described(_code(path)).encode()).digest()


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
