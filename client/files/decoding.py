"""`Decoder` and `cut_lines` turn bytes into text and lines, as training does.

One byte order mark at the beginning is left out, and a line ends with LF or CR LF. The client and
the server are held to the same examples in `tests/vectors/text_input.json`. The command line and
`read_text` and `read_lines` for Python programs use this module.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from treadle.client.errors import InputError
from treadle.client.files.paths import display_path, open_file

Errors = Literal["strict", "ignore", "replace"]
"""The treatment of bytes that are not text: refuse, leave out, or replace by U+FFFD."""

READ_BYTES = 64 * 1024

MAX_LINE = 1 << 24
"""The most characters of a line."""

_BOM = "\ufeff"

_BOM_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
"""Encodings whose decoders leave a byte order mark in the text."""

_NOT_OF_FILES = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")
"""Text encodings of Python's that are for names and source code."""

_FOREIGN_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte order marks that no UTF-8 begins with; of two that begin alike the longer is first."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_ALONE = re.compile(rb"(?<=[A-Za-z ])[\xa0-\xff](?=[A-Za-z ,.])")

_MARK = "treadle-mark"
"""The error handler that replaces each byte n that is not text by the lone surrogate U+DC00 + n. No
decoder makes those, so they are found later, in their line."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in bad), error.end


codecs.register_error(_MARK, _mark)


class TextSource(NamedTuple):
    """A source of text: its name in messages and its encoding."""

    title: str
    """The file's name, or `standard input`."""
    encoding: str = "utf-8"
    """Its encoding: any of Python's for text files."""
    errors: Errors = "strict"
    """The treatment of bytes that are not text."""
    flag: str = "encoding="
    """The argument or flag of the encoding, for messages."""

    def decoder(self, *, mark: bool = False) -> Decoder:
        """Returns a decoder of the source.

        Args:
            mark: Replace bytes that are refused by surrogates; see `fault`.

        Raises:
            InputError: There is no such encoding.
        """
        return Decoder(self, mark=mark)

    def fault(self, line: str) -> str | None:
        """Returns the fault of a line that was decoded with `mark` as a clause, or None."""
        found = _SURROGATE.search(line)
        if found is None:
            return None
        code = ord(found[0])
        if not 0xDC00 <= code <= 0xDCFF:
            return "it holds half of a surrogate pair, which is no character"
        begin = found.start()
        mark = "".encode(self.encoding)  # the byte order mark that some encodings begin with
        place = f"{len(line[:begin].encode(self.encoding)) - len(mark)} of the line"
        near = bytes(_rough_byte(each) for each in line[max(0, begin - 99) : begin + 99])
        return f"it is not {self._not_text(near, code - 0xDC00, place)}"

    def refusal(self, fault: UnicodeDecodeError) -> InputError:
        """Returns the error of a whole text that cannot be decoded."""
        byte = fault.object[fault.start]
        return InputError(f"{self.title} is not {self._not_text(fault.object, byte, fault.start)}")

    def _not_text(self, data: bytes, byte: int, place: object) -> str:
        looks = ""
        remedy = f"give {self.flag}NAME for its encoding"
        if _ALONE.search(data):
            looks = " (it looks like Latin-1)"
            remedy = f"give {self.flag}latin-1"
        return f"{self.encoding_name}{looks}: byte 0x{byte:02X} at offset {place}; {remedy}"

    @property
    def encoding_name(self) -> str:
        """The encoding's name for a sentence."""
        return "UTF-8" if _name(self.encoding) == "utf-8" else self.encoding


class Decoder:
    """Turns bytes into text as they arrive, never half a character.

    Args:
        source: The source of the bytes.
        mark: Replace bytes that are refused by surrogates.

    Raises:
        InputError: There is no such encoding.
    """

    def __init__(self, source: TextSource, *, mark: bool = False) -> None:
        self._source = source
        self._name = _name(source.encoding)
        if not self._name:
            raise InputError(
                f"{source.flag}{source.encoding!r} is not a text encoding such as utf-8 or latin-1"
            )
        errors = _MARK if mark and source.errors == "strict" else source.errors
        self._decoder = codecs.getincrementaldecoder(self._name)(errors)
        self._head = b""
        self._checked = self._name != "utf-8"
        self._begun = self._name not in _BOM_ENCODINGS

    def decode(self, data: bytes, *, final: bool = False) -> str:
        """Decodes the next bytes.

        Returns:
            The text that is complete now.

        Raises:
            InputError: The byte order mark is that of another encoding, or bytes are not text.
        """
        if not self._checked:
            data = self._head + data
            self._head = b""
            if not final and any(
                len(data) < len(mark) and mark.startswith(data) for mark, _ in _FOREIGN_BOMS
            ):
                self._head = data
                return ""
            self._check_mark(data)
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as fault:
            raise self._source.refusal(fault) from None
        except UnicodeError as fault:  # UTF-16 without its byte order mark, for one
            source = self._source
            raise InputError(
                f"{source.title} is not {source.encoding_name}: {fault}; give "
                f"{source.flag}NAME for its encoding"
            ) from None
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix(_BOM)
        return text

    def _check_mark(self, head: bytes) -> None:
        self._checked = True
        for mark, name in _FOREIGN_BOMS:
            if head.startswith(mark):
                source = self._source
                raise InputError(
                    f"{source.title} is not UTF-8 (it begins with the byte order mark of {name}): "
                    f"give {source.flag}{name.lower()}"
                )


class Line(NamedTuple):
    """A line of text."""

    text: str
    """Its characters, without the end."""
    end: str
    r"""Its end: "\n" or "\r\n"; empty for a last line without one."""
    fault: str = ""
    """Why it is not text, in a clause that begins with `it`; `text` is then only for display."""


class LineCutter:
    """Cuts text that arrives in pieces into lines.

    Args:
        source: The source of the text, which was decoded with `mark`.
    """

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._parts: list[str] = []
        self._size = 0

    def push(self, text: str) -> Iterator[Line]:
        """Yields the lines that end in the next piece."""
        *whole, rest = text.split("\n")
        for part in whole:
            self._keep(part)
            yield self._line("\n")
        self._keep(rest)

    def end(self) -> Iterator[Line]:
        """Yields the last line, if it has no end."""
        if self._size:
            yield self._line("")

    def _keep(self, part: str) -> None:
        if part and self._size <= MAX_LINE:  # a longer line is refused, so the rest is dropped
            self._parts.append(part)
        self._size += len(part)

    def _line(self, end: str) -> Line:
        size = self._size
        text = "".join(self._parts)
        self._parts = []
        self._size = 0
        if size > MAX_LINE:
            fault = f"it is too long: a line has up to {MAX_LINE:,} characters"
            return Line(replace_surrogates(text[:1000]), end, fault)
        if text.endswith("\r"):
            text = text[:-1]
            end = "\r" + end
        fault = self._source.fault(text) or ""
        return Line(replace_surrogates(text) if fault else text, end, fault)


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which stand for bytes that are not text, by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def decode_text(data: bytes, source: TextSource) -> str:
    """Decodes a whole text.

    Returns:
        The text.

    Raises:
        InputError: The bytes are not text of the encoding.
    """
    text = source.decoder().decode(data, final=True)
    if _SURROGATE.search(text):
        raise InputError(f"{source.title} holds half of a surrogate pair, which is no character")
    return text


def cut_lines(blocks: Iterable[bytes], source: TextSource) -> Iterator[Line]:
    """Yields the lines of bytes that arrive in blocks, each as soon as it is whole.

    Raises:
        InputError: The byte order mark is that of another encoding.
    """
    decoder = source.decoder(mark=True)
    cutter = LineCutter(source)
    for block in blocks:
        yield from cutter.push(decoder.decode(block))
    yield from cutter.push(decoder.decode(b"", final=True))
    yield from cutter.end()


def read_text(
    path: str | os.PathLike[str], encoding: str = "utf-8", errors: Errors = "strict"
) -> str:
    """Reads a text file as training does: without its byte order mark.

    Args:
        path: The file.
        encoding: Its encoding.
        errors: The treatment of bytes that are not text.

    Returns:
        The text.

    Raises:
        InputError: The file cannot be read, or is not text of the encoding.
    """
    with open_file(path) as file:
        return decode_text(file.readall(), TextSource(display_path(path), encoding, errors))


def read_lines(
    path: str | os.PathLike[str], encoding: str = "utf-8", errors: Errors = "strict"
) -> Iterator[str]:
    """Yields the items of a text file as training does: its lines, without the empty ones.

    Raises:
        InputError: The file cannot be read, or a line is not text of the encoding.
    """
    with open_file(path) as file:
        source = TextSource(display_path(path), encoding, errors)
        for number, line in enumerate(
            cut_lines(iter(lambda: file.read(READ_BYTES), b""), source), 1
        ):
            if line.fault:
                raise InputError(f"{source.title}, line {number:,}: {line.fault}")
            if line.text:
                yield line.text


def _rough_byte(character: str) -> int:
    """Returns a character of ASCII, or the byte that a surrogate stands for; else that of "?"."""
    code = ord(character)
    return code & 0xFF if code < 128 or 0xDC00 <= code <= 0xDCFF else ord("?")


def _name(encoding: str) -> str:
    """Returns Python's name of an encoding of text files; empty for another word."""
    try:
        known = codecs.lookup(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        return ""
    is_text = getattr(known, "_is_text_encoding", True) and known.name not in _NOT_OF_FILES
    return known.name if is_text else ""
