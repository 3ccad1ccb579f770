"""`LabeledText` is a text to send to the server with its label in the output."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from treadle.client.cli.input.text_input import input_lines, input_name
from treadle.client.errors import InputError, InvalidArgumentError, text_at_fault

Answer = TypeVar("Answer")


class LabeledText(NamedTuple):
    """A text to send, and its label in the output."""

    text: str
    """The text."""
    label: dict[str, Any]
    """Fields of its JSON object: the text, unless it is a whole file, and its line."""


def labeled_lines(args: argparse.Namespace, path: str) -> Iterator[LabeledText]:
    """Yields the lines of a file one by one, without their ends; empty ones are left out.

    Raises:
        InputError: The file cannot be read, or a line is not of its encoding.
    """
    for number, line in enumerate(input_lines(args, path), 1):
        if line.fault:
            raise InputError(f"{input_name(path)}, line {number:,}: {line.fault}")
        if line.text:
            yield LabeledText(line.text, {"line": number, "text": line.text})


def with_labels(
    texts: Iterable[LabeledText], answers: Iterable[Answer]
) -> Iterator[tuple[LabeledText, Answer]]:
    """Yields texts with the server's answers; the error of a refused line names the line.

    Raises:
        InvalidArgumentError: A text is at fault.
    """
    newest: list[LabeledText] = []

    def noting_newest() -> Iterator[LabeledText]:
        for text in texts:
            newest[:] = [text]
            yield text

    try:
        yield from zip(noting_newest(), answers, strict=True)
    except InvalidArgumentError as error:
        if not newest or "line" not in newest[0].label or text_at_fault(error) is None:
            raise
        raise error.placed(f"line {newest[0].label['line']:,}") from error
