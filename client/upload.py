"""The requests of one Train call: the spec, the corpus piece by piece, and its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from treadle.client.corpus import (
    Corpora,
    Corpus,
    CorpusFile,
    CorpusSource,
    corpus_files,
    corpus_paths,
    open_corpus,
)
from treadle.client.errors import InputError
from treadle.client.formats import check_readable, format_of
from treadle.client.options import set_field
from treadle.client.streams import Call
from treadle.client.text_input import name_as_text
from treadle.v1.sequence_pb2 import (
    TOKENIZER_KIND_BYTES,
    CorpusEnd,
    JobEvent,
    TrainRequest,
    TrainSpec,
)
from treadle.v1.sequence_pb2 import CorpusFile as FileHead


class Part(NamedTuple):
    """One file of an upload."""

    head: FileHead | None
    """What is said of it before its bytes; None for a corpus that is one plain file."""
    source: CorpusSource
    """Its bytes."""


def open_parts(corpora: Corpora) -> list[Part]:
    """Opens everything that an upload will read, so that trouble comes before it begins.

    Raises:
        InputError: A file cannot be opened, or its role, name or weight is wrong.
    """
    files = corpus_files(corpora)
    if files is None:
        return [Part(None, open_corpus(cast(Corpus, corpora)))]
    heads = [_head(file) for file in files]
    parts: list[Part] = []
    try:
        for head, file in zip(heads, files, strict=True):
            parts.append(Part(head, open_corpus(file.data)))
    except InputError:
        close_parts(parts)
        raise
    return parts


def choose_format(spec: TrainSpec, corpora: Corpora) -> None:
    """Takes the format of files that are given by their paths from their names, where none is set.

    Raises:
        InputError: The names differ, or are those of files that are not text.
    """
    if spec.data.format:
        return
    paths = corpus_paths(corpora)
    found = format_of(paths, "format=")
    if found is not None:
        set_field(spec.data, "format", found)
    if spec.tokenizer.kind != TOKENIZER_KIND_BYTES:
        check_readable(paths, 'format="plain"')


def close_parts(parts: Sequence[Part]) -> None:
    """Closes the files that were opened here."""
    for part in parts:
        part.source.close()


def _head(file: CorpusFile) -> FileHead:
    """Makes the message that a file begins with."""
    head = FileHead()
    name = file.name
    if not name and isinstance(file.data, os.PathLike):
        name = name_as_text(os.path.basename(os.fspath(file.data)))
    set_field(head, "name", name_as_text(name))
    set_field(head, "role", file.role)
    if file.weight != 1:
        set_field(head, "weight", file.weight)
    return head


class Upload:
    """The requests of one Train call, read from the corpus as the server takes them.

    gRPC iterates over it in a thread of its own. An error there cancels the call and is kept for
    the thread that reads the responses; the corpus then has no end, so nothing is trained on it.
    """

    def __init__(self, spec: TrainSpec, parts: Sequence[Part]) -> None:
        self._spec = spec
        self._parts = parts
        self._call: Call[JobEvent] | None = None
        self._called = threading.Event()
        self.error: Exception | None = None
        """What reading the corpus raised."""
        self.sent = False
        """Whether gRPC has taken the whole corpus; a cancellation may still overtake it."""

    def attach(self, call: Call[JobEvent]) -> None:
        """Tells which call the requests belong to."""
        self._call = call
        self._called.set()

    def requests(self) -> Iterator[TrainRequest]:
        """Yields the spec, then the corpus chunk by chunk, then its end."""
        try:
            yield TrainRequest(spec=self._spec)
            size = 0
            for head, source in self._parts:
                if head is not None:
                    yield TrainRequest(corpus_file=head)
                for chunk in source.chunks:
                    size += len(chunk)
                    yield TrainRequest(corpus_chunk=chunk)
            yield TrainRequest(corpus_end=CorpusEnd(size_bytes=size))
            self.sent = True
        except Exception as error:
            self.error = error
            self._called.wait()
            if self._call is not None:
                self._call.cancel()
        finally:
            close_parts(self._parts)
