"""`send_model` makes the requests of an ImportModel call, and makes it again where it breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from treadle.client.errors import InputError, ServerError
from treadle.client.messages.fields import set_field
from treadle.client.options import StateDictOptions
from treadle.client.replicas.retry import Retry
from treadle.v1.sequence_pb2 import (
    ImportModelEnd,
    ImportModelRequest,
    ImportModelResponse,
    ImportModelSpec,
    StateDictSpec,
    VocabularyPart,
)

if TYPE_CHECKING:
    from treadle.client.transfer.model_download import ModelDownload
    from treadle.client.transfer.model_files import OnProgress

_PART_TOKENS = 10_000
_PART_BYTES = 1 << 20
"""The most tokens and about the most bytes of one part of a vocabulary."""

Import = Callable[[Iterator[ImportModelRequest]], ImportModelResponse]
"""Calls ImportModel."""


class Source(Protocol):
    """What is sent."""

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes; called for each attempt."""


class PassedModel:
    """A model that is fetched from one server while it is sent to another.

    Args:
        download: Begins a download of it.

    Raises:
        ServerError: It cannot be fetched.
    """

    def __init__(self, download: Callable[[], ModelDownload]) -> None:
        self._download = download
        self._current = download()
        self.model = self._current.open()
        """The version that is fetched."""
        self._is_fresh = True

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes of the same version, from the beginning."""
        if not self._is_fresh:
            self._current.close()
            self._current = self._download()
            self._current.expect(self.model)
            self._current.open()
        self._is_fresh = False
        return self._current.chunks()

    def close(self) -> None:
        """Ends the download."""
        self._current.close()


def state_dict_spec(options: StateDictOptions) -> StateDictSpec:
    """Returns the spec of a conversion.

    Raises:
        InputError: An option is unknown, or its value is of the wrong type or out of range.
    """
    spec = StateDictSpec()
    for name, value in options.items():
        if name not in StateDictOptions.__annotations__:
            raise InputError(f"there is no option {name!r}")
        field = "kind" if name == "tokenizer" else name
        part = spec.tokenizer if field in spec.tokenizer.DESCRIPTOR.fields_by_name else spec
        set_field(part, field, value)
    return spec


def send_model(
    call: Import,
    spec: ImportModelSpec,
    source: Source,
    retry: Retry,
    on_progress: OnProgress,
    vocabulary: Sequence[str] = (),
) -> ImportModelResponse:
    """Sends a file to a server.

    A call whose connection breaks is made again, unless that might store the file twice: without
    `spec.reuse_identical` not once the whole file was sent.

    Args:
        call: Calls ImportModel.
        spec: The spec.
        source: The file.
        retry: Waits where the connection breaks.
        on_progress: Called after each piece.
        vocabulary: The tokens of a PyTorch module.

    Returns:
        The stored version.

    Raises:
        InputError: The file cannot be read, or a token cannot be sent.
        ServerError: The call failed.
    """
    parts = vocabulary_parts(vocabulary)
    while True:
        sending = _Sending(spec, parts, source, on_progress)
        try:
            return call(sending.requests())
        except ServerError as error:
            if sending.is_whole and not spec.reuse_identical:
                raise
            retry.wait(error)


class _Sending:
    """The requests of one attempt."""

    def __init__(
        self,
        spec: ImportModelSpec,
        parts: Sequence[VocabularyPart],
        source: Source,
        on_progress: OnProgress,
    ) -> None:
        self._spec = spec
        self._parts = parts
        self._source = source
        self._on_progress = on_progress
        self.is_whole = False
        """Whether the end of the file was given to gRPC."""

    def requests(self) -> Iterator[ImportModelRequest]:
        """Yields the spec, the vocabulary, the file chunk by chunk, and its end."""
        total = self._spec.size_bytes
        yield ImportModelRequest(spec=self._spec)
        for part in self._parts:
            yield ImportModelRequest(vocabulary=part)
        digest = hashlib.sha256()
        size = 0
        self._on_progress(size, total)
        for chunk in self._source.chunks():
            digest.update(chunk)
            size += len(chunk)
            yield ImportModelRequest(chunk=chunk)
            self._on_progress(size, total)
        self.is_whole = True
        end = ImportModelEnd(size_bytes=size, sha256=digest.hexdigest())
        yield ImportModelRequest(end=end)


def vocabulary_parts(vocabulary: Sequence[str]) -> list[VocabularyPart]:
    """Returns a vocabulary as messages, each small enough.

    Raises:
        InputError: A token is not text that can be sent.
    """
    parts: list[VocabularyPart] = []
    size = _PART_BYTES
    for place, token in enumerate(vocabulary):
        try:
            added = len(token.encode())
        except (AttributeError, UnicodeEncodeError):
            text = f"token {place} of the vocabulary, counted from 0, cannot be {token!r}"
            raise InputError(f"{text}: it is text", "vocabulary") from None
        if size + added > _PART_BYTES or len(parts[-1].tokens) >= _PART_TOKENS:
            parts.append(VocabularyPart())
            size = 0
        parts[-1].tokens.append(token)
        size += added
    return parts
