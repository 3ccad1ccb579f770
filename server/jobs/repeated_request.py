"""What makes a Train call with a known request id the same call: its spec, and its corpus.

A client whose connection broke calls once more, with the same request id, and is to follow the
job that its first call made. Another order under an old request id is a mistake of the caller,
and is refused, so that nobody takes the old job's model for what was ordered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treadle.server.errors import StatusError, already_exists
from treadle.server.messages.fields import to_json
from treadle.server.storage.schema import UNKNOWN_VERSION, JobRow
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.storage.upload_files import UploadedFile

_SHOWN = 5
"""Differences that a message names."""


def check_spec(earlier: JobRow, spec: pb.TrainSpec) -> None:
    """Checks that a spec is the one that a job was ordered with.

    Args:
        earlier: The job that has the spec's request id.
        spec: The spec as its caller sent it.

    Raises:
        StatusError: ALREADY_EXISTS, naming the job and the fields that differ.
    """
    stored = pb.TrainSpec.FromString(earlier.spec)
    asked = pb.TrainSpec()
    asked.CopyFrom(spec)
    # The stored spec has the version that "the newest" was at that time.
    if earlier.init_from_version == UNKNOWN_VERSION:
        asked.init_from_version = stored.init_from_version
    else:
        stored.init_from_version = earlier.init_from_version
    ours, theirs = (dict(_flat(to_json(message))) for message in (stored, asked))
    names = sorted({name for name, _ in ours.items() ^ theirs.items()})
    if names:
        paths = [f"spec.{name}" for name in names[:_SHOWN]]
        shown = ", ".join(paths) + (", ..." if len(names) > _SHOWN else "")
        raise _other(earlier, f"with another spec (it differs in {shown})")


def check_corpus(earlier: JobRow, files: Sequence[UploadedFile]) -> None:
    """Checks that a corpus is the one that a job was ordered with; the files' names may differ.

    Raises:
        StatusError: ALREADY_EXISTS, naming the job.
    """
    stored = [(file["sha256"], file["role"], file["weight"]) for file in json.loads(earlier.files)]
    if stored != [(file.sha256, file.role, file.weight) for file in files]:
        raise _other(earlier, "with another corpus")


class ComparedCorpora:
    """Takes files as `UploadFiles` does, and keeps none of them: only their hashes are wanted."""

    def want(self, sha256: str) -> int:
        """Returns 0 for the bytes of a file that is named by its hash."""
        return 0

    def writer(self) -> _Hasher:
        """Returns what takes the bytes of a file."""
        return _Hasher()


class _Hasher:
    """Hashes what a `CorpusWriter` would write."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> tuple[str, int]:
        return self._hash.hexdigest(), self._size


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def _other(earlier: JobRow, how: str) -> StatusError:
    return already_exists(
        f"request_id {earlier.request_id!r} is that of job {earlier.id}, which was ordered {how}: "
        "take another request_id, or repeat the same order to follow the job",
        earlier.id,
    )
