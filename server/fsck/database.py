"""`open_database` checks the pages and rows of the database, and repairs it on request.

A damaged database is never written to. Its rows go into a new one that replaces it. The damaged one
is kept in `damaged/`, with a list of the rows that were left out. The new one is complete before
the old one moves, so a repair may be interrupted anywhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from treadle.server.failures import DatabaseError
from treadle.server.fsck.report import DAMAGED, Report, put_aside
from treadle.server.fsck.salvage import Salvage
from treadle.server.names import is_name
from treadle.server.storage import files
from treadle.server.storage.data_dir import DATABASE_FILE, REPAIRED_FILE
from treadle.server.storage.database import Database
from treadle.server.storage.files import StoreError
from treadle.server.storage.job_damage import damage, without_damage
from treadle.server.storage.job_state import JobState
from treadle.server.storage.schema import TABLES, NewerDatabaseError, read_row
from treadle.v1 import sequence_pb2 as pb

LEFT_OUT_FILE = "rows.jsonl"
"""The rows that were changed or left out of a new database, for a person to look at."""

_LOGS = ("-wal", "-shm")
_HASH = re.compile(r"[0-9a-f]{64}")
_AHEAD = 100_000
"""The most events of a job that an older copy of its row may not know."""

_NAMED = 20
"""The most damaged rows with a finding of their own."""

_COUNTED = ("jobs", "events", "aliases", "corpora")
"""The tables whose rows a finding counts."""

Values = Sequence[Any]
Rows = Callable[[], Iterable[tuple[str, Values]]]


def open_database(root: Path, report: Report) -> tuple[Database | None, bool]:
    """Checks the database, and repairs it where the report allows that.

    Args:
        root: The data directory.
        report: Where findings go.

    Returns:
        The database, whole, or None where it is missing or cannot be used; and whether a repair
        may have lost jobs.

    Raises:
        StoreError: It belongs to a newer Treadle.
        OSError: The disk failed or is full.
        DatabaseError: The new database failed.
    """
    path = root / DATABASE_FILE
    if (root / REPAIRED_FILE).is_file():
        what = "an earlier repair of the database was interrupted"
        report.repair(what, path, "finished", partial(_take_place, root))
    if not path.is_file():
        return None, False
    database, found = _open(path, report)
    if database is not None:
        review = _Review(database.scan)
        if not review.faults:
            return database, False
        _report_rows(report, path, review)
        if report.may_repair:
            _rebuild(root, review)
        database.close()
        return (Database(path) if report.may_repair else None), True
    return _salvage(root, report, found)


def _open(path: Path, report: Report) -> tuple[Database | None, str]:
    """Returns the database, or what is wrong with its pages; a damaged one is not written to."""
    try:
        database = Database(path, upgrade=False)
    except NewerDatabaseError as error:
        raise StoreError(str(error)) from error
    except DatabaseError as error:
        return None, str(error.__cause__ or error)
    found = _damage(database)
    if found or not report.may_repair:
        if found:
            database.close()
        return (None if found else database), found
    database.close()
    try:
        return Database(path), ""
    except DatabaseError as error:
        return None, str(error.__cause__ or error)


def _damage(database: Database) -> str:
    """Returns what is wrong with a database, in a few words; empty where it is whole."""
    try:
        database.check_structure()
        return "; ".join(database.check()[:1])
    except DatabaseError as error:
        return str(error.__cause__ or error)


def _salvage(root: Path, report: Report, found: str) -> tuple[Database | None, bool]:
    """Copies the readable rows of a database that SQLite cannot use into a new one."""
    path = root / DATABASE_FILE
    what = f"the database is damaged ({found})"
    review = _Review(Salvage(path).rows)
    if not review.jobs and not review.kept:
        report.repair(
            what,
            path,
            f"moved to {DAMAGED}/ with the jobs' directories; models stay, jobs and aliases are "
            "lost, for no row can be read",
            partial(_put_aside, root),
        )
        return None, True
    kept = ", ".join(f"{review.kept[table]:,} {table}" for table in _COUNTED)
    action = f"rebuilt from what can be read ({kept}); the damaged one is moved to {DAMAGED}/"
    before = len(report.findings)
    report.repair(what, path, action, partial(_rebuild, root, review))
    _report_rows(report, path, review)
    if not report.may_repair or "could not" in report.findings[before].action:
        return None, True
    return Database(path), True


def _report_rows(report: Report, path: Path, review: _Review) -> None:
    done = f"the row as it was is in {DAMAGED}/{LEFT_OUT_FILE}"
    advice = done if report.may_repair else f"with --repair {done}"
    for what in review.faults[:_NAMED]:
        report.note(what, path, advice)
    if len(review.faults) > _NAMED:
        report.note(f"{len(review.faults) - _NAMED:,} more rows are damaged", path, advice)


@dataclass
class _Review:
    """Reads every row and decides whether to keep, change or leave it out.

    Args:
        source: Yields the rows, table by table, as often as it is called.
    """

    source: Rows
    jobs: dict[str, int] = field(default_factory=dict)
    """The number of the last event of every job that is kept."""
    kept: Counter[str] = field(default_factory=Counter)
    """The number of kept rows by table; a row that comes twice counts twice."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with each row that is changed or left out, as a sentence."""

    def __post_init__(self) -> None:
        for table, _ in self.good():
            self.kept[table] += 1

    def good(
        self, left_out: Callable[[str, Values, str], object] = lambda *_: None
    ) -> Iterator[Any]:
        """Yields the table and the values of every row that is kept.

        Args:
            left_out: Called with table, values and fault of each row that is changed or left out.
        """
        self.jobs.clear()
        self.faults.clear()
        for table, values in self.source():
            fault, better = self._judge(table, values)
            if fault:
                self.faults.append(fault)
                left_out(table, values, fault)
            if better is not None:
                yield table, better

    def _judge(self, table: str, values: Values) -> tuple[str, Values | None]:
        """Returns what is wrong with a row, or an empty text, and the values to keep, if any."""
        if table == "jobs":
            return self._job(values)
        fault = (self._event if table == "events" else _JUDGES[table])(values)
        if not fault:
            return "", _typed(table, values)
        if table == "events" and isinstance(values[1], int) and values[0] in self.jobs:
            with suppress(TypeError, ValueError):
                return fault, (values[0], values[1], float(values[2]), b"")
        return fault, None

    def _job(self, values: Values) -> tuple[str, Values | None]:
        row = read_row(_typed("jobs", values))
        fault = damage(row)
        whole = without_damage(row) if fault else row
        if whole is None:
            return f"the record of job {_shown(row.id)} is damaged: {fault}; it is left out", None
        if whole.id not in self.jobs:  # an old copy of the row may follow
            self.jobs[whole.id] = whole.last_sequence
        failed = whole.state == JobState.FAILED != row.state
        done = "it is marked as failed" if failed else "that is emptied"
        sentence = f"the record of job {_shown(row.id)} is damaged: {fault}; {done}"
        return sentence if fault else "", [getattr(whole, name) for name in TABLES["jobs"]]

    def _event(self, values: Values) -> str:
        job, sequence, time_s, payload = values
        what = f"event {_shown(sequence)} of job {_shown(job)}"
        if not isinstance(job, str) or job not in self.jobs:
            return f"{what} belongs to no job; it is left out"
        if not isinstance(sequence, int) or sequence < 1:
            return f"{what} has no number; it is left out"
        if sequence > self.jobs[job] + _AHEAD:
            return f"{what} comes after its last one; it is left out"
        if not isinstance(time_s, int | float) or not isinstance(payload, bytes):
            return f"{what} is damaged; it is emptied"
        try:
            pb.JobEvent.FromString(payload)
        except DecodeError:
            return f"{what} cannot be read; it is emptied"
        return ""


def _alias(values: Values) -> str:
    model, alias, version = values
    named = all(isinstance(name, str) and is_name(name) for name in (model, alias))
    if named and isinstance(version, int) and version > 0:
        return ""
    return f"alias {_shown(alias)} of model {_shown(model)} is damaged; it is left out"


def _corpus(values: Values) -> str:
    sha256, size, used_s = values
    whole = isinstance(sha256, str) and _HASH.fullmatch(sha256)
    if whole and isinstance(size, int) and size >= 0 and isinstance(used_s, int | float):
        return ""
    return f"the record of corpus {_shown(sha256)} is damaged; it is left out"


def _corpus_owner(values: Values) -> str:
    sha256, owner, size, used_s = values
    whole = isinstance(sha256, str) and _HASH.fullmatch(sha256) and _is_owner(owner)
    if whole and isinstance(size, int) and size >= 0 and isinstance(used_s, int | float):
        return ""
    return f"the owner of corpus {_shown(sha256)} is damaged; the record is left out"


def _version_owner(values: Values) -> str:
    model, version, owner, size, created_s = values
    whole = isinstance(model, str) and is_name(model) and _is_owner(owner)
    counts = isinstance(version, int) and version > 0 and isinstance(size, int) and size >= 0
    if whole and counts and isinstance(created_s, int | float):
        return ""
    what = f"version {_shown(version)} of model {_shown(model)}"
    return f"the owner of {what} is damaged; the record is left out"


def _file(values: Values) -> str:
    file, owner, name, sha256, size, created_s = values
    named = isinstance(file, str) and is_name(file) and isinstance(owner, str)
    whole = isinstance(sha256, str) and _HASH.fullmatch(sha256) and isinstance(name, str)
    counts = isinstance(size, int) and size >= 0 and isinstance(created_s, int | float)
    if named and whole and counts:
        return ""
    return f"the record of file {_shown(file)} is damaged; it is left out"


def _is_owner(value: object) -> bool:
    return isinstance(value, str) and value != ""


_JUDGES: dict[str, Callable[[Values], str]] = {
    "aliases": _alias,
    "corpora": _corpus,
    "corpus_owners": _corpus_owner,
    "version_owners": _version_owner,
    "files": _file,
}
"""Return what is wrong with a row of each table, and an empty text where nothing is."""

_REAL = {
    "jobs": [
        TABLES["jobs"].index(f"{name}_s")
        for name in ("created", "queued", "started", "ended", "ran", "lease_until")
    ],
    "events": [2],
    "aliases": [],
    "corpora": [2],
    "corpus_owners": [3],
    "version_owners": [4],
    "files": [5],
}
"""The columns of real numbers; SQLite stores those without a fraction as whole ones."""


def _typed(table: str, values: Values) -> Values:
    typed = list(values)
    for place in _REAL[table]:
        if isinstance(typed[place], int):
            typed[place] = float(typed[place])
    return typed


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rebuild(root: Path, review: _Review) -> None:
    """Makes a new database of the kept rows, which replaces the old one.

    Raises:
        OSError: The disk failed or is full; the old database stays in place.
    """
    draft = root / f"{REPAIRED_FILE}.tmp"
    for path in (draft, *(root / (draft.name + end) for end in _LOGS)):
        path.unlink(missing_ok=True)
    left_out = _LeftOut(root)
    try:
        database = Database(draft)
        try:
            database.load(review.good(left_out.add))
        finally:
            database.close()
        left_out.keep()
    except DatabaseError as error:
        raise OSError(str(error)) from error
    files.sync(draft)
    os.rename(draft, root / REPAIRED_FILE)
    files.sync(root)
    _take_place(root)


class _LeftOut:
    """Writes the rows that are changed or left out to a file, one in a line.

    Args:
        root: The data directory.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / DAMAGED / LEFT_OUT_FILE
        self._lines = list[str]()

    def add(self, table: str, values: Values, fault: str) -> None:
        """Adds a row; its bytes are written in base64."""
        named = dict(zip(TABLES[table], map(_plain, values), strict=False))
        self._lines.append(json.dumps({"table": table, "fault": fault, "values": named}))

    def keep(self) -> None:
        """Appends the rows to the file.

        Raises:
            OSError: The disk failed or is full.
        """
        if not self._lines:
            return
        files.make_directory(self._path.parent)
        files.check_no_link(self._path)
        with self._path.open("a") as file:
            file.write(json.dumps({"repaired": time.time()}) + "\n")
            file.writelines(f"{line}\n" for line in self._lines)
            file.flush()
            os.fsync(file.fileno())
        files.sync(self._path.parent)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value


def _take_place(root: Path) -> None:
    """Replaces the old database by the repaired one; keeps the old one."""
    _put_aside(root)
    os.replace(root / REPAIRED_FILE, root / DATABASE_FILE)
    files.sync(root)


def _put_aside(root: Path) -> None:
    for suffix in ("", *_LOGS):
        path = root / (DATABASE_FILE + suffix)
        if path.exists():
            put_aside(root, path, path.name)


def check_events(report: Report, database: Database, path: Path) -> None:
    """Checks that the last event of every job exists and is the last, since watchers wait for it.

    Args:
        report: Where findings go.
        database: The database, whole.
        path: Its file.

    Raises:
        DatabaseError: The database failed.
    """
    for job, last in database.uncounted_events():
        work = partial(database.count_events, job, last)
        report.repair(f"job {job} has more events than its record says", path, "counted", work)
    for job, last in database.lost_events():
        work = partial(database.add_lost_event, job, last, time.time())
        what = f"the last events of job {job} are missing"
        report.repair(what, path, "replaced by an empty event", work)
