"""`run_retention` deletes old jobs and unused corpora at intervals.

Of several servers that share them, one at a time does that, and sweeps the blobs that belong to
nothing as well.

A job is deleted, with its events and its directory, once it has been over for `job_s`; the models
that it stored stay. A corpus is deleted once no unfinished job needs it and it was not used for
`corpus_s`. An owner who did not use it for so long loses it even if others keep it. One pass
deletes a limited number, and nothing while the clock is doubtful (see
`treadle.server.storage.trusted_clock`). A pass may be interrupted anywhere: the next one continues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.model import sweep_temporary_kernels
from treadle.model.atomic_files import leftovers
from treadle.server.names import is_name
from treadle.server.resources import thread_pools
from treadle.server.storage import files
from treadle.server.storage.job_damage import damage
from treadle.server.storage.trusted_clock import AHEAD_S

if TYPE_CHECKING:
    from treadle.server.storage.corpora import Corpora
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.database import Database
    from treadle.server.storage.shared.shared_storage import SharedStorage

logger = logging.getLogger(__name__)

ORPHAN_S = 3600.0
"""Seconds for which a job's directory may exist before its row does, while the job is made."""

MAX_DELETIONS = 200
"""The most jobs, and the most corpora, that one pass deletes. Where the clock is wrong, this leaves
time to notice it before the next pass, ten minutes later."""

_READ_PER_JOB = 10
"""How many times as many old jobs are read, since damaged ones among them stay."""

_LEFTOVER_S = AHEAD_S + 3600.0
"""Seconds after which an unfinished file must be from a killed process, even if the clock jumps
meanwhile."""


_DUTY = "retention"
_SWEEP = "sweep"
_DUTY_S = 1800.0
"""Seconds after which another server may take over from one that does not come back."""


@dataclass(frozen=True)
class RetentionPeriods:
    """How long jobs and corpora are kept, in seconds; 0: for ever."""

    job_s: float
    """Jobs, from their end."""
    corpus_s: float
    """Corpora, from their last use."""


@dataclass(frozen=True)
class RetentionReport:
    """What one pass did."""

    jobs: tuple[str, ...] = ()
    """The ids of the jobs that were deleted."""
    corpora: tuple[str, ...] = ()
    """The hashes of the corpora that were deleted."""
    orphans: tuple[str, ...] = ()
    """The names of deleted directories of jobs that do not exist."""
    adopted: tuple[str, ...] = ()
    """The hashes of corpora on disk that the database did not know; it does now."""
    forgotten: tuple[str, ...] = ()
    """The hashes of corpora that the database knew and the disk does not have."""
    owners: int = 0
    """How often an owner lost a corpus that it did not use."""
    files: int = 0
    """The number of files whose bytes are gone, and which were forgotten."""
    versions: int = 0
    """The number of versions of models that are gone, and whose owners were forgotten."""
    leftovers: int = 0
    """The number of deleted files that killed processes had not finished."""
    blobs: int = 0
    """The number of deleted blobs that belonged to nothing, where several servers share a store."""


async def run_retention(
    data_dir: DataDir, periods: RetentionPeriods, every_s: float = 600.0
) -> None:
    """Applies the retention at intervals until it is cancelled; logs a pass that fails.

    Args:
        data_dir: The data directory.
        periods: How long jobs and corpora are kept.
        every_s: Seconds between two passes.
    """
    while True:
        try:
            report = await thread_pools.RETENTION.run(apply_retention, data_dir, periods)
            if report != RetentionReport():
                logger.info("retention: %s", report)
        except Exception as error:  # the disk may be full, and have space the next time
            logger.warning("old jobs and corpora could not be deleted: %s", error)
        await asyncio.sleep(every_s)


def apply_retention(data_dir: DataDir, periods: RetentionPeriods) -> RetentionReport:
    """Makes one pass, unless the clock is doubtful; see `delete_expired`."""
    if data_dir.spare is not None:
        with suppress(OSError):
            data_dir.spare.fill()
    now_s = data_dir.trusted_clock.now()
    if now_s is None:
        return RetentionReport()
    left = sweep_temporary_kernels() + _delete_leftovers(data_dir.jobs.root, now_s)
    if data_dir.shared is not None:
        return replace(_shared_retention(data_dir, data_dir.shared, periods, now_s), leftovers=left)
    report = delete_expired(data_dir.database, data_dir.corpora, data_dir.jobs.root, periods, now_s)
    versions = _forget_versions(data_dir.database, data_dir.models.is_stored, now_s)
    return replace(report, versions=versions, leftovers=left)


def _shared_retention(
    data_dir: DataDir, shared: SharedStorage, periods: RetentionPeriods, now_s: float
) -> RetentionReport:
    """Makes one pass over what several servers share, unless another server is to do so."""
    # Not imported where a server has everything of its own.
    from treadle.server.storage.shared.orphan_sweep import sweep_orphans

    database = data_dir.database
    if not database.take_duty(_DUTY, shared.replica, _DUTY_S):
        return RetentionReport()
    jobs = tuple(
        _delete_jobs(database, data_dir.jobs.remove, periods.job_s, now_s, set(), MAX_DELETIONS)
    )
    stored = {sha256 for sha256, _ in data_dir.corpora.stored()}
    missing = sorted({sha256 for sha256, _, _ in database.corpora()} - stored)
    gone = [sha256 for sha256 in missing if not data_dir.corpora.has(sha256)]
    for sha256 in gone:
        database.forget_corpus(sha256)
    expired = _delete_corpora(database, data_dir.corpora, periods.corpus_s, now_s, set())
    corpora = tuple(islice(expired, MAX_DELETIONS))
    forgotten = _forget_owners(database, periods.corpus_s, now_s, set())
    versions = {(row.model, row.version) for row in database.versions()}
    # By a name that nobody has a second time: it lists the whole store, so it is not for each pass.
    sweep = f"{shared.replica} {now_s}"
    sweeps = database.take_duty(_SWEEP, sweep, max(0.0, shared.orphan_s))
    return RetentionReport(
        jobs=jobs,
        corpora=corpora,
        forgotten=tuple(gone),
        owners=sum(islice(forgotten, MAX_DELETIONS)),
        files=database.forget_lost_files(),
        versions=_forget_versions(database, lambda *version: version in versions, now_s),
        blobs=sweep_orphans(shared.blobs, database, shared.orphan_s, now_s) if sweeps else 0,
    )


def delete_expired(
    database: Database,
    corpora: Corpora,
    jobs_root: Path,
    periods: RetentionPeriods,
    now_s: float,
    keep: Set[str] = frozenset(),
    most: int = MAX_DELETIONS,
) -> RetentionReport:
    """Deletes jobs and corpora after their retention period.

    Args:
        database: The rows of jobs and corpora.
        corpora: The corpora.
        jobs_root: The directory of the jobs' directories.
        periods: How long jobs and corpora are kept.
        now_s: The time, in seconds since the epoch.
        keep: Ids of jobs and hashes of corpora that stay whatever their age.
        most: The most jobs and the most corpora to delete.

    Returns:
        What was deleted.

    Raises:
        OSError: The disk failed.
        DatabaseError: The database failed.
    """

    def remove(job: str) -> None:
        files.remove(jobs_root / job)

    jobs = tuple(_delete_jobs(database, remove, periods.job_s, now_s, keep, most))
    orphans = tuple(_delete_orphans(database, jobs_root, now_s, keep))
    known = {sha256 for sha256, _, _ in database.corpora()}
    stored = dict(corpora.stored())
    for sha256 in stored.keys() - known:
        database.touch_corpus(sha256, stored[sha256], now_s)
    missing = tuple(sorted(known - stored.keys()))
    gone = [sha256 for sha256 in missing if not corpora.has(sha256)]  # it was not stored meanwhile
    for sha256 in gone:
        database.forget_corpus(sha256)
    return RetentionReport(
        jobs=jobs,
        corpora=tuple(
            islice(_delete_corpora(database, corpora, periods.corpus_s, now_s, keep), most)
        ),
        orphans=orphans,
        adopted=tuple(sorted(stored.keys() - known)),
        forgotten=tuple(gone),
        owners=sum(islice(_forget_owners(database, periods.corpus_s, now_s, keep), most)),
        files=database.forget_lost_files(),
    )


def _delete_jobs(
    database: Database,
    remove: Callable[[str], None],
    retention_s: float,
    now_s: float,
    keep: Set[str],
    most: int,
) -> Iterator[str]:
    if not retention_s:
        return
    old = database.over_before(now_s - retention_s, _READ_PER_JOB * most + len(keep))
    for job in islice((job for job in old if job not in keep and _is_sound(database, job)), most):
        # The row first: a directory without a row is deleted in the next pass.
        database.delete_job(job)
        remove(job)
        yield job


def _is_sound(database: Database, job: str) -> bool:
    """Returns whether the row of a job is not damaged; a damaged one stays for inspection."""
    row = database.job(job)
    return row is not None and not damage(row)


def _delete_leftovers(jobs_root: Path, now_s: float) -> int:
    """Removes unfinished files of killed processes; returns how many."""
    count = 0
    for place in sorted(jobs_root.iterdir()):
        for path in leftovers(place):
            with suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > _LEFTOVER_S and files.remove(path):
                    count += 1
    return count


def _delete_orphans(
    database: Database, jobs_root: Path, now_s: float, keep: Set[str]
) -> Iterator[str]:
    for place in sorted(jobs_root.iterdir()):
        # A directory with a name that no job can have, or behind a link, is not the server's.
        if not is_name(place.name) or place.is_symlink() or not place.is_dir():
            continue
        if place.name in keep or database.job(place.name) is not None:
            continue
        try:
            age_s = now_s - place.stat().st_mtime
        except FileNotFoundError:
            continue
        # Checked again: the job may have been added meanwhile.
        if age_s > ORPHAN_S and database.job(place.name) is None and files.remove(place):
            yield place.name


def _delete_corpora(
    database: Database, corpora: Corpora, retention_s: float, now_s: float, keep: Set[str]
) -> Iterator[str]:
    if not retention_s:
        return
    in_use = database.corpora_in_use()
    for sha256, size, used_s in database.corpora():
        if sha256 in in_use:
            database.touch_corpus(sha256, size, now_s)  # its period begins when no job needs it
        elif (
            now_s - used_s > retention_s
            and sha256 not in keep
            and corpora.expire(sha256, now_s - retention_s)
        ):
            yield sha256


def _forget_owners(
    database: Database, retention_s: float, now_s: float, keep: Set[str]
) -> Iterator[int]:
    """Takes corpora from owners that do not use them any more; yields 1 for each."""
    if not retention_s:
        return
    in_use = database.owned_corpora_in_use()
    for sha256, owner, used_s in database.corpus_owners():
        if (sha256, owner) in in_use:
            database.touch_corpus_owner(sha256, owner, now_s)
        elif (
            now_s - used_s > retention_s
            and sha256 not in keep
            and database.forget_corpus_owner(sha256, owner, now_s - retention_s)
        ):
            yield 1


def _forget_versions(
    database: Database, is_stored: Callable[[str, int], bool], now_s: float
) -> int:
    """Forgets the owners of versions that do not exist; returns how many."""
    count = 0
    for model, version, _, created_s in database.version_owners():
        # The version of a new row may be about to be there.
        if now_s - created_s > ORPHAN_S and not is_stored(model, version):
            database.forget_versions(model, [version])
            count += 1
    return count
