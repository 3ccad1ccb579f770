"""`check` checks a data directory, for example after a crash, and repairs it on request.

It deletes nothing that could be worth a look: damaged files are moved to `DATA_DIR/damaged/`. The
order of the checks:

- leftovers under `tmp/`;
- the header of every version, and its file against model.sha256; missing hashes; empty directories
  of versions, except a model's newest, which keeps its number from being reused;
- every corpus against the hash that is its name;
- the pages and rows of the database. If any is damaged, all rows that can be read go into a new
  database, and the damaged one is moved away;
- aliases of versions that do not exist;
- the corpora and checkpoints of unfinished jobs, and directories of jobs that do not exist.

A check may be interrupted at any moment and run again.
"""

from __future__ import annotations

import os
import secrets
import sys
from functools import partial
from pathlib import Path

from treadle.server.failures import DatabaseError
from treadle.server.fsck.database import check_events, open_database
from treadle.server.fsck.jobs import check_jobs, put_jobs_aside
from treadle.server.fsck.models import (
    check_aliases,
    check_corpora,
    check_corpus_rows,
    check_models,
    check_version_owners,
)
from treadle.server.fsck.report import DAMAGED, Report, put_aside, remove_whole
from treadle.server.storage import files
from treadle.server.storage.data_dir import DATABASE_FILE
from treadle.server.storage.files import StoreError


def check(root: Path, repair: bool) -> Report:
    """Checks a data directory that no server uses.

    Args:
        root: The directory.
        repair: Whether to repair it as well.

    Returns:
        What was found.

    Raises:
        StoreError: It does not exist, a server uses it, or it cannot be read or written.
    """
    if not root.is_dir():
        raise StoreError(f"there is no data directory {root}; name another --data-dir")
    try:
        with files.lock(root):
            return _check(root, repair)
    except OSError as error:
        raise files.unusable(root, error) from error
    except DatabaseError as error:
        raise StoreError(str(error)) from error


def run(root: Path, repair: bool) -> int:
    """Checks a data directory and prints what was found.

    Args:
        root: The directory.
        repair: Whether to repair it as well.

    Returns:
        The exit code: 0 where nothing was found, else 1; 2 where it cannot be checked.
    """
    try:
        with files.shared_with_group(root):
            report = check(root, repair)
    except StoreError as error:
        print(f"treadle-server: {error}", file=sys.stderr)
        return 2
    for finding in report.findings:
        print(finding)
    count = len(report.findings)
    print(f"{root}: {count} {'finding' if count == 1 else 'findings'}")
    return 0 if report.clean else 1


def _check(root: Path, repair: bool) -> Report:
    report = Report(repair)
    _check_kinds(root, report)
    _check_tmp(root, report)
    check_models(root, report)
    corpora = check_corpora(root, report)
    database, rebuilt = open_database(root, report)
    if database is None:
        if not (root / DATABASE_FILE).exists():
            put_jobs_aside(root, report)
        return report
    try:
        check_events(report, database, root / DATABASE_FILE)
        check_aliases(root, report, database)
        check_version_owners(root, report, database)
        check_corpus_rows(root, report, database)
        check_jobs(root, report, database, corpora, rebuilt)
    finally:
        database.close()
    return report


def _check_kinds(root: Path, report: Report) -> None:
    """Checks that the top-level directories and files are no links and have the right kind.

    Raises:
        OSError: ELOOP: one of them is a link.
    """
    for name in (DAMAGED, "models", "jobs", "corpora"):
        place = root / name
        files.check_no_link(place)
        if place.exists() and not place.is_dir():
            action = f"moved to {DAMAGED}/" if name != DAMAGED else "renamed"
            aside = partial(put_aside, root, place, name)
            if name == DAMAGED:
                aside = partial(os.rename, place, root / f"{DAMAGED}-{secrets.token_hex(4)}")
            report.repair("it is not a directory", place, action, aside)
    tmp = root / "tmp"
    if tmp.is_symlink() or (tmp.exists() and not tmp.is_dir()):
        report.repair("it is not a directory", tmp, "removed", partial(remove_whole, tmp))
    database = root / DATABASE_FILE
    files.check_no_link(database)
    if database.exists() and not database.is_file():
        action = f"moved to {DAMAGED}/"
        report.repair(
            "it is not a file", database, action, partial(put_aside, root, database, "db")
        )


def _check_tmp(root: Path, report: Report) -> None:
    tmp = root / "tmp"
    for path in sorted(tmp.iterdir()) if tmp.is_dir() and not tmp.is_symlink() else []:
        what = "it was being written when the server died"
        report.repair(what, path, "removed", partial(remove_whole, path))
