"""`check_spec` and `check_corpus` check that a Train call with a known request id is a repeat.

A client whose connection broke calls again with the same request id and follows the job of its
first call. A different request under an old request id is a mistake of the caller. It is refused,
so that the caller does not take the old job's model for the one it asked for.
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
"""The most differences that a message names."""


def check_spec(earlier: JobRow, spec: pb.TrainSpec) -> None:
    """Checks that a spec is the one of an earlier job.

    Args:
        earlier: The job that has the spec's request id.
        spec: The spec as the caller sent it.

    Raises:
        StatusError: ALREADY_EXISTS, naming the job and the fields that differ.
    """
    stored = pb.TrainSpec.FromString(earlier.spec)
    asked = pb.TrainSpec()
    asked.CopyFrom(spec)
    # The stored spec names the version that was the newest at that time.
    if earlier.init_from_version == UNKNOWN_VERSION:
        asked.init_from_version = stored.init_from_version
    else:
        stored.init_from_version = earlier.init_from_version
    stored_fields = dict(_flat(to_json(stored)))
    asked_fields = dict(_flat(to_json(asked)))
    names = sorted({name for name, _ in stored_fields.items() ^ asked_fields.items()})
    if names:
        paths = [f"spec.{name}" for name in names[:_SHOWN]]
        shown = ", ".join(paths) + (", ..." if len(names) > _SHOWN else "")
        raise _other(earlier, f"with another spec (it differs in {shown})")


def check_corpus(earlier: JobRow, files: Sequence[UploadedFile]) -> None:
    """Checks that a corpus is the one of an earlier job; the names of its files may differ.

    Args:
        earlier: The job that has the request id.
        files: The files of the corpus.

    Raises:
        StatusError: ALREADY_EXISTS, naming the job.
    """
    stored = [(file["sha256"], file["role"], file["weight"]) for file in json.loads(earlier.files)]
    if stored != [(file.sha256, file.role, file.weight) for file in files]:
        raise _other(earlier, "with another corpus")


class ComparedCorpora:
    """Takes files as `UploadFiles` does, but only hashes them."""

    def find(self, sha256: str) -> int:
        """Returns 0 as the bytes of a file that is named by its hash."""
        return 0

    def writer(self) -> _Hasher:
        """Returns a writer that hashes a new file."""
        return _Hasher()


class _Hasher:
    """Hashes the bytes that a `CorpusWriter` would write."""

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
