"""`JobRow` is the row of a job, and its fields are the columns; the other tables are listed here.

::

    jobs             one row a training job; the fields of `JobRow`
    events           the events of jobs, numbered from 1 in each job
    aliases          names of versions of models
    corpora          files under corpora/, with the time of the last use of each
    corpus_owners    the callers that trained on a corpus of theirs, with the time of the last use
    version_owners   the caller whose job or stream made a version of a model
    files            files that callers have stored by name; the bytes of each are a corpus

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
from treadle.server.storage.job_state import FINAL_STATES

SCHEMA_VERSION = 5
"""The version of the tables; a server refuses a file of a newer one."""

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


_TYPES = {
    "str": "TEXT NOT NULL",
    "bytes": "BLOB NOT NULL",
    "int": "INTEGER NOT NULL",
    "float": "REAL NOT NULL",
    "float | None": "REAL",
}

_FIELDS = [item for item in dataclasses.fields(JobRow) if item.metadata != _NO_COLUMN]

# The one list of the columns: what `JobRow` has, in its order.
COLUMNS = {item.name: _TYPES[str(item.type)] for item in _FIELDS}
SELECT = f"SELECT {', '.join(COLUMNS)} FROM jobs"
INSERT = f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
FIXED = ("id", "last_sequence")
TABLES = {
    "jobs": tuple(COLUMNS),
    "events": ("job", "sequence", "time_s", "payload"),
    "aliases": ("model", "alias", "version"),
    "corpora": ("sha256", "size", "used_s"),
    "corpus_owners": ("sha256", "owner", "size", "used_s"),
    "version_owners": ("model", "version", "owner", "size", "created_s"),
    "files": ("id", "owner", "name", "sha256", "size", "created_s"),
}
"""The columns of every table, in their order."""

ADDED: dict[str, int | str] = {
    "init_from_version": UNKNOWN_VERSION,
    "waits_for_bytes": 0,
    "owner": "",
    "call_id": "",
}
"""The columns of jobs that later versions added, in their order, and their values in older jobs."""

# `Salvage` distinguishes tables from indexes by the number and the types of their columns.
_OWNERS = (
    # The length makes no difference to what is unique.
    "CREATE UNIQUE INDEX jobs_request ON jobs (request_id, length(request_id), owner) "
    "WHERE request_id != ''",
    "CREATE INDEX jobs_owner ON jobs (owner, created_s, id)",
    "CREATE TABLE corpus_owners (sha256 TEXT NOT NULL, owner TEXT NOT NULL, "
    "size INTEGER NOT NULL, used_s REAL NOT NULL, PRIMARY KEY (sha256, owner)) WITHOUT ROWID",
    "CREATE TABLE version_owners (model TEXT NOT NULL, version INTEGER NOT NULL, "
    "owner TEXT NOT NULL, size INTEGER NOT NULL, created_s REAL NOT NULL, "
    "PRIMARY KEY (model, version)) WITHOUT ROWID",
)
_FILES = (
    "CREATE TABLE files (id TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, "
    "sha256 TEXT NOT NULL, size INTEGER NOT NULL, created_s REAL NOT NULL) WITHOUT ROWID"
)
UPGRADES = {
    1: (f"ALTER TABLE jobs ADD init_from_version INTEGER NOT NULL DEFAULT {UNKNOWN_VERSION}",),
    2: ("ALTER TABLE jobs ADD waits_for_bytes INTEGER NOT NULL DEFAULT 0",),
    3: (
        "ALTER TABLE jobs ADD owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD call_id TEXT NOT NULL DEFAULT ''",
        "DROP INDEX jobs_request",
        *_OWNERS,
    ),
    4: (_FILES,),
}
"""The statements that upgrade the tables of each version to the next."""

SCHEMA = (
    f"CREATE TABLE jobs ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())}, "
    "PRIMARY KEY (id))",
    "CREATE INDEX jobs_created ON jobs (created_s, id)",
    "CREATE INDEX jobs_queued ON jobs (state, queued_s, id)",
    "CREATE TABLE events (job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, "
    "sequence INTEGER NOT NULL, time_s REAL NOT NULL, payload BLOB NOT NULL, "
    "PRIMARY KEY (job, sequence)) WITHOUT ROWID",
    "CREATE TABLE aliases (model TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, "
    "PRIMARY KEY (model, alias)) WITHOUT ROWID",
    "CREATE TABLE corpora (sha256 TEXT NOT NULL PRIMARY KEY, size INTEGER NOT NULL, "
    "used_s REAL NOT NULL) WITHOUT ROWID",
    *_OWNERS,
    _FILES,
)


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


_EMPTY: dict[str, object] = {"str": "", "bytes": b"", "int": 0, "float": 0.0, "float | None": None}
_KINDS = {
    "str": (str,),
    "bytes": (bytes,),
    "int": (int,),
    "float": (float,),
    "float | None": (float, type(None)),
}
_EXPECTED = [(item.name, _KINDS[str(item.type)], _EMPTY[str(item.type)]) for item in _FIELDS]


def text(data: bytes) -> str | bytes:
    """Returns a stored text; as bytes where it is not UTF-8, which `read_row` reports as damage."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def read_row(values: Sequence[object]) -> JobRow:
    """Returns a stored job, with its `damage` where values have the wrong type.

    Args:
        values: The values in the order of COLUMNS.
    """
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
