"""The part of the fake server that sends and takes the files of models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import grpc

from treadle.v1 import sequence_pb2 as v1
from treadle.v1.sequence_pb2_grpc import SequenceServiceServicer

CHUNK_BYTES = 1000


class FakeTravel(SequenceServiceServicer):
    """Keeps files by the name of their model; every version is the same one."""

    _begin: Callable[[Any, Any], None]
    describe: Callable[[str, int], v1.Model]

    def __init__(self) -> None:
        self.model_files: dict[str, bytes] = {}
        """The files of models that can be exported, by name."""
        self.cuts: list[int] = []
        """Bytes of a file behind which each next ExportModel or ImportModel call breaks off."""
        self.ends: list[int] = []
        """Responses after which each next ExportModel call ends, without a status of its own."""
        self.spoils = False
        """Whether a file that is sent arrives damaged."""
        self.imports: list[v1.ImportModelSpec] = []
        """The specs of the files that came whole."""
        self.vocabulary: list[str] = []
        """The vocabulary that came with the last one."""
        self.imported = b""
        """The last file that came whole."""

    def ExportModel(  # noqa: N802
        self, request: v1.ExportModelRequest, context: Any
    ) -> Iterator[v1.ExportModelResponse]:
        return islice(self._export(request, context), self.ends.pop(0) if self.ends else None)

    def _export(
        self, request: v1.ExportModelRequest, context: Any
    ) -> Iterator[v1.ExportModelResponse]:
        self._begin(request, context)
        name = request.model.partition("@")[0]
        data = self.model_files.get(name)
        if data is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no model {name!r}")
            return
        model = self.describe(name, request.version or 2)
        model.size_bytes = len(data)
        model.sha256 = hashlib.sha256(data).hexdigest()
        if request.sha256 and request.sha256 != model.sha256:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the file has another hash")
        yield v1.ExportModelResponse(model=model)
        cut = self.cuts.pop(0) if self.cuts else len(data) + 1
        if self.spoils:
            data = data[:-1] + bytes([data[-1] ^ 1])
        for begin in range(request.offset, len(data), CHUNK_BYTES):
            if begin >= cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server was stopped")
            yield v1.ExportModelResponse(chunk=data[begin : begin + CHUNK_BYTES])

    def ImportModel(  # noqa: N802
        self, requests: Iterator[v1.ImportModelRequest], context: Any
    ) -> v1.ImportModelResponse:
        spec = next(requests).spec
        self._begin(spec, context)
        data = b""
        tokens: list[str] = []
        cut = self.cuts.pop(0) if self.cuts else None
        for request in requests:
            data += request.chunk
            tokens += request.vocabulary.tokens
            if cut is not None and (len(data) >= cut or request.HasField("end")):
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server was stopped")
            if request.HasField("end"):
                assert request.end.size_bytes == len(data)
                assert request.end.sha256 == hashlib.sha256(data).hexdigest()
                break
        else:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended without its end")
        model = self.describe(spec.model, 3)
        model.size_bytes = len(data)
        model.sha256 = hashlib.sha256(data).hexdigest()
        model.aliases.extend([spec.alias] if spec.alias else [])
        self.imports.append(spec)
        self.imported = data
        self.vocabulary = tokens
        return v1.ImportModelResponse(
            model=model, reused=spec.reuse_identical and self.model_files.get(spec.model) == data
        )
