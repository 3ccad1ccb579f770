"""`read_text` and `input_lines` read the text of a file or of standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.files.decoding import Line, TextSource


def open_input(path: str) -> Any:
    """Opens a file, or standard input for "-", for reading bytes.

    Both are unbuffered: a thread may be waiting in a read when the program ends, and must not
    hold the lock of a buffer then.

    Returns:
        The open file.

    Raises:
        InputError: The file cannot be opened.
    """
    from treadle.client.files.paths import open_file

    if path == "-":
        if sys.stdin is None:
            raise InputError("cannot read standard input: it is closed")
        if sys.stdin.isatty():
            print("treadle: reading from the terminal; Ctrl-D ends it", file=sys.stderr)
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    return open_file(path)


def text_source(args: argparse.Namespace, path: str) -> TextSource:
    """Returns how a file, or standard input for "-", is decoded.

    Bytes that are not text follow --unknown, as in training; without it they are refused.
    """
    from treadle.client.files.decoding import Errors, TextSource

    handlers: dict[str, Errors] = {"skip": "ignore", "unknown": "replace"}
    errors = handlers.get(getattr(args, "unknown_policy", ""), "strict")
    return TextSource(input_name(path), args.encoding, errors, "--encoding ")


def read_text(args: argparse.Namespace, path: str) -> str:
    """Reads a whole file, or standard input for "-", as text.

    Returns:
        The text.

    Raises:
        InputError: It cannot be read, or is not of its encoding.
    """
    from treadle.client.files.decoding import decode_text

    try:
        with open_input(path) as file:
            return decode_text(bytes(file.readall()), text_source(args, path))
    except OSError as error:
        raise InputError(f"cannot read {input_name(path)}: {error.strerror}") from error


def input_lines(args: argparse.Namespace, path: str) -> Iterator[Line]:
    """Yields the lines of a file, or of standard input for "-", each as soon as it is whole.

    Raises:
        InputError: The file cannot be read, or has the byte order mark of another encoding.
    """
    from treadle.client.files.decoding import READ_BYTES, cut_lines

    source = text_source(args, path)
    try:
        with open_input(path) as file:
            yield from cut_lines(iter(lambda: file.read(READ_BYTES), b""), source)
    except OSError as error:
        raise InputError(f"cannot read {source.title}: {error.strerror}") from error


def input_name(path: str) -> str:
    """Returns the name of an input for a sentence."""
    from treadle.client.files.paths import display_path

    return "standard input" if path == "-" else display_path(path)
