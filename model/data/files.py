r"""`CorpusFile` is one file of a corpus, read in blocks of a few megabytes.

A block ends where a token certainly ends: before white space that follows another character, for
tokenizers that read more than a character at a time; after a line's end, for items; anywhere, for
characters. If there is no such place within LONG_LINE characters, the text is returned in parts,
and the caller has to encode it incrementally.
"""

from __future__ import annotations

import codecs
import encodings
import encodings.aliases
import functools
import io
import itertools
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr, BinaryIO, Protocol

from treadle.model.enums import CorpusFormat, CorpusLayout, CorpusRole, UnknownPolicy
from treadle.model.errors import ConfigError, CorpusError, EncodingError, UnknownSymbolError
from treadle.model.field_checks import member, real
from treadle.model.tokenizers.surrogates import handle_surrogates

if TYPE_CHECKING:
    from treadle.model.config import DataConfig

BLOCK = 1 << 20
"""Bytes read at a time."""

LONG_LINE = 1 << 20
"""A line with more characters is read in parts."""

_HEAD = 4096
"""Bytes at the beginning of a file that its encoding is guessed from."""

_BOM = "\ufeff"
_BOM_ENCODINGS = {"utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"}
"""Encodings whose decoder leaves a byte order mark in the text, unlike that of `utf-16`."""

_FOREIGN_BOMS = (
    # UTF-32 first: its mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""Compression formats by a file's first bytes."""

_NOT_OF_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
"""Text encodings of Python that are meant for names and source code."""

_LONGEST_ENCODING = 100
"""Most characters of the name of an encoding; the longest that Python has are far shorter."""

_ON_BAD_BYTES = {
    UnknownPolicy.ERROR: "strict",
    UnknownPolicy.SKIP: "ignore",
    UnknownPolicy.UNKNOWN: "replace",
}

_WEIGHT = real(above=0, most=100)

Cut = Callable[[str], int]
"""Returns the number of characters that form complete blocks; the rest is kept for more text."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    Raises:
        ConfigError: The role is unknown, the weight is out of range, or the data is neither bytes
            nor a path.
    """

    data: bytes | os.PathLike[str]
    """Its bytes, or its path."""
    name: str = "corpus"
    """Its name in messages."""
    role: CorpusRole = CorpusRole.TRAIN
    """Its use; a string such as "valid" is accepted, too."""
    weight: float = 1.0
    """Training files: number of times that a pass reads it; above 0, at most 100."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes | os.PathLike):
            kind = type(self.data).__name__
            text = f"the data of a file must be bytes or a path (os.PathLike), not {kind}"
            raise ConfigError(text, "data")
        object.__setattr__(self, "role", member(CorpusRole, self.role, "role"))
        object.__setattr__(self, "weight", _WEIGHT["check"](self.weight, "weight"))

    @property
    def title(self) -> str:
        """The file's name in sentences."""
        return "the corpus" if self.name == "corpus" else f"the file {self.name!r}"

    @property
    def size(self) -> int:
        """Its size in bytes."""
        data = self.data
        return Path(data).stat().st_size if isinstance(data, os.PathLike) else len(data)

    def open(self) -> BinaryIO:
        """Opens the file for reading."""
        if isinstance(self.data, os.PathLike):
            return Path(self.data).open("rb", buffering=0)
        return io.BytesIO(self.data)

    def head(self) -> bytes:
        """Returns the first bytes of the file."""
        with self.open() as file:
            return file.read(_HEAD)

    def byte_blocks(self) -> Iterator[bytes]:
        """Yields the bytes of the file in blocks."""
        with self.open() as file:
            while block := file.read(BLOCK):
                yield block


def check_encoding(encoding: str) -> None:
    """Checks that an encoding is a text encoding for files.

    Args:
        encoding: The name of a Python codec.

    Raises:
        ConfigError: It is unknown, or not a text encoding.
    """
    # Python remembers every spelling that it has looked up for as long as the process lives.
    name = _codec_name(encoding)
    try:
        known = codecs.lookup(name) if name else None
    except LookupError:  # a codec of another system
        known = None
    text = getattr(known, "_is_text_encoding", True)
    if known is None or not text or known.name in _NOT_OF_FILES:
        text = (
            f"data.encoding must be a text encoding such as 'utf-8' or 'latin-1', not {encoding!r}"
        )
        raise ConfigError(text, "data.encoding")


def _codec_name(encoding: str) -> str:
    """Returns the one spelling of the name of a codec, without looking it up; "" for no codec."""
    if len(encoding) > _LONGEST_ENCODING or not encoding.isascii() or "\0" in encoding:
        return ""
    name = encodings.normalize_encoding(encoding.lower())
    for alias in (name, name.replace(".", "_")):
        if alias in encodings.aliases.aliases:
            return alias
    return name if name in _codec_modules() else ""


@functools.cache
def _codec_modules() -> frozenset[str]:
    """Returns the names of Python's codecs that are not aliases."""
    return frozenset(module.name for module in pkgutil.iter_modules(encodings.__path__))


def check_data(data: DataConfig, fixed: CorpusLayout | None = None) -> CorpusLayout:
    """Returns the layout of a corpus whose settings fit together.

    Args:
        data: How the corpus is read and cut.
        fixed: The layout of the base model; None without one.

    Raises:
        ConfigError: Settings contradict each other, or the encoding is unknown.
    """
    check_encoding(data.encoding)
    if data.validation_fraction + data.test_fraction >= 1:
        both = f"{data.validation_fraction:g} and {data.test_fraction:g}"
        text = f"data.validation_fraction and data.test_fraction, {both}, leave nothing to train on"
        raise ConfigError(text, "data.test_fraction")
    plain = data.format is CorpusFormat.PLAIN
    if fixed is None:
        return data.layout if plain else CorpusLayout.LINES
    if not plain and fixed is CorpusLayout.TEXT:
        text = "data.format must be 'plain': the base model reads text, not items"
        raise ConfigError(text, "data.format")
    return fixed


def cut_anywhere(text: str) -> int:
    """Returns the length of the text: a `Cut` anywhere."""
    return len(text)


def cut_at_space(text: str) -> int:
    """Returns where the last white space after another character begins: a `Cut` at spaces."""
    cut = max(text.rfind(" "), text.rfind("\n"))
    while cut > 0 and text[cut - 1].isspace():
        cut -= 1
    return max(cut, 0)


def cut_at_line(text: str) -> int:
    r"""Returns the position after the last "\n": a `Cut` at line ends."""
    return text.rfind("\n") + 1


def cut_at_any_line(text: str) -> int:
    r"""Returns the position after the last line end, "\n", "\r\n" or "\r": a `Cut` at them."""
    # A "\r" at the very end may be the first half of "\r\n".
    return max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1)) + 1


def text_blocks(file: CorpusFile, encoding: str, policy: UnknownPolicy, cut: Cut) -> Iterator[str]:
    """Yields the text of a file in blocks.

    Args:
        file: The file.
        encoding: How it encodes text; one byte order mark at the beginning is left out.
        policy: What to do with bytes that are not text.
        cut: Where a block may end.

    Raises:
        EncodingError: The file does not have that encoding, and the policy is ERROR; or it begins
            with a byte order mark of UTF-16 or UTF-32 where UTF-8 is expected.
        OSError: The file cannot be read.
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


def text_parts(
    file: CorpusFile, encoding: str, policy: UnknownPolicy, cut: Cut, *, whole: bool = False
) -> Iterator[tuple[str, bool]]:
    """Yields the text of a file as `text_blocks` does, but splits long blocks without a cut.

    Args:
        file: The file.
        encoding: See `text_blocks`, also for `policy` and `cut`.
        policy: What to do with bytes that are not text.
        cut: Where a block may end.
        whole: Whether long blocks are yielded whole, too.

    Yields:
        A text, and whether a block may end after it.
    """
    if whole:
        for text in text_blocks(file, encoding, policy, cut):
            yield text, True
        return
    held = ""
    begun = False
    for text in _decoded(file, encoding, policy):
        end = cut(text)
        if end:
            yield held + text[:end], True
            held = text[end:]
            begun = False
        else:
            held += text
        if len(held) > LONG_LINE:
            yield held, False
            held = ""
            begun = True
    if held or begun:
        yield held, True


def line_blocks(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    r"""Yields blocks of whole lines of a file, each ended by "\n" instead of "\r\n".

    Args:
        file: The file.
        encoding: See `text_blocks`.
        policy: What to do with bytes that are not text.
    """
    for text in text_blocks(file, encoding, policy, cut_at_line):
        lines = text.replace("\r\n", "\n")
        # Only the last block may lack its end.
        yield lines if lines.endswith("\n") else lines.removesuffix("\r") + "\n"


def line_parts(
    file: CorpusFile, encoding: str, policy: UnknownPolicy, *, whole: bool = False
) -> Iterator[str]:
    r"""Yields lines as `line_blocks` does, but splits lines of more than LONG_LINE characters.

    Args:
        file: The file.
        encoding: See `text_blocks`, also for `policy`.
        policy: What to do with bytes that are not text.
        whole: Whether long lines are yielded whole, too.
    """
    if whole:
        yield from line_blocks(file, encoding, policy)
        return
    yield from _line_parts(_decoded(file, encoding, policy), "\r", "\n")


def byte_line_parts(file: CorpusFile) -> Iterator[bytes]:
    r"""Yields lines of a file of bytes, as `line_parts` does."""
    return _line_parts(file.byte_blocks(), b"\r", b"\n")


def _line_parts(blocks: Iterable[AnyStr], return_: AnyStr, feed: AnyStr) -> Iterator[AnyStr]:
    """Yields lines from the blocks of a file; splits those of more than LONG_LINE characters."""
    held = feed[:0]
    begun = False
    for block in blocks:
        held += block
        end = held.rfind(feed) + 1
        if end:
            yield held[:end].replace(return_ + feed, feed)
            held = held[end:]
            begun = False
        if len(held) > LONG_LINE:
            end = len(held) - held.endswith(return_)  # it may be the first half of a line end
            yield held[:end]
            held = held[end:]
            begun = True
    if held or begun:
        yield held.removesuffix(return_) + feed


def universal_lines(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    r"""Yields the lines of a file with their ends, each "\n" or a bare "\r".

    Args:
        file: The file.
        encoding: See `text_blocks`.
        policy: What to do with bytes that are not text.
    """
    for text in text_blocks(file, encoding, policy, cut_at_any_line):
        yield from io.StringIO(text.replace("\r\n", "\n"), newline="")


def encoding_notices(file: CorpusFile, encoding: str, by_line: bool) -> tuple[str, ...]:
    """Returns notices about a file whose encoding or line ends look wrong.

    Args:
        file: The file.
        encoding: The encoding with which it is read.
        by_line: Whether an item is a line.

    Raises:
        OSError: The file cannot be read.
    """
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return ()
    head = file.head()
    notices = []
    wide = _wide_encoding(head)
    compression = _compression(head)
    if compression:
        notices.append(f"{file.title} looks like a {compression} file: unpack it first")
    elif wide:
        notices.append(
            f"{file.title} looks like {wide.upper()[:6]}, since its letters have bytes of 0 "
            f"between them, and is read as {encoding}: set data.encoding to {wide!r} if it is"
        )
    elif by_line and b"\n" not in head and head.rstrip(b"\r").count(b"\r"):
        notices.append(
            f"{file.title} begins with more than one carriage return and no line feed, and a "
            "carriage return does not end a line: convert its line ends if they are that"
        )
    return tuple(notices)


def _compression(head: bytes) -> str:
    """Returns the compression of a file that begins with these bytes; "" for none."""
    # Text may begin with the same letters, but has no control characters after them.
    found = (name for mark, name in _COMPRESSIONS.items() if head.startswith(mark))
    text = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "" if text else next(found, "")


_MANY = 0.7
"""Smallest share of zeros among the padding bytes of a wide encoding."""
_FEW = 0.3
"""Largest share of zeros among its other bytes."""


def _wide_encoding(head: bytes) -> str:
    """Returns the UTF-16 or UTF-32 encoding that the pattern of zeros suggests; "" for none."""
    if len(head) < 8:
        return ""
    shares = [head[place::4].count(0) / len(head[place::4]) for place in range(4)]
    many = [share >= _MANY for share in shares]
    few = [share <= _FEW for share in shares]
    if many[2] and many[3] and few[0]:
        return "utf-32-le"
    if many[0] and many[1] and few[3]:
        return "utf-32-be"
    if many[1] and many[3] and few[0] and few[2]:
        return "utf-16-le"
    if many[0] and many[2] and few[1] and few[3]:
        return "utf-16-be"
    return ""


def _decoded(file: CorpusFile, encoding: str, policy: UnknownPolicy) -> Iterator[str]:
    name = codecs.lookup(encoding).name
    if name == "utf-8":
        _check_mark(file)
    decoder = codecs.getincrementaldecoder(encoding)(_ON_BAD_BYTES[policy])
    offset = 0
    begun = name not in _BOM_ENCODINGS
    for block in itertools.chain(file.byte_blocks(), [b""]):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as fault:
            raise _not_text(file, encoding, fault, offset - waiting) from None
        except UnicodeError as fault:  # UTF-16 without its byte order mark, for one
            text = f"{file.title} is not {encoding}: {fault}; set data.encoding to its encoding"
            raise EncodingError(text, offset) from None
        offset += len(block)
        if text and not begun:
            begun = True
            text = text.removeprefix(_BOM)
        if name == "utf-7":  # the only file encoding that can hold half of a surrogate pair
            text = _whole_characters(text, file, policy)
        if text:
            yield text


def _check_mark(file: CorpusFile) -> None:
    """Raises EncodingError for a file that begins with a byte order mark of UTF-16 or UTF-32."""
    head = file.head()[:4]
    for mark, name in _FOREIGN_BOMS:
        if head.startswith(mark):
            raise EncodingError(
                f"{file.title} is not UTF-8 (it begins with the byte order mark of {name}): set "
                f"data.encoding to {name.lower()!r}, or set tokenizer.kind to 'bytes'"
            )


def _whole_characters(text: str, file: CorpusFile, policy: UnknownPolicy) -> str:
    try:
        return handle_surrogates(text, policy)
    except UnknownSymbolError:
        raise EncodingError(
            f"{file.title} holds half of a surrogate pair: set data.encoding to its encoding, or "
            "set unknown_policy to 'skip'"
        ) from None


def _not_text(
    file: CorpusFile, encoding: str, fault: UnicodeDecodeError, base: int
) -> EncodingError:
    offset = base + fault.start
    shown = "UTF-8" if codecs.lookup(encoding).name == "utf-8" else encoding
    guess, remedy = _guess(fault.object, _compression(file.head()))
    return EncodingError(
        f"{file.title} is not {shown}{guess}: byte 0x{fault.object[fault.start]:02X} at offset "
        f"{offset}; {remedy}, or set tokenizer.kind to 'bytes', or unknown_policy to 'skip'",
        offset,
    )


_LONE_LATIN_1 = re.compile(rb"(?<=[A-Za-z ])[\xa0-\xff](?=[A-Za-z ,.])")


def _guess(data: bytes, compression: str) -> tuple[str, str]:
    """Returns a guess at the format of bytes that are not UTF-8, and the remedy."""
    if compression:
        return f" (it looks like a {compression} file)", "unpack it"
    if len(_LONE_LATIN_1.findall(data)) > 0:
        return " (it looks like Latin-1)", "set data.encoding to 'latin-1'"
    return "", "convert it, or set data.encoding to its encoding"


class FileInfo(Protocol):
    """The properties of a corpus file that are known before it is read."""

    @property
    def role(self) -> str:
        """Its use, a value of `CorpusRole`."""

    @property
    def size(self) -> int:
        """Its size in bytes."""


def check_not_empty(files: Sequence[FileInfo]) -> None:
    """Checks that a corpus has at least one byte to train on.

    Args:
        files: The files of the corpus.

    Raises:
        CorpusError: It has none.
    """
    training = [file for file in files if file.role == CorpusRole.TRAIN]
    if not training:
        raise CorpusError("no file of the corpus has the role train: give it to one of them")
    if not any(file.size for file in training):
        raise CorpusError("the corpus is empty: give it some text")
