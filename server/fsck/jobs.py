"""`check_jobs` checks the corpora, checkpoints and directories of jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Set
from functools import partial
from pathlib import Path

import grpc

from treadle.model.errors import LoadError
from treadle.model.tensor_file import open_tensors
from treadle.model.training.checkpoint import is_whole
from treadle.server.errors import StatusError
from treadle.server.failures import DatabaseError
from treadle.server.fsck.report import DAMAGED, Report, put_aside, remove_whole
from treadle.server.names import is_name
from treadle.server.storage import model_version
from treadle.server.storage.data_dir import DATABASE_FILE
from treadle.server.storage.database import Database
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_files import INIT_FILE, STATE_FILE
from treadle.server.storage.job_state import UNFINISHED_STATES, JobState
from treadle.server.storage.schema import JobRow
from treadle.v1 import sequence_pb2 as pb

_PREVIOUS = ".previous"
_PAGE = 200


def check_jobs(
    root: Path, report: Report, database: Database, corpora: Set[str], rebuilt: bool
) -> None:
    """Checks the files of unfinished jobs, and that every directory belongs to a job.

    Args:
        root: The data directory, its corpora checked already.
        report: Where findings go.
        database: Its database.
        corpora: The hashes of the corpora that are whole, or cannot be read just now.
        rebuilt: Whether a repair of the database may have lost jobs.

    Raises:
        OSError: A directory cannot be read.
        DatabaseError: The database failed.
    """
    for row in _unfinished(database):
        if damage(row):  # reported already
            continue
        files = root / "jobs" / row.id
        fault = _fault(row, files, corpora)
        if fault:
            what = f"job {row.id} cannot continue: {fault}"
            work = partial(_fail, database, row.id, fault)
            report.repair(what, root / DATABASE_FILE, "marked as failed", work)
        own = files.is_dir() and not files.is_symlink()
        for path in sorted(files.glob("*.safetensors")) if own else []:
            _check_file(root, report, path)
    for place in _directories(root):
        if place.is_symlink() or not is_name(place.name):
            _put_directory_aside(root, report, place, "it is not the directory of a job")
        elif database.job(place.name) is None and rebuilt:
            what = "it is the directory of a job that the database does not know any more"
            _put_directory_aside(root, report, place, what)
        elif database.job(place.name) is None:
            what = "it is the directory of a job that does not exist"
            report.repair(what, place, "removed", partial(remove_whole, place))


def put_jobs_aside(root: Path, report: Report) -> None:
    """Moves every job's directory out of the way, where no database knows them.

    Args:
        root: The data directory.
        report: Where findings go.

    Raises:
        OSError: The directory cannot be read.
    """
    for place in _directories(root):
        what = "it is the directory of a job, and no database knows the job"
        _put_directory_aside(root, report, place, what)


def _put_directory_aside(root: Path, report: Report, place: Path, what: str) -> None:
    action = f"moved to {DAMAGED}/jobs/{place.name}"
    report.repair(what, place, action, partial(put_aside, root, place, "jobs", place.name))


def _directories(root: Path) -> list[Path]:
    jobs = root / "jobs"
    return sorted(path for path in jobs.iterdir() if path.is_dir()) if jobs.is_dir() else []


def _unfinished(database: Database) -> list[JobRow]:
    rows = list[JobRow]()
    after: tuple[float, str] | None = None
    while page := database.jobs(UNFINISHED_STATES, after=after, limit=_PAGE):
        rows += page
        after = page[-1].place
    return rows


def _fault(row: JobRow, files: Path, corpora: Set[str]) -> str:
    """Returns why a job cannot continue, as a sentence; empty where it can."""
    try:
        missing = [sha256 for sha256 in row.corpora() if sha256 not in corpora]
    except DatabaseError as error:
        return str(error)
    if missing:
        return f"its corpus {missing[0]} is missing or damaged: train again from the file"
    if row.init_from and not _may_be_whole(files / INIT_FILE):
        return f"its copy of the model that it started from, {row.init_from}, is missing or damaged"
    return ""


def _fail(database: Database, job: str, fault: str) -> None:
    """Marks a job as failed, with an event for its watchers, as the server does."""
    now_s = time.time()
    error = StatusError(grpc.StatusCode.DATA_LOSS, fault)
    change = pb.JobStateChange(state=pb.JOB_STATE_FAILED, reason=error.message)
    event = pb.JobEvent(state=change)
    event.event_time.FromNanoseconds(round(now_s * 1e9))
    database.append_event(
        job,
        event.SerializeToString(),
        now_s,
        state=JobState.FAILED,
        reason=error.message,
        ended_s=now_s,
        error_code=error.code.value[0],
        error=error.packed(),
    )


def _check_file(root: Path, report: Report, path: Path) -> None:
    """Checks a checkpoint or a model that a job published."""
    job = path.parent.name
    previous = path.with_name(path.name + _PREVIOUS)
    try:
        if _is_whole(path):
            return
        previous_is_whole = _is_whole(previous)
    except OSError as error:  # the file may well be whole, and the job may need it
        what = f"the checkpoint of job {job} cannot be read ({error})"
        report.note(what, path, "check the permissions and the disk")
        return
    what = f"the checkpoint of job {job} is damaged"
    aside = partial(put_aside, root, path, "jobs", job, path.name)
    if not previous_is_whole:
        action = f"moved to {DAMAGED}/jobs/{job}; the job does without it"
        report.repair(what, path, action, aside)
        return

    def go_back() -> None:
        aside()
        os.replace(previous, path)

    action = f"moved to {DAMAGED}/jobs/{job}; the one before it takes its place"
    report.repair(what, path, action, go_back)


def _may_be_whole(path: Path) -> bool:
    """Returns whether a file is whole, as `_is_whole`; True where it cannot be read just now."""
    try:
        return _is_whole(path)
    except OSError:
        return True


def _is_whole(path: Path) -> bool:
    """Returns whether a file is whole: of a checkpoint, whether its hash is right.

    Raises:
        OSError: The file cannot be read, which says nothing of its content.
    """
    if not path.is_file():  # reading a pipe would never end
        return False
    try:
        with open_tensors(path):  # first, since a file of holes may have any size
            pass
    except LoadError:
        return False
    model_version.file_hash(path)  # reads every byte; what is below takes a failure for damage
    return not path.name.startswith(STATE_FILE) or is_whole(path)
