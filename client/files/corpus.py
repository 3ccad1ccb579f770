"""`open_corpus` cuts a corpus into the chunks of an upload, without reading it whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from treadle.client.errors import InputError
from treadle.client.files.paths import open_file

CHUNK_BYTES = 256 * 1024
"""Bytes in one message of an upload; the contract allows four times as many."""


@runtime_checkable
class Readable(Protocol):
    """An open file, of text or of bytes."""

    def read(self, size: int, /) -> str | bytes | None:
        """Returns up to `size` characters or bytes; nothing at the end."""


Corpus = str | bytes | bytearray | memoryview | os.PathLike[str] | Readable | Iterable[bytes | str]
"""A corpus to train on. A `str` is the text itself; the name of a file is a `Path`."""


@dataclass(frozen=True)
class CorpusFile:
    """One of several files of a corpus."""

    data: Corpus
    """Its text or bytes, or the path or file that they are read from; see `open_corpus`."""
    name: str = ""
    """Its name in messages. Default: a path's own name, else the server's choice."""
    role: Literal["train", "valid", "test"] = "train"
    """Its use: training, validation only, or the test at the end only."""
    weight: float = 1.0
    """Training files: how often an epoch reads it, above 0 to 100."""
    sha256: str = ""
    """Its SHA-256 in hexadecimal digits, if the server has stored it for this caller already. It is
    not sent again then, and `data` only gives it a name."""


Corpora = Corpus | CorpusFile | Sequence[CorpusFile]
"""The corpus of `Client.train`: one, or the files that make it up."""


def corpus_files(corpora: Corpora) -> list[CorpusFile] | None:
    """Returns the files of a corpus that consists of several.

    Returns:
        The files, at least one; None where the corpus is a plain one.

    Raises:
        InputError: A list holds files and other values.
    """
    if isinstance(corpora, CorpusFile):
        return [corpora]
    if not isinstance(corpora, list | tuple):
        return None
    files = [each for each in corpora if isinstance(each, CorpusFile)]
    if files and len(files) < len(corpora):
        raise InputError("a corpus of several files is a list of CorpusFile and of nothing else")
    return files or None


def corpus_paths(corpora: Corpora) -> list[str]:
    """Returns the paths of the files that a corpus is read from, "" for what is not a path."""
    files = corpus_files(corpora)
    data = [corpora] if files is None else [file.data for file in files]
    return [os.fspath(each) if isinstance(each, os.PathLike) else "" for each in data]


@dataclass(frozen=True)
class CorpusSource:
    """A corpus that is ready to be read once."""

    chunks: Iterator[bytes]
    """Its bytes, at most CHUNK_BYTES at a time."""
    close: Callable[[], None]
    """Closes the file, where this module opened one."""


def is_repeatable(corpora: Corpora) -> bool:
    """Returns whether a corpus can be read again from its beginning."""
    files = corpus_files(corpora)
    parts = [corpora] if files is None else [file.data for file in files]
    kinds = (str, bytes, bytearray, memoryview, os.PathLike)
    return all(isinstance(part, kinds) for part in parts)


def open_corpus(corpus: Corpus) -> CorpusSource:
    """Opens a corpus for one upload.

    Args:
        corpus: Text, bytes, the path of a file, an open file (read from its current
            position and left open), or an iterable of pieces; text is sent as UTF-8.

    Returns:
        Its chunks, not read yet.

    Raises:
        InputError: The file cannot be opened, or the corpus is of another type.
    """
    match corpus:
        case str() | bytes() | bytearray() | memoryview():
            return CorpusSource(_cut(corpus), _nothing)
        case os.PathLike():
            file = open_file(corpus)
            return CorpusSource(_read(file), file.close)
    if isinstance(corpus, Readable):
        return CorpusSource(_read(corpus), _nothing)
    if isinstance(corpus, Iterable):
        return CorpusSource(_gather(corpus), _nothing)
    raise InputError(f"a corpus is text, bytes, a path or a file, not {type(corpus).__name__}")


def _read(file: Readable) -> Iterator[bytes]:
    """Reads an open file, of text or of bytes, to its end."""
    while piece := _read_piece(file):
        yield from _cut(piece)


def _read_piece(file: Readable) -> str | bytes | None:
    try:
        return file.read(CHUNK_BYTES)
    except OSError as error:
        raise InputError(f"cannot read the corpus: {error.strerror or error}") from error


def _gather(pieces: Iterable[str | bytes]) -> Iterator[bytes]:
    """Fills chunks from pieces of any size: a message for each line would be slow."""
    gathered = bytearray()
    for piece in pieces:
        for chunk in _cut(piece):
            gathered += chunk
            if len(gathered) >= CHUNK_BYTES:
                yield bytes(gathered[:CHUNK_BYTES])
                del gathered[:CHUNK_BYTES]
    if gathered:
        yield bytes(gathered)


def _cut(piece: str | bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Cuts a piece into chunks."""
    if not isinstance(piece, str | bytes | bytearray | memoryview):
        raise InputError(
            f"the pieces of a corpus are text or bytes, not {type(piece).__name__}; several files "
            "are a list of CorpusFile"
        )
    try:
        data = memoryview(piece.encode() if isinstance(piece, str) else piece).cast("B")
    except UnicodeEncodeError as error:
        raise InputError("the corpus is not text: it holds lone surrogates") from error
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])


def _nothing() -> None:
    """Closes nothing."""
