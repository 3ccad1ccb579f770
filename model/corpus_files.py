r"""The files of a corpus, read in blocks: never more of one in memory than a few megabytes.

A block ends where a symbol surely ends: before white space that follows something else, for
tokenizers that read more than a character at a time; after a line's end, for items; anywhere, for
characters. Where there is no such place, a block grows until there is one.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from treadle.model.config import CorpusRole, UnknownPolicy
from treadle.model.errors import ConfigError, CorpusError, EncodingError

BLOCK = 1 << 20
"""Bytes read together."""

_BOM = codecs.BOM_UTF8
_ON_BAD_BYTES = {
    UnknownPolicy.ERROR: "strict",
    UnknownPolicy.SKIP: "ignore",
    UnknownPolicy.UNKNOWN: "replace",
}

Cut = Callable[[str], int]
"""Returns how much of a text may be handed out; what follows waits for more."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    Raises:
        ConfigError: The weight is out of its range.
    """

    data: bytes | os.PathLike[str]
    """Its bytes, or where it is."""
    name: str = "corpus"
    """What to call it in messages."""
    role: CorpusRole = CorpusRole.TRAIN
    """What it is for."""
    weight: float = 1.0
    """Training files: how often a pass reads it; above 0, at most 100."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 100:
            text = f"the weight of a file must be above 0 and at most 100, not {self.weight!r}"
            raise ConfigError(text, "weight")

    @property
    def title(self) -> str:
        """The file as sentences name it."""
        return "the corpus" if self.name == "corpus" else f"the file {self.name!r}"

    @property
    def size(self) -> int:
        """Its bytes."""
        data = self.data
        return Path(data).stat().st_size if isinstance(data, os.PathLike) else len(data)

    def open(self) -> BinaryIO:
        """Opens it for reading."""
        if isinstance(self.data, os.PathLike):
            return Path(self.data).open("rb", buffering=0)
        return io.BytesIO(self.data)

    def byte_blocks(self) -> Iterator[bytes]:
        """Yields its bytes."""
        with self.open() as file:
            while block := file.read(BLOCK):
                yield block


def check_encoding(encoding: str) -> None:
    """Checks that an encoding is one of text.

    Raises:
        ConfigError: It is not.
    """
    try:
        known = codecs.lookup(encoding)
    except (LookupError, ValueError):
        known = None
    if known is None or not getattr(known, "_is_text_encoding", True):
        text = (
            f"data.encoding must be a text encoding such as 'utf-8' or 'latin-1', not {encoding!r}"
        )
        raise ConfigError(text, "data.encoding")


def anywhere(text: str) -> int:
    """A `Cut`: all of it."""
    return len(text)


def at_blank(text: str) -> int:
    """A `Cut`: up to the last white space that follows something else."""
    cut = max(text.rfind(" "), text.rfind("\n"))
    while cut > 0 and text[cut - 1].isspace():
        cut -= 1
    return max(cut, 0)


def at_line(text: str) -> int:
    """A `Cut`: up to and with the last line's end."""
    return text.rfind("\n") + 1


def text_blocks(file: CorpusFile, encoding: str, policy: UnknownPolicy, cut: Cut) -> Iterator[str]:
    """Yields the text of a file.

    Args:
        file: The file.
        encoding: How it encodes text; a byte order mark of UTF-8 is left out.
        policy: What to do with bytes that are no text.
        cut: Where a block may end.

    Raises:
        EncodingError: It is not of that encoding, and the policy is ERROR.
        OSError: It cannot be read.
    """
    held: list[str] = []
    for text in _decoded(file, encoding, policy):
        end = cut(text)
        if end:
            yield "".join([*held, text[:end]])
            held = [text[end:]]
        else:
            held.append(text)
    rest = "".join(held)
    if rest:
        yield rest


def line_blocks(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    r"""Yields whole lines of a file, each ended by "\n", whether it was by "\n" or "\r\n"."""
    for text in text_blocks(file, encoding, policy, at_line):
        lines = text.replace("\r\n", "\n")
        # Only the last block may lack its end.
        yield lines if lines.endswith("\n") else lines.removesuffix("\r") + "\n"


def byte_lines(file: CorpusFile) -> Iterator[bytes]:
    r"""Yields whole lines of a file of bytes, as `line_blocks` does."""
    held = b""
    for block in file.byte_blocks():
        data = held + block
        cut = data.rfind(b"\n") + 1
        held = data[cut:]
        if cut:
            yield data[:cut].replace(b"\r\n", b"\n")
    if held:
        yield held.removesuffix(b"\r") + b"\n"


def _decoded(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(_ON_BAD_BYTES[policy])
    utf8 = codecs.lookup(encoding).name == "utf-8"
    offset = 0
    for block in file.byte_blocks():
        data = block
        if utf8 and not offset and block.startswith(_BOM):
            data, offset = block[len(_BOM) :], len(_BOM)
        try:
            waiting = len(decoder.getstate()[0])
            text = decoder.decode(data)
        except UnicodeDecodeError as fault:
            raise _not_text(file, encoding, fault, offset - waiting, block) from None
        except UnicodeError as fault:  # UTF-16 without its byte order mark, for one
            text = f"{file.title} is not {encoding}: {fault}; set encoding to what it is"
            raise EncodingError(text, offset) from None
        offset += len(data)
        if text:
            yield text
    try:
        waiting = len(decoder.getstate()[0])
        rest = decoder.decode(b"", final=True)
    except UnicodeDecodeError as fault:
        raise _not_text(file, encoding, fault, offset - waiting, b"") from None
    if rest:
        yield rest


def _not_text(
    file: CorpusFile, encoding: str, fault: UnicodeDecodeError, base: int, block: bytes
) -> EncodingError:
    offset = base + fault.start
    shown = "UTF-8" if codecs.lookup(encoding).name == "utf-8" else encoding
    guess, remedy = _guess(fault.object if offset else block)
    return EncodingError(
        f"{file.title} is not {shown}{guess}: byte 0x{fault.object[fault.start]:02X} at offset "
        f"{offset}; {remedy}, or set the tokenizer to 'bytes', or unknown_policy to 'skip'",
        offset,
    )


_ALONE = re.compile(rb"(?<=[A-Za-z ])[\xa0-\xff](?=[A-Za-z ,.])")


def _guess(data: bytes) -> tuple[str, str]:
    """Returns what bytes look like that are no UTF-8, and what to do about it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return " (it looks like UTF-16)", "set encoding to 'utf-16'"
    if len(_ALONE.findall(data)) > 0:
        return " (it looks like Latin-1)", "set encoding to 'latin-1'"
    return "", "convert it, or set encoding to what it is"


def check_not_empty(files: list[CorpusFile]) -> None:
    """Refuses a corpus without a byte to train on.

    Raises:
        CorpusError: It has none.
    """
    training = [file for file in files if file.role is CorpusRole.TRAIN]
    if not training:
        raise CorpusError("no file of the corpus is there to train on: give one the role train")
    if not any(file.size for file in training):
        raise CorpusError("the corpus is empty: give it some text")
