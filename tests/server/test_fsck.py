from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2, status_pb2  # type: ignore[import-untyped]

from treadle.model.training import checkpoint
from treadle.server.fsck.check import check, run
from treadle.server.storage import model_version
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.database import Database
from treadle.server.storage.files import StoreError
from treadle.server.storage.job_files import INIT_FILE
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE
from treadle.server.storage.schema import ADDED, SCHEMA_VERSION
from treadle.v1 import sequence_pb2 as pb

from .samples import has_recorded_hash, job_row, put_model, tiny_model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole data directory: two models, three versions, a corpus, a job in each state."""
    root = tmp_path / "data"
    data_dir = DataDir(root)
    for name in ("m", "m", "m", "n"):
        put_model(data_dir, name)
    data_dir.models.delete("m", 3)
    data_dir.models.set_alias("m", "prod", 1)
    writer = data_dir.corpora.writer()
    writer.write(b"abcabc")
    corpus, _ = writer.claim()
    for state in ("queued", "running", "paused", "succeeded", "failed", "cancelled"):
        files = f'[{{"sha256": "{corpus}"}}]'
        data_dir.database.add_job(job_row(state, state=state, files=files))
        weights = {"weights": np.arange(9, dtype=np.float32)}
        kept = checkpoint.Checkpoint({"steps": 3}, weights)
        checkpoint.write(data_dir.jobs.directory(state) / "state.safetensors", kept)
    data_dir.close()
    return root


CORPUS = hashlib.sha256(b"abcabc").hexdigest()


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the lock and the database, with what is in it; and empty directories."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
        if not path.name.startswith(("lock", DATABASE_FILE))
        and (path.is_file() or not any(path.iterdir()))
    }


def repaired(root: Path, *words: str, left: bool = False) -> None:
    """Checks that one finding says all the words, that only a repair changes anything, and that
    nothing, or just as much, is found after it."""
    before = tree(root)
    (found,) = check(root, repair=False).findings
    assert tree(root) == before
    (done,) = check(root, repair=True).findings
    for word in words:
        assert word in str(found)
        assert word in str(done)
    assert ("with --repair" in str(found)) is not left
    assert "with --repair" not in str(done)
    assert check(root, repair=True).clean is not left


def test_nothing_is_found_in_what_is_whole(root: Path) -> None:
    before = tree(root)
    assert check(root, repair=False).clean
    assert check(root, repair=True).clean
    assert tree(root) == before


def test_an_empty_and_an_old_directory_are_whole(tmp_path: Path, root: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty", repair=True).clean
    for name in ("jobs", "corpora"):
        shutil.rmtree(root / name)
    (root / DATABASE_FILE).unlink()
    assert check(root, repair=True).clean
    assert not (root / DATABASE_FILE).exists()


def test_a_directory_in_use_or_missing_is_not_checked(root: Path, tmp_path: Path) -> None:
    data_dir = DataDir(root)
    command = [sys.executable, "-m", "treadle.server", "--fsck", "--data-dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "in use by another server" in done.stderr
    data_dir.close()
    with pytest.raises(StoreError, match="no data directory"):
        check(tmp_path / "missing", repair=True)


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_damaged_versions_are_moved_away(root: Path, damage: str, newest: bool) -> None:
    version = 2 if newest else 1
    shutil.rmtree(root / "models" / "m" / "3")
    place = root / "models" / "m" / str(version)
    data = bytearray((place / MODEL_FILE).read_bytes())
    if damage == "flipped":  # in the weights, so that only the hash shows it
        data[-5] ^= 1
    elif damage == "cut":
        del data[-1:]
    else:
        del data[:]
    (place / MODEL_FILE).write_bytes(data)
    if damage == "gone":
        (place / MODEL_FILE).unlink()
    data_dir = DataDir(root)
    data_dir.models.set_alias("m", "prod", 3 - version)
    data_dir.close()
    repaired(root, f"models/m/{version}", f"moved to damaged/m/{version}")
    moved = root / "damaged" / "m" / str(version)
    assert sorted(path.name for path in moved.iterdir()) == sorted(
        [HASH_FILE] if damage == "gone" else [HASH_FILE, MODEL_FILE]
    )
    if damage != "gone":
        assert (moved / MODEL_FILE).read_bytes() == data
    data_dir = DataDir(root)
    assert data_dir.models.versions("m") == [3 - version]
    assert put_model(data_dir, "m").version == 3  # the number does not come again
    assert has_recorded_hash(data_dir.models.find("m", 3 - version))
    data_dir.close()


def test_what_is_damaged_twice_is_kept_twice(root: Path) -> None:
    for data in (b"one", b"two"):
        (root / "models" / "n" / "1").mkdir(exist_ok=True)
        (root / "models" / "n" / "1" / MODEL_FILE).write_bytes(data)
        assert len(check(root, repair=True).findings) == 1
    assert (root / "damaged" / "n" / "1" / MODEL_FILE).read_bytes() == b"one"
    assert (root / "damaged" / "n" / "1.2" / MODEL_FILE).read_bytes() == b"two"


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"12345  model.safetensors\n"])
def test_missing_hashes_are_written(root: Path, content: bytes | None) -> None:
    path = root / "models" / "m" / "1" / HASH_FILE
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    repaired(root, HASH_FILE, "written")
    assert path.read_bytes() == before


def test_a_damaged_hash_puts_its_model_aside(root: Path) -> None:
    (root / "models" / "n" / "1" / HASH_FILE).write_text(f"{'0' * 64}  {MODEL_FILE}\n")
    repaired(root, "does not have the hash")


def test_leftovers_and_empty_versions_are_removed(root: Path) -> None:
    (root / "tmp" / "model-x").mkdir(parents=True)
    (root / "tmp" / "model-x" / MODEL_FILE).write_bytes(b"half")
    repaired(root, "model-x", "removed")
    (root / "models" / "m" / "3").rmdir()
    (root / "models" / "m" / "4").mkdir()
    (root / "models" / "m" / "7").mkdir()
    repaired(root, "models/m/4", "removed")
    assert (root / "models" / "m" / "7").is_dir()


def test_aliases_that_lead_nowhere_are_removed(root: Path) -> None:
    shutil.rmtree(root / "models" / "m" / "1")
    repaired(root, "alias prod", "version 1", "removed")
    data_dir = DataDir(root)
    assert data_dir.database.aliases("m") == {}
    data_dir.close()


@pytest.mark.parametrize("damaged", [False, True])
def test_jobs_whose_corpus_is_lost_are_marked_as_failed(root: Path, damaged: bool) -> None:
    path = root / "corpora" / CORPUS
    if damaged:
        path.write_bytes(b"abcabd")
    else:
        path.unlink()
    found = [str(finding) for finding in check(root, repair=False).findings]
    done = [str(finding) for finding in check(root, repair=True).findings]
    # Unless it is repaired, a damaged corpus still is where the database says.
    assert len(found) == len(done) - damaged == 4
    for state in ("queued", "running", "paused"):
        assert sum(f"job {state} cannot continue" in text for text in done) == 1
    assert check(root, repair=True).clean
    assert (root / "damaged" / "corpora" / CORPUS).exists() == damaged
    database = Database(root / DATABASE_FILE)
    for state in ("queued", "running", "paused"):
        row = database.job(state)
        assert row is not None
        assert (row.state, row.error_code) == ("failed", code_pb2.DATA_LOSS)
        assert CORPUS in row.reason
        assert status_pb2.Status.FromString(row.error).message == row.reason
        assert row.ended_s is not None
        ((number, _, data),) = database.events(state, 0)
        event = pb.JobEvent.FromString(data)
        assert (number, event.state.state) == (1, pb.JOB_STATE_FAILED)
        assert event.state.reason == row.reason
    for state in ("succeeded", "cancelled"):
        row = database.job(state)
        assert row is not None
        assert (row.state, row.last_sequence) == (state, 0)
    database.close()


def test_jobs_whose_corpus_cannot_be_read_just_now_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model_version.file_hash

    def failing(path: Path) -> str:
        if path.name == CORPUS:
            raise OSError(errno.EIO, "Input/output error")
        return original(path)

    monkeypatch.setattr(model_version, "file_hash", failing)
    repaired(root, "the corpus cannot be read", "check the permissions and the disk", left=True)
    monkeypatch.undo()
    assert check(root, repair=True).clean
    database = Database(root / DATABASE_FILE)
    assert database.corpora_in_use() == {CORPUS}
    database.close()


@pytest.mark.parametrize("change", [{"files": "{"}, {"files": "[1]"}, {"init_from": "m@prod"}])
def test_jobs_that_cannot_go_on_are_marked_as_failed(root: Path, change: dict[str, Any]) -> None:
    database = Database(root / DATABASE_FILE)
    database.update_job("paused", **change)
    database.close()
    repaired(root, "job paused", "marked as failed")


def test_a_job_that_has_its_first_model_goes_on(root: Path) -> None:
    database = Database(root / DATABASE_FILE)
    database.update_job("paused", init_from="m@prod")
    database.close()
    first = root / "jobs" / "paused" / INIT_FILE
    tiny_model().save(first)
    assert check(root, repair=True).clean
    first.write_bytes(first.read_bytes()[:-1])
    done = [str(finding) for finding in check(root, repair=True).findings]
    assert len(done) == 2  # the job, and the file
    assert "job paused cannot continue" in done[0]
    assert check(root, repair=True).clean


def test_directories_without_a_job_are_removed(root: Path) -> None:
    (root / "jobs" / "ghost").mkdir()
    (root / "jobs" / "ghost" / "state.safetensors").write_bytes(b"state")
    repaired(root, "jobs/ghost", "removed")
    assert not (root / "jobs" / "ghost").exists()
    assert (root / "jobs" / "paused").exists()


@pytest.mark.parametrize("previous", [b"", b"damaged too", None])
def test_damaged_checkpoints_give_way_to_the_one_before(root: Path, previous: bytes | None) -> None:
    path = root / "jobs" / "running" / "state.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-3])
    before = path.with_name(path.name + ".previous")
    if previous is not None:
        before.write_bytes(previous or good)
    repaired(root, "checkpoint of job running", "moved to damaged/jobs/running")
    aside = root / "damaged" / "jobs" / "running" / "state.safetensors"
    assert aside.read_bytes() == good[:-3]
    if previous == b"":
        assert path.read_bytes() == good
        assert not before.exists()
    else:
        assert not path.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = root / "jobs" / "running" / "state.safetensors"
    file_hash = model_version.file_hash

    def unreadable(file: Path) -> str:
        if file == path:
            raise OSError(number, os.strerror(number), str(file))
        return file_hash(file)

    monkeypatch.setattr(model_version, "file_hash", unreadable)
    (finding,) = check(root, repair=True).findings
    assert finding.where == path
    assert "checkpoint of job running cannot be read" in finding.what
    assert finding.action == "check the permissions and the disk"
    assert path.exists()
    monkeypatch.undo()
    assert check(root, repair=True).clean


@pytest.mark.parametrize("damage", ["random", "zeros", "cut", "text"])
def test_a_database_that_is_lost_is_moved_away_and_models_work(root: Path, damage: str) -> None:
    path = root / DATABASE_FILE
    data = bytearray(path.read_bytes())
    if damage == "random":
        data = bytearray(random.Random(1).randbytes(len(data)))
    elif damage == "zeros":
        data = bytearray(len(data))
    elif damage == "cut":
        del data[4096 + 17 :]
    else:
        data = bytearray(b"this is a text and no database\n" * 500)
    path.write_bytes(data)
    (found,) = check(root, repair=False).findings
    assert "the database is damaged" in str(found)
    assert path.read_bytes() == data
    done = check(root, repair=True).findings
    assert [finding.where.name for finding in done[:2]] == [DATABASE_FILE, "cancelled"]
    assert len(done) == 1 + 6  # it and its jobs' directories
    assert check(root, repair=True).clean
    assert (root / "damaged" / DATABASE_FILE).read_bytes() == data
    assert (root / "damaged" / "jobs" / "paused" / "state.safetensors").exists()
    data_dir = DataDir(root)
    assert data_dir.models.versions("m") == [1, 2]
    assert data_dir.models.find("m").version == 2
    assert put_model(data_dir, "m").version == 4
    assert data_dir.database.jobs() == []
    data_dir.close()
    assert check(root, repair=True).clean


def test_damaged_indexes_cost_no_row(root: Path) -> None:
    path = root / DATABASE_FILE
    connection = sqlite3.connect(path)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_created'"
    ).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    # An index page that is whole and has no rows.
    begin = (page - 1) * size
    data[begin + 3 : begin + 7] = bytes(2) + size.to_bytes(2, "big")
    path.write_bytes(data)
    (found,) = check(root, repair=False).findings
    assert "the database is damaged" in str(found)
    (done,) = check(root, repair=True).findings
    assert "rebuilt from what can be read (6 jobs, 0 events, 1 aliases, 1 corpora)" in str(done)
    assert (root / "damaged" / DATABASE_FILE).read_bytes() == data
    assert check(root, repair=True).clean
    database = Database(path)
    assert len(database.jobs()) == 6
    database.close()


def test_an_older_database_is_upgraded_only_by_repair(root: Path) -> None:
    path = root / DATABASE_FILE

    def version() -> int:
        connection = sqlite3.connect(path)
        (number,) = connection.execute("PRAGMA user_version").fetchone()
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(jobs)")]
        connection.close()
        assert ("init_from_version" in columns) == (number > 1)
        return int(number)

    connection = sqlite3.connect(path)
    for name in ("jobs_request", "jobs_owner"):
        connection.execute(f"DROP INDEX {name}")
    connection.execute("CREATE INDEX jobs_request ON jobs (request_id)")
    for name in ("corpus_owners", "version_owners", "files", "versions", "replicas", "duties"):
        connection.execute(f"DROP TABLE {name}")
    for name in ADDED:
        connection.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    assert check(root, repair=False).clean
    assert version() == 1
    assert check(root, repair=True).clean
    assert version() == SCHEMA_VERSION


def test_a_newer_database_is_left_alone(root: Path) -> None:
    connection = sqlite3.connect(root / DATABASE_FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (root / DATABASE_FILE).read_bytes()
    with pytest.raises(StoreError, match="use a newer Treadle"):
        check(root, repair=True)
    assert (root / DATABASE_FILE).read_bytes() == before


def test_everything_at_once_cut_off_and_run_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "models" / "n" / "1" / MODEL_FILE).write_bytes(b"x")
    (root / "models" / "m" / "1" / MODEL_FILE).write_bytes(b"x")
    (root / "corpora" / CORPUS).write_bytes(b"x")
    (root / "jobs" / "running" / "state.safetensors").write_bytes(b"x")
    (root / "jobs" / "ghost").mkdir()
    (root / "tmp" / "left").write_bytes(b"x")
    renamed = os.rename
    allowed = [0]

    def dying(*arguments: Any) -> None:
        if not allowed[0]:
            raise KeyboardInterrupt
        allowed[0] -= 1
        renamed(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying)
        for count in (0, 1, 1):
            allowed[0] = count
            with pytest.raises(KeyboardInterrupt):
                check(root, repair=True)
    assert not check(root, repair=True).clean
    assert check(root, repair=True).clean
    data_dir = DataDir(root)
    assert data_dir.models.versions("m") == [2]
    data_dir.close()


def test_a_repair_that_a_full_disk_stops_says_so_and_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "models" / "n" / "1" / MODEL_FILE).write_bytes(b"x")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        (finding,) = check(root, repair=True).findings
    assert "it could not be moved" in str(finding)
    assert "No space left" in str(finding)
    assert (root / "models" / "n" / "1" / MODEL_FILE).read_bytes() == b"x"
    repaired(root, "models/n/1")


def test_exit_codes_and_what_is_printed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, repair=False) == 0
    assert capsys.readouterr().out == f"{root}: 0 findings\n"
    (root / "models" / "n" / "1" / MODEL_FILE).write_bytes(b"x")
    for repair in (False, True):
        assert run(root, repair) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{root / 'models' / 'n' / '1'}: the model is damaged")
        assert lines[1] == f"{root}: 1 finding"
    assert run(root, repair=False) == 0
    assert run(tmp_path / "missing", repair=False) == 2
    assert "no data directory" in capsys.readouterr().err


def test_the_command_checks_and_repairs(root: Path) -> None:
    (root / "models" / "n" / "1" / MODEL_FILE).write_bytes(b"x")
    command = [sys.executable, "-m", "treadle.server", "--data-dir", str(root)]

    def ended(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *flags], capture_output=True, text=True, check=False)

    done = [ended("--fsck"), ended("--fsck", "--repair"), ended("--fsck")]
    assert [one.returncode for one in done] == [1, 1, 0]
    assert "with --repair it is moved to damaged/n/1" in done[0].stdout
    wrong = ended("--repair")
    assert wrong.returncode == 2
    assert "--repair goes with --fsck" in wrong.stderr


def test_a_state_whose_numbers_changed_is_found(root: Path) -> None:
    path = root / "jobs" / "paused" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # one bit of one number
    path.write_bytes(data)
    (finding,) = check(root, repair=False).findings
    assert finding.where == path
    assert "checkpoint of job paused is damaged" in finding.what
