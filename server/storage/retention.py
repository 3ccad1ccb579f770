"""What is kept, and for how long: old jobs and unwanted corpora are deleted, orphans taken in.

A job is deleted, with its events and its directory, once it has been over for long enough; the
models that it stored stay. A corpus is deleted once no job that is not over needs it and nobody
has wanted it for long enough. A sweep deletes a little, and nothing while the clock is doubtful
(see `treadle.server.storage.observed_time`). It may be cut off anywhere: the next one goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Set
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
from treadle.server.storage.observed_time import AHEAD_S

if TYPE_CHECKING:
    from treadle.server.storage.corpora import Corpora
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.database import Database

logger = logging.getLogger(__name__)

ORPHAN_S = 3600.0
"""Seconds for which a job's directory may be there before its row is: it is being made."""

MAX_DELETIONS = 200
"""The most jobs that one sweep deletes, and corpora: where the clock is wrong, time is left to see
it. Ten minutes later come the next."""

_LOOKED_AT = 10
"""Times as many old jobs are looked at, for those among them that are damaged and stay."""

_LEFT_S = AHEAD_S + 3600.0
"""Seconds after which a file that is not whole is what a killed process left, whatever the clock
does meanwhile."""


@dataclass(frozen=True)
class RetentionPeriods:
    """How long things are kept, in seconds; 0: for ever."""

    job_retention_s: float
    """Jobs, from when they are over."""
    corpus_retention_s: float
    """Corpora, from when they were last wanted."""


@dataclass(frozen=True)
class RetentionReport:
    """What one sweep did."""

    jobs: tuple[str, ...] = ()
    """The jobs deleted."""
    corpora: tuple[str, ...] = ()
    """The corpora deleted, by hash."""
    orphans: tuple[str, ...] = ()
    """Directories of jobs that are not there; deleted."""
    adopted: tuple[str, ...] = ()
    """Corpora on disk that the database did not know; it does now."""
    forgotten: tuple[str, ...] = ()
    """Corpora that the database knew and the disk does not have."""
    leftovers: int = 0
    """Files that killed processes had not finished; deleted."""


async def run_retention(data_dir: DataDir, rules: RetentionPeriods, every_s: float = 600.0) -> None:
    """Sweeps now and then until it is cancelled; a sweep that fails is logged.

    Args:
        data_dir: The data directory.
        rules: How long things are kept.
        every_s: Seconds between two sweeps.
    """
    while True:
        try:
            swept = await thread_pools.RETENTION.run(apply_retention, data_dir, rules)
            if swept != RetentionReport():
                logger.info("swept %s", swept)
        except Exception as error:  # a full disk, say; there may be room the next time
            logger.warning("old jobs and corpora could not be swept away: %s", error)
        await asyncio.sleep(every_s)


def apply_retention(data_dir: DataDir, rules: RetentionPeriods) -> RetentionReport:
    """Sweeps by the clock, unless that is doubtful; see `sweep`."""
    with suppress(OSError):
        data_dir.spare.fill()
    now_s = data_dir.observed_time.now()
    if now_s is None:
        return RetentionReport()
    left = sweep_temporary_kernels() + _sweep_leftovers(data_dir.jobs.root, now_s)
    swept = delete_expired(data_dir.database, data_dir.corpora, data_dir.jobs.root, rules, now_s)
    return replace(swept, leftovers=left)


def delete_expired(
    database: Database,
    corpora: Corpora,
    jobs_root: Path,
    rules: RetentionPeriods,
    now_s: float,
    keep: Set[str] = frozenset(),
    most: int = MAX_DELETIONS,
) -> RetentionReport:
    """Deletes what has been kept for long enough.

    Args:
        database: Where jobs and corpora are written down.
        corpora: The corpora.
        jobs_root: The directory of the jobs' directories.
        rules: How long things are kept.
        now_s: The time, in seconds since the epoch.
        keep: Ids of jobs and hashes of corpora that are to stay whatever the rules say.
        most: The most jobs and the most corpora to delete.

    Returns:
        What was deleted.

    Raises:
        OSError: The disk failed.
        DatabaseError: The database failed.
    """
    jobs = tuple(_sweep_jobs(database, jobs_root, rules.job_retention_s, now_s, keep, most))
    orphans = tuple(_sweep_orphans(database, jobs_root, now_s, keep))
    known = {sha256 for sha256, _, _ in database.corpora()}
    stored = dict(corpora.stored())
    for sha256 in stored.keys() - known:
        database.touch_corpus(sha256, stored[sha256], now_s)
    missing = tuple(sorted(known - stored.keys()))
    gone = [sha256 for sha256 in missing if not corpora.has(sha256)]  # not stored meanwhile
    for sha256 in gone:
        database.forget_corpus(sha256)
    return RetentionReport(
        jobs=jobs,
        corpora=tuple(
            islice(_sweep_corpora(database, corpora, rules.corpus_retention_s, now_s, keep), most)
        ),
        orphans=orphans,
        adopted=tuple(sorted(stored.keys() - known)),
        forgotten=tuple(gone),
    )


def _sweep_jobs(
    database: Database,
    jobs_root: Path,
    retention_s: float,
    now_s: float,
    keep: Set[str],
    most: int,
) -> Iterator[str]:
    if not retention_s:
        return
    old = database.over_before(now_s - retention_s, _LOOKED_AT * most + len(keep))
    for job in islice((job for job in old if job not in keep and _is_sound(database, job)), most):
        # The row first: a directory without one is an orphan, and goes with the next sweep.
        database.delete_job(job)
        files.remove(jobs_root / job)
        yield job


def _is_sound(database: Database, job: str) -> bool:
    """Returns whether a job can be read; what is damaged stays for somebody to look at."""
    row = database.job(job)
    return row is not None and not damage(row)


def _sweep_leftovers(jobs_root: Path, now_s: float) -> int:
    """Removes what processes that were killed left in jobs' directories; returns how much."""
    count = 0
    for place in sorted(jobs_root.iterdir()):
        for path in leftovers(place):
            with suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > _LEFT_S and files.remove(path):
                    count += 1
    return count


def _sweep_orphans(
    database: Database, jobs_root: Path, now_s: float, keep: Set[str]
) -> Iterator[str]:
    for place in sorted(jobs_root.iterdir()):
        # A name that no job can have is not ours; nor is what a link leads to.
        if not is_name(place.name) or place.is_symlink() or not place.is_dir():
            continue
        if place.name in keep or database.job(place.name) is not None:
            continue
        try:
            age_s = now_s - place.stat().st_mtime
        except FileNotFoundError:
            continue
        # Looked up again: the job may have been added since.
        if age_s > ORPHAN_S and database.job(place.name) is None and files.remove(place):
            yield place.name


def _sweep_corpora(
    database: Database, corpora: Corpora, retention_s: float, now_s: float, keep: Set[str]
) -> Iterator[str]:
    if not retention_s:
        return
    in_use = database.corpora_in_use()
    for sha256, size, used_s in database.corpora():
        if sha256 in in_use:
            database.touch_corpus(sha256, size, now_s)  # its time begins when nobody needs it
        elif (
            now_s - used_s > retention_s
            and sha256 not in keep
            and corpora.expire(sha256, now_s - retention_s)
        ):
            yield sha256
