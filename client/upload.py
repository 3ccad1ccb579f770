"""`Upload` makes the requests of one Train call: the spec, the corpus in chunks, and its end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from treadle.client.errors import InputError
from treadle.client.files.corpus import (
    Corpora,
    Corpus,
    CorpusFile,
    CorpusSource,
    corpus_files,
    corpus_paths,
    open_corpus,
)
from treadle.client.files.format_detection import check_readable, format_of
from treadle.client.files.paths import path_as_text
from treadle.client.messages.fields import set_field
from treadle.client.options import TrainOptions, option_home
from treadle.client.streaming import BackgroundRequests, Call
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
    """The message before its bytes; None for a corpus that is one plain file."""
    source: CorpusSource
    """Its bytes."""


def open_parts(corpora: Corpora) -> list[Part]:
    """Opens every file of an upload, so that errors come before it begins.

    Returns:
        The open files, each with its role, weight and name.

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
            data = b"" if file.sha256 else file.data  # nothing is sent of what is stored
            parts.append(Part(head, open_corpus(data)))
    except InputError:
        close_parts(parts)
        raise
    return parts


def choose_format(spec: TrainSpec, corpora: Corpora) -> None:
    """Sets the format by the names of files, if they are paths and no format is set.

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
    """Returns the message before the bytes of a file."""
    head = FileHead()
    name = file.name
    if not name and isinstance(file.data, os.PathLike):
        name = path_as_text(os.path.basename(os.fspath(file.data)))
    set_field(head, "name", path_as_text(name))
    set_field(head, "role", file.role)
    if file.weight != 1:
        set_field(head, "weight", file.weight)
    set_field(head, "sha256", file.sha256)
    return head


class Upload:
    """The requests of one Train call, read from the corpus as the server takes them.

    Where reading the corpus fails, the call is cancelled: the corpus then has no end, so the server
    does not train on it.

    Args:
        spec: The spec.
        parts: The files of the corpus, which are closed at the end.
    """

    def __init__(self, spec: TrainSpec, parts: Sequence[Part]) -> None:
        self._spec = spec
        self._parts = parts
        self._background = BackgroundRequests(self._read())
        self.sent = False
        """Whether gRPC has taken the whole corpus; a cancellation may still overtake it."""

    @property
    def error(self) -> Exception | None:
        """The error that reading the corpus raised."""
        return self._background.error

    def attach(self, call: Call[JobEvent]) -> None:
        """Sets the call that the requests belong to."""
        self._background.attach(call.cancel)

    def requests(self) -> Iterator[TrainRequest]:
        """Yields the spec, then the corpus chunk by chunk, then its end."""
        return self._background.requests()

    def _read(self) -> Iterator[TrainRequest]:
        """Yields the requests, and closes the files at the end."""
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
        finally:
            close_parts(self._parts)


def make_spec(model: str, spec: TrainSpec | None, options: TrainOptions) -> TrainSpec:
    """Sets options on top of a spec.

    Args:
        model: The model's name; empty keeps the spec's.
        spec: The spec to begin with, which is not changed. None: the server's defaults.
        options: The options.

    Returns:
        A new spec.

    Raises:
        InputError: An option is unknown, or its value is of the wrong type or out of range.
    """
    whole_spec = TrainSpec()
    if spec is not None:
        whole_spec.CopyFrom(spec)
    if model:
        set_field(whole_spec, "model", model)
    for name, value in options.items():
        group, field = option_home(name)
        set_field(getattr(whole_spec, group) if group else whole_spec, field, value)
    return whole_spec
