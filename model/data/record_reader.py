r"""`RecordReader` reads items from JSON lines and from comma-separated values.

JSON lines: each line holds one JSON object, and an item is one of its fields; dots in the field's
name refer to nested objects. `tests/vectors/json_items.json` defines the rule by examples; the
client's score-stream follows the same rule.

CSV is RFC 4180 with a header, which is the first record. The separator is the first of comma, tab,
semicolon and "|" with which the header has the column, or the one declared by a first line
such as "sep=;", as written by Excel. A record ends with "\n", "\r\n" or a bare "\r".
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from treadle.model.data.files import CorpusFile, line_blocks, universal_lines
from treadle.model.enums import CorpusFormat, MissingPolicy, UnknownPolicy
from treadle.model.errors import CorpusError, UnknownSymbolError
from treadle.model.tokenizers.surrogates import handle_surrogates

if TYPE_CHECKING:
    from treadle.model.config import DataConfig

MAX_FIELD = 1 << 24
"""Most characters of a CSV field."""

MAX_DEPTH = 100
"""Most levels of nested lists in a JSON field."""

_SEPARATORS = ",\t;|"
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)


class _MissingError(CorpusError):
    """A row without text."""


class RecordReader:
    """Reads the items of files of records.

    Args:
        data: Format, column and encoding of the files, and what to do with rows without text.
        policy: What to do with bytes that are not text, and with halves of surrogate pairs.
    """

    def __init__(self, data: DataConfig, policy: UnknownPolicy) -> None:
        self._data = data
        self._policy = policy
        self.missing = 0
        """Rows without text that were left out."""

    def items(self, file: CorpusFile) -> Iterator[str]:
        """Yields the items of a file, empty ones too.

        Returns:
            An iterator of the items.

        Raises:
            CorpusError: A line is not a JSON object or a record is malformed; the header lacks
                the column; a row has no text, and `data.missing` is ERROR; an item is not text,
                and the policy is ERROR. The message names file and line.
            EncodingError: The file does not have that encoding, and the policy is ERROR.
            OSError: The file cannot be read.
        """
        if self._data.format is CorpusFormat.JSONL:
            return self._json_items(file)
        return self._csv_items(file)

    def _skip(self, missing: _MissingError) -> None:
        """Skips a row without text, or raises the error about it, by `data.missing`."""
        if self._data.missing is not MissingPolicy.SKIP:
            raise CorpusError(f"{missing}, or set data.missing to 'skip'") from None
        self.missing += 1

    def _json_items(self, file: CorpusFile) -> Iterator[str]:
        for number, line in enumerate(_lines(file, self._data.encoding, self._policy), 1):
            if line.isspace():
                continue
            where = f"{file.title}, line {number:,}"
            try:
                item = json_item(line, self._data.column, where)
            except _MissingError as missing:
                self._skip(missing)
                continue
            try:
                yield handle_surrogates(item, self._policy)
            except UnknownSymbolError as fault:
                raise CorpusError(
                    f"{where}: the field {self._data.column!r} holds half of a surrogate pair "
                    f"(U+{ord(fault.symbol):04X}), which is not a character: take it out, or set "
                    "unknown_policy to 'skip'"
                ) from None

    def _csv_items(self, file: CorpusFile) -> Iterator[str]:
        column = self._data.column
        lines = universal_lines(file, self._data.encoding, self._policy)
        table = _CsvTable(file.title, lines, column)
        for number, record in table.records():
            if any(map(str.strip, record[table.width :])):
                raise CorpusError(
                    f"{file.title}, line {number:,}: it has {_columns(record)}, and the header "
                    f"{table.width:,}: quote fields that hold {table.separator!r}"
                )
            if len(record) > table.place:
                yield record[table.place]
            elif any(map(str.strip, record)):
                self._skip(
                    _MissingError(
                        f"{file.title}, line {number:,}: it has {_columns(record)}, and {column!r} "
                        f"is number {table.place + 1}: complete the record"
                    )
                )


def _columns(record: list[str]) -> str:
    return "1 column" if len(record) == 1 else f"{len(record):,} columns"


def _lines(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    for block in line_blocks(file, encoding, policy):
        # Not splitlines: it also splits at separators that a field may hold.
        for line in block.removesuffix("\n").split("\n"):
            yield line + "\n"


def json_item(line: str, column: str, where: str) -> str:
    """Returns the item of a line of JSON.

    Args:
        line: The line; not empty.
        column: The field; dots refer to nested objects.
        where: File and line, for error messages.

    Raises:
        CorpusError: The line is not a JSON object, or its field is missing, null, or not a
            text, a number or a list of these.
    """
    try:
        # Numbers keep their spelling, with all digits.
        value = json.loads(line, parse_int=str, parse_float=str)
    except RecursionError:
        raise CorpusError(f"{where}: nested too deeply to be read") from None
    except json.JSONDecodeError as fault:
        raise CorpusError(f"{where}: {_not_json(line, fault)}") from None
    return _text(_field(value, column, where), column, where)


def _not_json(line: str, fault: json.JSONDecodeError) -> str:
    if "\r" in line.strip():
        return "it is not JSON: a bare carriage return does not end a line; convert the line ends"
    reason = fault.msg.removesuffix(" at").removesuffix(" starting")
    return f"it is not JSON: {reason} at character {fault.pos + 1:,}"


def _field(value: object, column: str, where: str) -> object:
    """Returns a field of an object, by its name or by the names of nested objects."""
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: it holds {_kind(value)}, and an object is needed")
    if column in value:
        return value[column]
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            has = ", ".join(map(repr, value)) if isinstance(value, dict) else "no fields"
            raise _MissingError(
                f"{where}: there is no field {column!r}; it has {has[:200] or 'no fields'}: set "
                "data.column"
            )
        value = value[name]
    return value


def _text(value: object, column: str, where: str, depth: int = 0) -> str:
    """Returns a field's value as an item: a text, a number, or a list of these."""
    if isinstance(value, str):  # or a number, which keeps its spelling
        return value
    if isinstance(value, list):
        if depth == MAX_DEPTH:
            text = f"the field {column!r} holds lists more than {MAX_DEPTH} deep"
            raise CorpusError(f"{where}: nested too deeply: {text}")
        return " ".join([_text(part, column, where, depth + 1) for part in value])
    if value is None and depth == 0:
        raise _MissingError(f"{where}: the field {column!r} holds null: give it a text")
    raise CorpusError(
        f"{where}: the field {column!r} holds {_kind(value)}, and must hold a text, a number or a "
        "list of these"
    )


def _kind(value: object) -> str:
    """Returns the JSON name of a value."""
    if isinstance(value, float):  # the only numbers that do not keep their spelling
        return "a number that JSON does not have (NaN or an infinity)"
    words = {dict: "an object", list: "a list", bool: "true or false", str: "a text or a number"}
    return words.get(type(value), "null")


class _RewindableLines:
    """Lines of a file, the last of which can be read again.

    Args:
        source: The lines, with their ends.
    """

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self.kept: list[str] = []
        """The lines read since the last `forget`."""
        self.first = 1
        """The number of the first kept line, from 1."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._source)
        self.kept.append(line)
        return line

    @property
    def last(self) -> int:
        """The number of the last line that was read."""
        return self.first + len(self.kept) - 1

    def forget(self) -> None:
        """Drops the kept lines."""
        self.first += len(self.kept)
        self.kept.clear()

    def rewind(self) -> None:
        """Returns to the first kept line, so that the kept lines are read again."""
        self._source = itertools.chain(self.kept, self._source)
        self.kept = []


class _CsvTable:
    """The records of a CSV file.

    Args:
        title: The file's name in messages.
        lines: Its lines, with their ends.
        column: The column that the header must have.

    Raises:
        CorpusError: The header is missing, malformed, or lacks the column.
    """

    def __init__(self, title: str, lines: Iterator[str], column: str) -> None:
        _raise_field_limit()
        self._title = title
        self._lines = _RewindableLines(lines)
        self.separator, names = self._header(column)
        """The separator of fields."""
        self.width = len(names)
        """Number of columns of the header."""
        self.place = names.index(column)
        """The index of the column, from 0."""

    def _header(self, column: str) -> tuple[str, list[str]]:
        """Returns the separator and the names of the columns; the lines are rewound."""
        headers = []
        faults = []
        for separator in self._separators():
            try:
                _, names = next(self._records(separator), (0, []))
            except CorpusError as fault:
                faults.append(fault)
            else:
                if column in names:
                    self._lines.rewind()
                    return separator, names
                headers.append(names)
            self._lines.rewind()
        names = max(headers, key=len, default=[])
        if len(names) < 2 and faults:
            raise faults[0]
        has = ", ".join(map(repr, names)) or "no header"
        raise CorpusError(
            f"{self._title} has no column {column!r}; it has {has[:500]}: set data.column"
        )

    def _separators(self) -> str:
        """Returns the possible separators; consumes a line that declares one."""
        declared = _SEPARATOR_LINE.fullmatch(next(self._lines, ""))
        if declared is None:
            self._lines.rewind()
            return _SEPARATORS
        self._lines.forget()
        return declared[1]

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the records after the header, each with the number of its first line, from 1.

        Raises:
            CorpusError: A record is malformed.
        """
        records = self._records(self.separator)
        next(records)
        self._lines.forget()
        for record in records:
            yield record
            self._lines.forget()

    def _records(self, separator: str) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self._lines, delimiter=separator, strict=True)
        try:
            for record in reader:
                yield self._lines.first, record
        except csv.Error as fault:
            self._raise_malformed(separator, str(fault))

    def _raise_malformed(self, separator: str, fault: str) -> NoReturn:
        """Raises the error about the record that was being read."""
        number = self._lines.last
        if fault == "unexpected end of data":
            number = self._open_quotation(separator)
            fault = "the quotation that opens here is not closed"
        elif "field larger" in fault:
            number = self._lines.first
            fault = f"a field has more than {MAX_FIELD:,} characters: close its quotation"
        elif "expected after" in fault:
            fault = (
                f"a quotation is followed by something else than {separator!r} or the end of the "
                "line: double the quotes within it"
            )
        raise CorpusError(f"{self._title}, line {number:,}: {fault}") from None

    def _open_quotation(self, separator: str) -> int:
        """Returns the number of the line that opens the unclosed quotation."""
        # Read leniently, all text after the open quote is the last field.
        (record,) = csv.reader(self._lines.kept, delimiter=separator)
        content = record[-1]
        ends = content.count("\n") + content.count("\r")
        # The line end at the end of the file does not begin another line.
        return self._lines.last - ends + content.endswith(("\n", "\r"))


def _raise_field_limit() -> None:
    """Raises the limit of the csv module to MAX_FIELD characters.

    The limit applies to the whole process. It is never lowered, since another thread may be
    reading, and two threads that raise it set the same value.
    """
    if csv.field_size_limit() < MAX_FIELD:
        csv.field_size_limit(MAX_FIELD)
