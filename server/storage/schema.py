"""`JobRow` is the row of a job, and its fields are the columns; the other tables are listed here.

::

    jobs             one row a training job; the fields of `JobRow`
    events           the events of jobs, numbered from 1 in each job
    aliases          names of versions of models
    corpora          files under corpora/, with the time of the last use of each
    corpus_owners    the callers that trained on a corpus of theirs, with the time of the last use
    version_owners   the caller whose job or stream made a version of a model
    files            files that callers have stored by name; the bytes of each are a corpus
    versions         the versions of models in an object store that several servers share
    replicas         the servers that share this database
    duties           which of these servers does what only one may do at a time

The last three are empty where one server has a database of its own. The statements that make the
tables are files: see `database.migrations`.

An owner is the name of a caller. What no known caller made is not in the tables of owners, and has
an empty owner in the others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from treadle.server.failures import DatabaseError
from treadle.server.storage.job_state import FINAL_STATES, UNFINISHED_STATES

SCHEMA_VERSION = 6
"""The version of the tables; a server refuses a database of a newer one."""

UNKNOWN_VERSION = -1
"""The `init_from_version` of a job from before the column existed."""


_NO_COLUMN = {"column": False}


class NewerDatabaseError(DatabaseError):
    """A newer Treadle made the database: it is whole, and not to be touched."""


class NoSuchJobError(DatabaseError):
    """There is no job of that id."""


@dataclass(frozen=True)
class JobRow:
    """One training job. Times are seconds since the epoch."""

    id: str
    """The job's id."""
    model: str
    """The name of the model that it makes."""
    state: str
    """A `JobState`, or what a disk made of it."""
    reason: str
    """The reason for the state, as a sentence; may be empty."""
    spec: bytes
    """The serialized TrainSpec of the request."""
    config: str
    """The TrainConfig as JSON: as requested, and once started as used."""
    files: str
    """JSON list of its corpora: {"sha256", "name", "role", "weight", "size"}."""
    corpus_bytes: int
    """Bytes of all its corpora."""
    request_id: str
    """The request id of its client, or empty; no two jobs of one owner have the same one."""
    init_from: str
    """The model that it starts from, as requested, or empty; it has a copy of the file."""
    created_s: float
    """When it was made."""
    queued_s: float
    """When it last entered the queue, which is the order of the queue."""
    started_s: float | None
    """When it first ran."""
    ended_s: float | None
    """When it was over."""
    last_sequence: int
    """The number of its last event; 0 before the first."""
    restarts: int
    """How often its process was restarted after a crash."""
    started: bytes
    """The serialized `started` message, or empty."""
    progress: bytes
    """The latest serialized `progress` message, or empty."""
    version: int
    """The version of the stored model; 0: none yet."""
    claim: int
    """The version that it is about to claim; 0: none."""
    error_code: int
    """The google.rpc.Code of its failure, or 0."""
    error: bytes
    """The packed google.rpc.Status of its failure, or empty."""
    ran_s: float
    """Seconds that it has run."""
    init_from_version: int
    """The version of `init_from` in the request, 0: the newest; `spec` has the one taken."""
    waits_for_bytes: int = 0
    """Bytes that must be free, beyond `--min-free-bytes`, before a paused job continues by itself;
    0: it waits for ResumeJob."""
    owner: str = ""
    """The name of the caller that it belongs to; empty: of no known one."""
    call_id: str = ""
    """The `x-request-id` of the call that made it; empty: unknown."""
    holder: str = ""
    """The id of the server that has its lease, or had it last; empty: none, since it was released.
    This and what follows stay as they are where one server has a database of its own."""
    fence: int = 0
    """The number of its lease; writes with an earlier one fail."""
    lease_until_s: float = 0.0
    """When its lease ends, by the clock of the database, in seconds since the epoch."""
    request: str = ""
    """What another server asks of the holder; empty: nothing."""
    checkpoint: str = ""
    """Where its last checkpoint is in the object store; empty: nowhere."""
    damage: str = field(default="", metadata=_NO_COLUMN)
    """What is wrong with the stored row, as a sentence; the damaged fields are empty or 0 here.
    It is not a column."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended for good; False where its state cannot be read."""
        return self.state in FINAL_STATES

    @property
    def place(self) -> tuple[float, str]:
        """The job's place in a list of jobs: its time of creation and its id."""
        return self.created_s, self.id

    def corpora(self) -> list[str]:
        """Returns the hashes of its corpora.

        Raises:
            DatabaseError: `files` cannot be read.
        """
        return [*self.corpus_sizes()]

    def corpus_sizes(self) -> dict[str, int]:
        """Returns the bytes of each of its corpora by the hash.

        Raises:
            DatabaseError: `files` cannot be read.
        """
        try:
            return {
                str(file["sha256"]): int(file.get("size", 0)) for file in json.loads(self.files)
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatabaseError(
                f"the corpora of job {self.id} cannot be read from the database: delete the job"
            ) from error


_FIELDS = [item for item in dataclasses.fields(JobRow) if item.metadata != _NO_COLUMN]

# The one list of the columns: what `JobRow` has, in its order.
COLUMNS = tuple(item.name for item in _FIELDS)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM jobs"
INSERT = f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
UNFINISHED = f"state IN ({', '.join(repr(str(state)) for state in UNFINISHED_STATES)})"
"""The condition that a job is not over."""
FIXED = ("id", "last_sequence", "holder", "fence", "lease_until_s")
"""The columns of jobs that have methods of their own to change them."""
TABLES = {
    "jobs": COLUMNS,
    "events": ("job", "sequence", "time_s", "payload"),
    "aliases": ("model", "alias", "version"),
    "corpora": ("sha256", "size", "used_s"),
    "corpus_owners": ("sha256", "owner", "size", "used_s"),
    "version_owners": ("model", "version", "owner", "size", "created_s"),
    "files": ("id", "owner", "name", "sha256", "size", "created_s"),
}
"""The columns of every table that a data directory uses, in their order."""

SHARED_TABLES = ("versions", "replicas", "duties")
"""The tables that only servers use that share a database."""

ADDED: dict[str, int | str | float] = {
    "init_from_version": UNKNOWN_VERSION,
    "waits_for_bytes": 0,
    "owner": "",
    "call_id": "",
    "holder": "",
    "fence": 0,
    "lease_until_s": 0.0,
    "request": "",
    "checkpoint": "",
}
"""The columns of jobs that later versions added, in their order, and their values in older jobs."""


@dataclass(frozen=True)
class FileRow:
    """A file that a caller has stored."""

    id: str
    """Its id."""
    owner: str
    """The caller that it belongs to; empty: no known one."""
    name: str
    """The name that the caller gave it."""
    sha256: str
    """The corpus that has its bytes."""
    size: int
    """Its size in bytes."""
    created_s: float
    """When it was stored, in seconds since the epoch."""


@dataclass(frozen=True)
class BacklogRow:
    """What the queue needs of a job that is not over."""

    id: str
    """Its id."""
    owner: str
    """The name of the caller that it belongs to; empty: of no known one."""
    model: str
    """The name of the model that it makes."""
    state: str
    """Its state."""
    waits_for_bytes: int
    """The bytes of disk space that it waits for; 0: it waits for none."""


@dataclass(frozen=True)
class VersionRow:
    """A version of a model in the object store."""

    model: str
    """The name of the model."""
    version: int
    """Its number, from 1."""
    sha256: str = ""
    """The hash of its file, in lower-case hexadecimal."""
    size: int = 0
    """Bytes of its file."""
    created_s: float = 0.0
    """When it was made, in seconds since the epoch."""
    description: bytes = b""
    """What a list of models says of it, serialized; empty where it was not asked for."""


@dataclass(frozen=True)
class ReplicaRow:
    """A server that shares the database. Times are by the clock of the database."""

    id: str
    """Its id, another one for each start."""
    address: str
    """Where others reach it."""
    started_s: float
    """When it started, in seconds since the epoch."""
    seen_s: float
    """When it was seen last, in seconds since the epoch."""


_EMPTY: dict[str, object] = {"str": "", "bytes": b"", "int": 0, "float": 0.0, "float | None": None}
_KINDS = {
    "str": (str,),
    "bytes": (bytes,),
    "int": (int,),
    "float": (float,),
    "float | None": (float, type(None)),
}
_EXPECTED = [(item.name, _KINDS[str(item.type)], _EMPTY[str(item.type)]) for item in _FIELDS]
_ROW_KINDS = [kinds for _, kinds, _ in _EXPECTED]
"""The types that each value of a row may have."""


def text(data: bytes) -> str | bytes:
    """Returns a stored text; as bytes where it is not UTF-8, which `read_row` reports as damage."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def read_row(values: Sequence[Any]) -> JobRow:
    """Returns a stored job, with its `damage` where values have the wrong type.

    Args:
        values: The values in the order of COLUMNS.
    """
    if len(values) == len(_ROW_KINDS) and all(map(isinstance, values, _ROW_KINDS)):
        return JobRow(*values)
    good = list[Any]()
    wrong = list[str]()
    for value, (name, kinds, empty) in zip(values, _EXPECTED, strict=True):
        if isinstance(value, kinds):
            good.append(value)
        else:
            good.append(empty)
            wrong.append(name)
    row = JobRow(*good)
    if wrong:
        row = dataclasses.replace(row, damage=f"{' and '.join(wrong)} cannot be read")
    return row
