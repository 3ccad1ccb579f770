"""Who owns jobs, corpora and versions is stored with them, and lasts as long as they do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from treadle.server.failures import DatabaseError
from treadle.server.fsck.check import check
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.retention import (
    ORPHAN_S,
    RetentionPeriods,
    RetentionReport,
    apply_retention,
    delete_expired,
)
from treadle.server.storage.upload_files import UploadFiles

from .samples import job_row, put_model, tiny_model

FOREVER = RetentionPeriods(0, 0)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path / "data")
    yield data_dir
    data_dir.close()


def put(data_dir: DataDir, data: bytes) -> str:
    writer = data_dir.corpora.writer()
    writer.write(data)
    return writer.claim()[0]


def order(data_dir: DataDir, job: str, owner: str, sha256: str, **fields: Any) -> None:
    """Adds a job of an owner on a corpus of 3 bytes."""
    files = f'[{{"sha256": "{sha256}", "size": 3}}]'
    data_dir.database.add_job(job_row(job, owner=owner, files=files, **fields))


def claim(data_dir: DataDir, name: str, owner: str, version: int = 0) -> int:
    """Stores a model as a version of an owner; returns its size."""
    draft = data_dir.models.new_draft()
    tiny_model().save(draft / MODEL_FILE)
    return data_dir.models.claim(name, draft, version, owner).size_bytes


def test_a_corpus_belongs_to_each_owner_of_a_job_on_it(data_dir: DataDir) -> None:
    database = data_dir.database
    sha256 = put(data_dir, b"abc")
    other = put(data_dir, b"def")
    order(data_dir, "old", "", sha256)
    order(data_dir, "a1", "ann", sha256)
    order(data_dir, "a2", "ann", sha256, created_s=2.0)
    order(data_dir, "a3", "ann", other)
    order(data_dir, "b1", "bob", sha256)
    owned = [(sha256, "ann", 2.0), (sha256, "bob", 1.0), (other, "ann", 1.0)]
    assert database.corpus_owners() == sorted(owned)
    assert database.corpus_bytes("ann") == 6
    assert database.corpus_bytes("bob") == 3
    assert database.corpus_bytes("") == 0
    for owner, expected in (("ann", True), ("bob", False), ("eve", False), ("", False)):
        assert database.owns_corpus(owner, other) is expected
    assert [row.id for row in database.jobs(owner="ann")] == ["a2", "a3", "a1"]
    assert [row.id for row in database.jobs(owner="bob", model="m")] == ["b1"]
    assert database.jobs(owner="") == []  # what has no owner is in no list but that of all
    database.delete_job("b1")  # the corpus stays for the next job
    assert database.owns_corpus("bob", sha256)
    data_dir.corpora.remove(sha256)
    assert database.corpus_owners() == [(other, "ann", 1.0)]


def test_an_upload_finds_only_the_corpora_of_its_owner(data_dir: DataDir) -> None:
    sha256 = put(data_dir, b"abc")
    order(data_dir, "a", "ann", sha256)
    for owner, expected in (("ann", 3), ("bob", None), ("", None), (None, 3)):
        upload = UploadFiles(data_dir.corpora, owner=owner)
        assert upload.find(sha256) == expected
        upload.close()
    # What an upload brought itself it may name, whether others have it or not.
    upload = UploadFiles(data_dir.corpora, owner="bob")
    writer = upload.writer()
    writer.write(b"abc")
    writer.finish()
    assert upload.find(sha256) == 3
    upload.close()  # no job came of it
    assert not data_dir.database.owns_corpus("bob", sha256)
    assert data_dir.corpora.has(sha256)


def test_a_job_that_is_not_added_owns_nothing(data_dir: DataDir) -> None:
    first = put(data_dir, b"abc")
    second = put(data_dir, b"def")
    order(data_dir, "a", "ann", first, request_id="r")
    order(data_dir, "b", "ann", second, request_id="r")  # the job of the request id is "a"
    with suppress(DatabaseError):
        order(data_dir, "a", "bob", second)
    assert data_dir.database.corpus_owners() == [(first, "ann", 1.0)]


def expire(data_dir: DataDir, now_s: float) -> RetentionReport:
    periods = RetentionPeriods(0, 100)
    return delete_expired(
        data_dir.database, data_dir.corpora, data_dir.jobs.root, periods, now_s, most=9
    )


def test_an_owner_loses_an_unused_corpus_and_others_keep_it(data_dir: DataDir) -> None:
    database = data_dir.database
    sha256 = put(data_dir, b"abc")
    order(data_dir, "a", "ann", sha256, created_s=1000.0, state="succeeded")
    order(data_dir, "b", "bob", sha256, created_s=1500.0, state="succeeded")
    order(data_dir, "c", "cat", sha256, created_s=1000.0, state="paused")
    database.touch_corpus(sha256, 3, 1500.0)
    assert expire(data_dir, 1100.0).owners == 0
    assert expire(data_dir, 1550.0) == RetentionReport(owners=1)  # Cat's is in use
    assert database.corpus_owners() == [(sha256, "bob", 1500.0), (sha256, "cat", 1550.0)]
    assert data_dir.corpora.has(sha256)
    database.update_job("c", state="failed")
    report = expire(data_dir, 1700.0)
    assert report.corpora == (sha256,)
    assert database.corpus_owners() == []


def test_the_owner_of_a_version_goes_with_it(data_dir: DataDir) -> None:
    database = data_dir.database
    size = claim(data_dir, "m", "ann")
    claim(data_dir, "m", "ann")
    claim(data_dir, "m", "bob")
    claim(data_dir, "n", "")
    owners = [("m", 1, "ann"), ("m", 2, "ann"), ("m", 3, "bob")]
    assert [row[:3] for row in database.version_owners()] == owners
    assert database.model_bytes("ann") == 2 * size
    assert database.model_bytes("bob") == size
    data_dir.models.delete("m", 1)
    assert database.model_bytes("ann") == size
    data_dir.models.delete("m", None)
    assert database.version_owners() == []
    database.set_version_owner("m", 1, "bob", 9, 1.0)  # as a full disk may leave it
    claim(data_dir, "m", "")  # of the same number, and nobody's
    assert database.model_bytes("bob") == 0


def test_a_version_is_never_there_without_its_owner(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(source: object, target: object) -> None:
        raise OSError("the power is lost")

    put_model(data_dir, "m")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lost)
        with suppress(OSError):
            claim(data_dir, "m", "ann", 2)
    assert [row[:3] for row in data_dir.database.version_owners()] == [("m", 2, "ann")]
    assert data_dir.models.versions("m") == [1]
    now_s = data_dir.trusted_clock.now()
    assert now_s is not None
    assert apply_retention(data_dir, FOREVER).versions == 0  # it may come yet
    monkeypatch.setattr(data_dir.trusted_clock, "now", lambda: now_s + ORPHAN_S + 60)
    assert apply_retention(data_dir, FOREVER).versions == 1
    assert data_dir.database.version_owners() == []
    claim(data_dir, "m", "ann", 2)
    assert apply_retention(data_dir, FOREVER).versions == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole data directory with owners, which no server uses."""
    data_dir = DataDir(tmp_path / "data")
    sha256 = put(data_dir, b"abc")
    order(data_dir, "a", "ann", sha256, state="failed", spec=b"")
    claim(data_dir, "m", "ann")
    data_dir.close()
    assert check(tmp_path / "data", repair=False).clean
    return tmp_path / "data"


def change(root: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(root / DATABASE_FILE) as connection:
        connection.execute(statement, values)
    connection.close()


def found(root: Path, *, repair: bool) -> str:
    """Returns all findings of a check."""
    return "\n".join(map(str, check(root, repair=repair).findings))


def owned(root: Path) -> tuple[int, int, list[str]]:
    """Returns how many corpora and versions have an owner, and the owners of the jobs."""
    data_dir = DataDir(root)
    database = data_dir.database
    count = len(database.corpus_owners()), len(database.version_owners())
    jobs = [row.owner for row in database.jobs()]
    data_dir.close()
    return *count, jobs


@pytest.mark.parametrize(
    ("statement", "fault", "left"),
    [
        ("UPDATE corpus_owners SET size = -1", "the owner of corpus", (0, 1, ["ann"])),
        ("UPDATE corpus_owners SET owner = x'ff'", "the owner of corpus", (0, 1, ["ann"])),
        ("UPDATE corpus_owners SET owner = ''", "the owner of corpus", (0, 1, ["ann"])),
        ("UPDATE version_owners SET size = 'x'", "the owner of version 1", (1, 0, ["ann"])),
        ("UPDATE version_owners SET model = '../m'", "the owner of version 1", (1, 0, ["ann"])),
        # A job whose owner cannot be read is one of the admins.
        ("UPDATE jobs SET owner = x'ff'", "owner cannot be read", (1, 1, [""])),
    ],
)
def test_a_damaged_owner_is_found_and_forgotten(
    root: Path, statement: str, fault: str, left: tuple[int, int, list[str]]
) -> None:
    change(root, statement)
    assert fault in found(root, repair=False)
    check(root, repair=True)
    assert check(root, repair=True).clean
    assert owned(root) == left


def test_a_job_whose_owner_cannot_be_read_is_shown_to_admins_only(root: Path) -> None:
    change(root, "UPDATE jobs SET owner = x'ff'")
    data_dir = DataDir(root)
    row = data_dir.database.job("a")
    assert row is not None
    assert row.owner == ""
    assert row.damage
    data_dir.close()


def test_owners_of_what_is_gone_are_found_and_forgotten(root: Path) -> None:
    for path in (root / "corpora").iterdir():
        path.unlink()
    change(root, "DELETE FROM corpora")
    (root / "models" / "m" / "1" / MODEL_FILE).unlink()
    report = found(root, repair=False)
    assert "the database knows this corpus, but it does not exist" in report
    assert "version 1, which ann made, does not exist" in report
    check(root, repair=True)
    assert check(root, repair=True).clean
    assert owned(root) == (0, 0, ["ann"])
