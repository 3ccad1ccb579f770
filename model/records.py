"""Items from JSON lines and from comma-separated values.

JSON lines: each line holds one JSON object, and an item is one of its fields; dots in the field's
name lead into objects. CSV is RFC 4180 with a header line; where the header has no comma but a
tab or a semicolon, that separates.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator

from treadle.model.config import CorpusFormat, UnknownPolicy
from treadle.model.corpus_files import CorpusFile, line_blocks
from treadle.model.errors import CorpusError

_LONGEST_FIELD = 1 << 30


def records(
    file: CorpusFile, kind: CorpusFormat, column: str, encoding: str, policy: UnknownPolicy
) -> Iterator[str]:
    """Yields the items of a file, empty ones too.

    Args:
        file: The file.
        kind: JSONL or CSV.
        column: The field or column.
        encoding: How it encodes text.
        policy: What to do with bytes that are no text.

    Raises:
        CorpusError: A line is no JSON object, or lacks the field; the header lacks the column,
            or a record is malformed. The message names file and line.
        EncodingError: It is not of that encoding, and the policy is ERROR.
        OSError: It cannot be read.
    """
    lines = _lines(file, encoding, policy)
    if kind is CorpusFormat.JSONL:
        return _json_items(file, lines, column)
    return _csv_items(file, lines, column)


def _lines(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    for block in line_blocks(file, encoding, policy):
        # Not splitlines: it also cuts at separators that may stand within a field.
        for line in block.removesuffix("\n").split("\n"):
            yield line + "\n"


def _json_items(file: CorpusFile, lines: Iterator[str], column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        where = f"{file.title}, line {number:,}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as fault:
            raise CorpusError(f"{where}: it is no JSON: {fault}") from None
        yield _text(_field(value, column, where), column, where)


def _field(value: object, column: str, where: str) -> object:
    """Returns a field of an object, by its own name or along its dots."""
    if isinstance(value, dict) and column in value:
        return value[column]
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(repr, value)) if isinstance(value, dict) else "no fields"
            raise CorpusError(
                f"{where}: there is no field {column!r}; it has {has[:200]}: set column"
            )
        value = value[name]
    return value


def _text(value: object, column: str, where: str) -> str:
    """Returns a field's value as an item: a text, a number, or a list of these."""
    if isinstance(value, list):
        return " ".join(_text(part, column, where) for part in value)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return json.dumps(value)
    kind = "null" if value is None else type(value).__name__
    raise CorpusError(f"{where}: the field {column!r} holds {kind}, and no text, number or list")


def _csv_items(file: CorpusFile, lines: Iterator[str], column: str) -> Iterator[str]:
    header = next(lines, "")
    separator = "," if "," in header else next((mark for mark in "\t;" if mark in header), ",")
    (names,) = list(csv.reader([header], delimiter=separator)) or [[]]
    if column not in names:
        has = ", ".join(map(repr, names))
        raise CorpusError(f"{file.title} has no column {column!r}; it has {has[:500]}: set column")
    place = names.index(column)
    before = csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for record in reader:
            if not record:
                continue
            if len(record) <= place:
                number = reader.line_num + 1
                text = f"it has {len(record)} columns, and {column!r} is number {place + 1}"
                raise CorpusError(f"{file.title}, line {number:,}: {text}")
            yield record[place]
    except csv.Error as fault:
        raise CorpusError(f"{file.title}, line {reader.line_num + 1:,}: {fault}") from None
    finally:
        csv.field_size_limit(before)
