"""The input of `treadle score-stream`: lines, events or chunks, as they come."""

from __future__ import annotations

import codecs
import json
import os
import re
import select
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.pieces import Piece

READ_BYTES = 64 * 1024

PIECE_CHARACTERS = 64 * 1024
"""Code points in one message; a longer line is several."""

EVENT = re.compile(r"\s*\S+\s*")
"""An event, with the white space that shows where it ends."""


class Input:
    """Bytes of a file or pipe as they come; `stop` ends it from a signal or another thread."""

    def __init__(self, file: Any) -> None:
        # A descriptor of its own, left open to the end of the process: a thread may wait in it.
        with file:
            self._descriptor = os.dup(file.fileno())
        self._waking, self._wake = os.pipe()
        self.stopped = False
        """Whether it was told to stop."""
        self.ended = True
        """Whether the line that was yielded last had an end: the last one of all may have none."""

    def stop(self) -> None:
        """Ends the input where it stands, also while it is waited for."""
        self.stopped = True
        os.write(self._wake, b".")

    def chunks(self) -> Iterator[bytes]:
        """Yields what there is as soon as there is anything."""
        while True:
            ready, _, _ = select.select([self._descriptor, self._waking], [], [])
            if self._waking in ready:
                return
            data = os.read(self._descriptor, READ_BYTES)
            if not data:
                return
            yield data

    def lines(self) -> Iterator[str]:
        """Yields lines without their ends, each as soon as it is whole; bad UTF-8 is replaced."""
        parts: list[bytes] = []
        for data in self.chunks():
            *whole, rest = data.split(b"\n")
            for line in whole:
                parts.append(line)
                yield _decoded(parts)
                parts = []
            if rest:
                parts.append(rest)
        if parts and not self.stopped:  # half a line is none
            self.ended = False
            yield _decoded(parts)

    def texts(self) -> Iterator[str]:
        """Yields text as it comes, never half a character; bad UTF-8 is replaced."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for data in self.chunks():
            if text := decoder.decode(data):
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest


def _decoded(parts: list[bytes]) -> str:
    """Puts a line together."""
    return b"".join(parts).removesuffix(b"\r").decode("utf-8", "replace")


class Unit(NamedTuple):
    """What one row tells of."""

    number: int
    """The line's number, or the chunk's, from 1."""
    text: str
    """What is shown of it."""
    pieces: list[Piece]
    """What is sent of it, in one piece unless it is long."""


def units(
    source: Input, per: str, items: bool, extract: Callable[[str, int], str] | None = None
) -> Iterator[Unit]:
    """Cuts the input into units.

    Args:
        source: The input.
        per: What a unit is: `line`, `event` or `chunk`.
        items: Whether the model's corpus has an item a line.
        extract: Takes the text out of a line with a number; None takes the line itself.

    Yields:
        Units. Lines without anything in them are left out where a line is an item.

    Raises:
        InputError: There is no text in a line.
    """
    if per == "chunk":
        for number, text in enumerate(source.texts(), 1):
            yield _unit(number, text, text, end=False)
        return
    for number, line in enumerate(source.lines(), 1):
        text = line if extract is None else extract(line, number)
        if items and not text.strip():
            continue
        sent = text if items or not source.ended else text + "\n"
        if per == "line":
            yield _unit(number, text, sent, end=items)
            continue
        events = EVENT.findall(sent) or [sent]
        for place, event in enumerate(events, 1):
            yield _unit(number, event.strip(), event, end=items and place == len(events))


def _unit(number: int, shown: str, sent: str, *, end: bool) -> Unit:
    """Makes a unit of as many pieces as it takes."""
    from treadle.client.pieces import Piece

    starts = range(0, max(1, len(sent)), PIECE_CHARACTERS)
    pieces = [Piece(sent[at : at + PIECE_CHARACTERS], end and at == starts[-1]) for at in starts]
    return Unit(number, shown, pieces)


def json_field(column: str) -> Callable[[str, int], str]:
    """Makes what takes a field out of a line of JSON, as training on JSON lines does.

    Args:
        column: The field's name; dots lead into objects.
    """

    def extract(line: str, number: int) -> str:
        if not line.strip():
            return ""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} is no JSON: {error}") from error
        if isinstance(value, dict) and column in value:
            return _item(value[column], column, number)
        for name in column.split("."):
            if not isinstance(value, dict) or name not in value:
                raise InputError(f"line {number} has no field {column!r}: name one with --column")
            value = value[name]
        return _item(value, column, number)

    return extract


def _item(value: object, column: str, number: int) -> str:
    """Turns a field's value into text: a text, a number, or a list of these."""
    if isinstance(value, list):
        return " ".join(_item(part, column, number) for part in value)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise InputError(f"line {number}: field {column!r} holds no text, number or list of these")
