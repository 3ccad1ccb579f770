"""`JobCheckpoint` says which blobs are the files of a job; its row has that in `checkpoint`.

One change of the row replaces all files of a job at once, and needs the fence of its lease.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from treadle.server.failures import DatabaseError


@dataclass(frozen=True)
class JobBlob:
    """A file of a job, as a blob."""

    key: str
    """Its key."""
    sha256: str
    """The hash of its content, in lower-case hexadecimal."""
    size: int
    """Its size in bytes."""


JobCheckpoint = Mapping[str, JobBlob]
"""The files of a job by their names."""


def read_checkpoint(text: str) -> dict[str, JobBlob]:
    """Returns the files that the `checkpoint` of a job names; none where it is empty.

    Raises:
        DatabaseError: It cannot be read.
    """
    if not text:
        return {}
    try:
        return {
            name: JobBlob(str(key), str(sha256), int(size))
            for name, (key, sha256, size) in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise DatabaseError("the checkpoint of a job cannot be read from the database") from error


def written_checkpoint(checkpoint: JobCheckpoint) -> str:
    """Returns what the `checkpoint` of a job is to hold.

    Args:
        checkpoint: Its files.
    """
    if not checkpoint:
        return ""
    content = {name: [blob.key, blob.sha256, blob.size] for name, blob in checkpoint.items()}
    return json.dumps(content, separators=(",", ":"))
