"""The messages of calls that send and take the files of models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Caller


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def import_requests(
    spec: pb.ImportModelSpec,
    data: bytes,
    *,
    vocabulary: Sequence[str] = (),
    chunk_bytes: int = 1 << 16,
    end: pb.ImportModelEnd | None = None,
) -> Iterator[pb.ImportModelRequest]:
    """Yields the messages of an import."""
    yield pb.ImportModelRequest(spec=spec)
    if vocabulary:
        yield pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=vocabulary))
    for begin in range(0, len(data), chunk_bytes):
        yield pb.ImportModelRequest(chunk=data[begin : begin + chunk_bytes])
    right = pb.ImportModelEnd(size_bytes=len(data), sha256=sha256_of(data))
    yield pb.ImportModelRequest(end=end or right)


def send_model(caller: Caller, data: bytes, model: str, **fields: Any) -> pb.ImportModelResponse:
    """Imports a file; fields that no spec has are those of `import_requests`."""
    ours = {
        name: fields.pop(name) for name in ("vocabulary", "chunk_bytes", "end") if name in fields
    }
    spec = pb.ImportModelSpec(model=model, **fields)
    return caller.stub.ImportModel(import_requests(spec, data, **ours), timeout=PATIENCE_S)


def fetch_model(caller: Caller, model: str, **fields: Any) -> tuple[pb.Model, bytes]:
    """Exports a version, or a part of it from an offset on; `metadata` is that of the call."""
    how: dict[str, Any] = {"timeout": PATIENCE_S, "metadata": fields.pop("metadata", None)}
    how["timeout"] = fields.pop("timeout", PATIENCE_S)
    request = pb.ExportModelRequest(model=model, **fields)
    first, *chunks = caller.stub.ExportModel(request, **how)
    assert all(chunk.chunk for chunk in chunks)
    return first.model, b"".join(chunk.chunk for chunk in chunks)
