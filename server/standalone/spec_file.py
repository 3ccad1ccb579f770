"""`read_spec_file` reads what `treadle-train` trains: the fields of TrainSpec, and the files.

A file is TOML or JSON. Its keys are the fields of `treadle.v1.TrainSpec` by their names, those of
its parts in tables such as `[network]`; an enum's value is a word such as `lstm`. The table
`[files]` has the corpus. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from treadle.model.data.files import CorpusFile
from treadle.model.enums import CorpusRole
from treadle.server.messages.enums import number_of, word_of
from treadle.v1 import sequence_pb2 as pb

_FILES = "files"

_FOR_A_SERVER = {
    "request_id": "leave it out",
    "init_from_version": "leave it out",
    "nodes": "leave it out, and start as many processes as you want by mpirun -n",
}
"""Fields that only a server can follow, and what to do instead."""

_KINDS: dict[int, tuple[type | tuple[type, ...], str]] = {
    FieldDescriptor.CPPTYPE_BOOL: (bool, "true or false"),
    FieldDescriptor.CPPTYPE_STRING: (str, "a text"),
    FieldDescriptor.CPPTYPE_DOUBLE: ((int, float), "a number"),
    FieldDescriptor.CPPTYPE_FLOAT: ((int, float), "a number"),
}

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
"""The least and the greatest whole number of a field."""


class SpecFileError(Exception):
    """The file cannot be read, or a key is at fault; the message names it."""


@dataclass(frozen=True)
class SpecFile:
    """What to train."""

    spec: pb.TrainSpec
    """The settings."""
    files: list[CorpusFile]
    """The corpus."""
    init_from: Path | None
    """The model file whose weights the run starts from; None: random weights."""


def read_spec_file(path: Path) -> SpecFile:
    """Reads a file.

    Args:
        path: The file; JSON where its name ends with .json, else TOML.

    Returns:
        What to train.

    Raises:
        SpecFileError: It cannot be read, or a key is at fault.
    """
    values = _parsed(path)
    folder = path.parent
    files = _files(values.pop(_FILES, None), folder)
    for name, remedy in _FOR_A_SERVER.items():
        if name in values:
            raise SpecFileError(f"{name} is for a server: {remedy}")
    spec = pb.TrainSpec()
    _fill(spec, values, "")
    init_from = folder / spec.init_from if spec.init_from else None
    if init_from is not None and not init_from.is_file():
        raise SpecFileError(f"init_from names {str(init_from)!r}, which is no file")
    spec.ClearField("init_from")
    return SpecFile(spec, files, init_from)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise SpecFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{path} is not text in UTF-8: save it as that") from error
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecFileError(f"{path} is not {kind}: {error}") from error
    if not isinstance(values, dict):
        raise SpecFileError(f"{path} must hold one JSON object")
    return values


def _files(table: object, folder: Path) -> list[CorpusFile]:
    """Returns the corpus that [files] names."""
    if not isinstance(table, Mapping):
        raise SpecFileError('the table [files] is missing: add train = "corpus.txt" under [files]')
    roles = [role.value for role in CorpusRole]
    files = []
    for key, value in table.items():
        if key not in roles:
            raise SpecFileError(f"files.{key} is no role of a file: it is {_or(roles)}")
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SpecFileError(f"files.{key} must be a path or a list of paths")
        for name in names:
            file = folder / name
            if not file.is_file():
                raise SpecFileError(f"files.{key} names {str(file)!r}, which is no file")
            files.append(CorpusFile(file, file.name, CorpusRole(key)))
    if not any(file.role is CorpusRole.TRAIN for file in files):
        raise SpecFileError('files.train is missing: add train = "corpus.txt" under [files]')
    return files


def _fill(message: Any, values: Mapping[str, Any], prefix: str) -> None:
    """Sets the fields of a message."""
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        place = f"{prefix}{name}"
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise SpecFileError(f"{place} is no field of a spec{hint}")
        field = fields[name]
        try:
            _set(message, field, value, place)
        except ValueError as error:
            raise SpecFileError(f"{place} cannot be {value!r}: {error}") from error


def _set(message: Any, field: Any, value: Any, place: str) -> None:
    """Sets one field.

    Raises:
        SpecFileError: The value is of another kind, or out of the range of the field.
        ValueError: A text has a character that UTF-8 has not.
    """
    if field.message_type is not None:
        if not isinstance(value, Mapping):
            raise SpecFileError(f"{place} must be a table: write [{place}] above its keys")
        if field.message_type.GetOptions().map_entry:
            kind = field.message_type.fields_by_name["value"]
            for key, each in value.items():
                getattr(message, field.name)[key] = _scalar(kind, each, f"{place}.{key}")
            return
        getattr(message, field.name).SetInParent()
        _fill(getattr(message, field.name), value, f"{place}.")
    elif field.is_repeated:
        if not isinstance(value, list):
            raise SpecFileError(f"{place} must be a list")
        for index, each in enumerate(value):
            getattr(message, field.name).append(_scalar(field, each, f"{place}[{index}]"))
    else:
        setattr(message, field.name, _scalar(field, value, place))


def _scalar(field: Any, value: object, place: str) -> Any:
    """Returns the value of a field that is no table.

    Raises:
        SpecFileError: It is of another kind, or out of the range of the field.
    """
    if field.enum_type is not None:
        return _number(field.enum_type, value, place)
    kind, text = _KINDS.get(field.cpp_type, (int, "a whole number"))
    least, greatest = _RANGES.get(field.cpp_type, (-math.inf, math.inf))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SpecFileError(f"{place} must be {text}, not {value!r}")
    if isinstance(value, int) and not least <= value <= greatest:
        raise SpecFileError(f"{place} must be {text} from {least:,} to {greatest:,}, not {value}")
    return value


def _number(kind: Any, value: object, place: str) -> int:
    """Returns the number of an enum's word."""
    words = [str(word_of(kind, each.number)) for each in kind.values if each.number]
    if value not in words:
        raise SpecFileError(f"{place} must be {_or(words)}, not {value!r}")
    return number_of(kind, str(value))


def _or(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
