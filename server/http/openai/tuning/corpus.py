"""`TuningCorpus` is the corpus of a fine-tuning job: stored files as they are, or made into items.

A plain text is trained as it is. A file of JSON lines has one item a line: {"text": ...}, or
{"prompt": ..., "completion": ...}, which are joined. A model of items reads JSON lines; a model of
one long text reads the items with a line end behind each.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from treadle.server.errors import StatusError, invalid
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.resources import thread_pools
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_MOST_LINE = 4 << 20
"""Bytes of the longest line of a file of JSON lines."""

_COLUMN = "text"


@dataclass(frozen=True)
class TuningFile:
    """One file of the corpus."""

    file: pb.File
    """The stored file."""
    param: str
    """The field of the request that names it."""
    role: pb.CorpusRole.ValueType
    """What it is for."""
    keys: tuple[str, ...]
    """The fields of each line that make an item, joined; none: it is a plain text."""


class TuningCorpus:
    """The files of a job.

    Args:
        exchange: The request, in whose name the files are read.
        files: The files.
        is_text: Whether the model reads one long text.
    """

    def __init__(self, exchange: Exchange, files: list[TuningFile], is_text: bool) -> None:
        self._exchange = exchange
        self._files = files
        self._is_text = is_text
        kinds = {bool(file.keys) for file in files}
        if len(kinds) > 1:
            text = "both files must be JSON lines, or both plain text"
            raise invalid([("validation_file", text)])
        self._has_items = kinds == {True}

    def settle(self, spec: pb.TrainSpec) -> None:
        """Notes in a spec how the corpus is read."""
        if self._has_items and not self._is_text:
            spec.data.format = pb.CORPUS_FORMAT_JSONL
            spec.data.column = _COLUMN

    async def messages(self, spec: pb.TrainSpec) -> AsyncGenerator[pb.TrainRequest, None]:
        """Yields the messages of the upload.

        Args:
            spec: The spec of the job.

        Raises:
            StatusError: A file cannot be read, or is not what its first line promises.
        """
        yield pb.TrainRequest(spec=spec)
        size = 0
        for file in self._files:
            about = pb.CorpusFile(name=file.file.name or file.file.id, role=file.role)
            if self._is_stored(file):
                about.sha256 = file.file.sha256
                yield pb.TrainRequest(corpus_file=about)
                continue
            yield pb.TrainRequest(corpus_file=about)
            async with aclosing(self._items(file)) as parts:
                async for part in parts:
                    size += len(part)
                    yield pb.TrainRequest(corpus_chunk=part)
        yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))

    def _is_stored(self, file: TuningFile) -> bool:
        """Returns whether a file is trained on as it is."""
        return not file.keys or (file.keys == (_COLUMN,) and not self._is_text)

    async def _items(self, file: TuningFile) -> AsyncGenerator[bytes, None]:
        """Yields the items of a file, as the model reads them."""
        async with aclosing(_lines(self._exchange, file)) as blocks:
            async for first, lines in blocks:
                part = await thread_pools.JSON.run(self._convert, file, first, lines)
                if part:
                    yield part

    def _convert(self, file: TuningFile, first: int, lines: list[bytes]) -> bytes:
        """Returns the items of some lines.

        Args:
            file: The file.
            first: The number of the first line.
            lines: The lines.
        """
        found = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            item = "".join(read_item(line, file.keys, f"{file.param}: line {number:,}", file.param))
            found.append(item if self._is_text else json.dumps({_COLUMN: item}))
        return "".join(f"{item}\n" for item in found).encode()


async def describe_file(
    exchange: Exchange, file: str, param: str, role: pb.CorpusRole.ValueType
) -> TuningFile:
    """Returns a stored file, with the form that its first line shows.

    Args:
        exchange: The request, in whose name it is read.
        file: Its id.
        param: The field of the request that names it.
        role: What it is for.

    Raises:
        OpenAIError: There is no such file.
        StatusError: It cannot be read, or its items cannot be trained on.
    """
    try:
        found = (await exchange.call("GetFile", pb.GetFileRequest(file=file))).file
    except StatusError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
        raise OpenAIError(404, error.message, param=param) from None
    plain = TuningFile(found, param, role, ())
    async with aclosing(_lines(exchange, plain, limited=False)) as blocks:
        async for _, lines in blocks:
            for line in lines:
                if line.strip():
                    return TuningFile(found, param, role, _keys(line, param))
    return plain


def _keys(line: bytes, param: str) -> tuple[str, ...]:
    """Returns the fields that make an item, by the first line of a file."""
    if not line.lstrip().startswith(b"{"):
        return ()
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    if "messages" in value:
        text = "a file of chats cannot be served: send lines of prompt and completion, or of text"
        raise invalid([(param, f"{param}: {text}")])
    for keys in (("prompt", "completion"), (_COLUMN,)):
        if set(value) == set(keys):
            return keys
    forms = '{"prompt": ..., "completion": ...} or {"text": ...}'
    shown = ", ".join(sorted(map(repr, value)))[:80]
    raise invalid(
        [(param, f"{param}: each line must be {forms}, and line 1 has {shown or 'no field'}")]
    )


def read_item(line: bytes, keys: Iterable[str], place: str, param: str) -> list[str]:
    """Returns the texts in the fields of one line.

    Args:
        line: The line.
        keys: Its fields.
        place: What messages call it.
        param: The field of the request at fault.

    Raises:
        StatusError: INVALID_ARGUMENT: it is not JSON, or does not have these fields alone.
    """
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise invalid([(param, f"{place} is not JSON")]) from None
    if not isinstance(value, dict) or set(value) != set(keys):
        listed = " and ".join(keys)
        raise invalid([(param, f"{place} must have {listed}, as the first line, and nothing else")])
    texts = [value[key] for key in keys]
    for text in texts:
        if not isinstance(text, str):
            raise invalid([(param, f"{place} has something else than a text")])
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid([(param, f"{place} has half of a surrogate pair")]) from None
    return texts


async def _lines(
    exchange: Exchange, file: TuningFile, limited: bool = True
) -> AsyncGenerator[tuple[int, list[bytes]], None]:
    """Yields whole lines of a file as they are read, and the number of the first of them.

    Args:
        exchange: The request, in whose name it is read.
        file: The file.
        limited: Whether a long line is an error, and not only cut.
    """
    request = pb.ReadFileRequest(file=file.file.id)
    number = 1
    rest = b""
    async with exchange.service.stream("ReadFile", request, exchange.origin) as replies:
        async for reply in replies:
            *lines, rest = (rest + reply.chunk).split(b"\n")
            if lines:
                yield number, lines
                number += len(lines)
            elif len(rest) > _MOST_LINE:
                if not limited:
                    break
                text = f"line {number:,} has more than {_MOST_LINE:,} bytes"
                raise invalid([(file.param, f"{file.param}: {text}")])
    if rest:
        yield number, [rest]
