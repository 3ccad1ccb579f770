"""`format_of` finds the format of corpus files by the ends of their names."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.client.errors import InputError

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
"""Formats, as words of CorpusFormat, by what a name ends in."""

_PACKED = {
    ".gz": "gunzip -c",
    ".bz2": "bunzip2 -c",
    ".xz": "xz -dc",
    ".zst": "zstd -dc",
    ".zip": "unzip -p",
}
"""The program that writes the content of a compressed file to standard output."""

_TABLES = (".parquet", ".feather", ".xlsx", ".xls", ".ods")
"""Tables that are not text."""


def format_of(names: Sequence[str], option: str) -> str | None:
    """Returns the format of files that are read with one format.

    Args:
        names: The files' names or paths; an empty name, and "-", has no end.
        option: How the caller sets the format, such as "--format", for messages.

    Returns:
        A word of CorpusFormat; None where no name ends in a known suffix.

    Raises:
        InputError: The names stand for different formats.
    """
    found = {name: FORMATS.get(_end(name)) for name in names}
    formats = set(found.values())
    if len(formats) <= 1:
        return formats.pop() if formats else None
    examples: dict[str | None, str] = {}
    for name in names:
        examples.setdefault(found[name], name)
    found_formats = [
        f"{_display_name(name)} is {kind or 'of no known format'}"
        for kind, name in examples.items()
    ]
    raise InputError(
        f"by their names, {' and '.join(found_formats)}: give one format with {option}"
    )


def check_readable(names: Sequence[str], option: str) -> None:
    """Refuses files whose names end like those of files that are not text.

    Args:
        names: The files' names or paths.
        option: How the caller sets the tokenizer, such as "--tokenizer bytes", for messages.

    Raises:
        InputError: A file is compressed, or a table that is not text.
    """
    for name in names:
        end = _end(name)
        if end in _PACKED:
            raise InputError(
                f"{name} is compressed: unpack it first, such as with "
                f"`{_PACKED[end]} {name} > FILE`; {option} reads it as it is"
            )
        if end in _TABLES:
            raise InputError(
                f"{name} is a table that is not text: save it as CSV; {option} reads it as it is"
            )


def _end(name: str) -> str:
    """Returns what a name ends in from its last dot on, in lower case."""
    base = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, end = base.rpartition(".")
    return f".{end.lower()}" if dot and stem else ""


def _display_name(name: str) -> str:
    return "standard input" if name == "-" else name or "a file without a name"
