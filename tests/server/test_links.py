"""Links in a data directory are not followed to write or to delete, and others see nothing."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from treadle.server.config import ServerConfig, SettingError
from treadle.server.errors import StatusError
from treadle.server.fsck.check import check, run
from treadle.server.storage import files
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.files import StoreError
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE
from treadle.server.storage.retention import RetentionPeriods, RetentionReport, delete_expired

from .harness import TEXT, Server, tiny_spec
from .samples import job_row, put_model, tiny_model

Start = Callable[..., Server]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory of somebody else's, with something in it."""
    place = tmp_path / "elsewhere"
    (place / "inner").mkdir(parents=True)
    (place / "file").write_text("precious")
    (place / "inner" / "file").write_text("precious")
    return place


def tree(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def open_and_close(root: Path) -> None:
    DataDir(root).close()


def test_a_link_in_place_of_tmp_is_removed_and_not_followed(
    tmp_path: Path, elsewhere: Path
) -> None:
    root = tmp_path / "data"
    before = tree(elsewhere)
    for clean in (open_and_close, lambda root: check(root, repair=True)):
        open_and_close(root)
        (root / "tmp").rmdir()
        (root / "tmp").symlink_to(elsewhere)
        clean(root)
        assert not (root / "tmp").is_symlink()
        assert tree(elsewhere) == before


@pytest.mark.parametrize("name", ["models", "jobs", "corpora", "lock", DATABASE_FILE, "damaged"])
def test_a_link_in_place_of_what_is_ours_is_refused(
    name: str, tmp_path: Path, elsewhere: Path
) -> None:
    root = tmp_path / "data"
    open_and_close(root)
    place = root / name
    if name != "damaged":
        files.remove(place)
    place.symlink_to(elsewhere / "file" if name in ("lock", DATABASE_FILE) else elsewhere)
    before = tree(elsewhere)
    if name != "damaged":
        with pytest.raises(StoreError, match=f"{name}: a link has this name"):
            DataDir(root)
    with pytest.raises(StoreError, match=f"{name}: a link has this name"):
        check(root, repair=True)
    assert tree(elsewhere) == before


def test_a_data_directory_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "volume")
    data_dir = DataDir(tmp_path / "data")
    put_model(data_dir, "m")
    data_dir.close()
    assert check(tmp_path / "data", repair=True).clean


def test_links_of_models_are_read_and_not_changed(tmp_path: Path, elsewhere: Path) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    (elsewhere / "1").mkdir()
    (elsewhere / "2").mkdir()
    for version in "12":
        tiny_model().save(elsewhere / version / MODEL_FILE)
    before = tree(elsewhere)
    (root / "models" / "linked").symlink_to(elsewhere)
    assert data_dir.models.describe(data_dir.models.find("linked")).sha256
    for change in (
        lambda: put_model(data_dir, "linked"),
        lambda: data_dir.models.delete("linked", 1),
    ):
        with pytest.raises(StatusError) as caught:
            change()
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    data_dir.close()
    (elsewhere / "2" / MODEL_FILE).write_bytes(b"damaged")
    before = tree(elsewhere)
    findings = [finding.what for finding in check(root, repair=True).findings]
    assert findings.count("a link leads to the model") == 2
    assert tree(elsewhere) == before
    assert HASH_FILE not in "".join(before)
    data_dir = DataDir(root)
    assert data_dir.models.delete("linked", None) == [1, 2]
    assert tree(elsewhere) == before
    data_dir.close()


def test_links_of_jobs_are_not_followed(tmp_path: Path, elsewhere: Path) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    data_dir.database.add_job(job_row("j", state="paused"))
    (elsewhere / "state.safetensors").write_bytes(b"no checkpoint")
    before = tree(elsewhere)
    for name in ("j", "orphan"):
        (root / "jobs" / name).symlink_to(elsewhere)
    os.utime(elsewhere, (0, 0))
    with pytest.raises(OSError, match="symbolic links"):
        data_dir.jobs.directory("j")
    assert (
        delete_expired(
            data_dir.database, data_dir.corpora, data_dir.jobs.root, RetentionPeriods(1, 1), 1e9
        )
        == RetentionReport()
    )
    data_dir.close()
    assert len(check(root, repair=True).findings) == 2
    assert tree(elsewhere) == before
    assert (root / "damaged" / "jobs" / "j").is_symlink()


def test_what_is_named_badly_keeps_nobody_from_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    good = put_model(data_dir, "good")
    for name in (b"\xff\xfe", b"two\nlines", b"x" * 200, b"empty"):
        for folder in ("models", "jobs", "corpora"):
            place = os.path.join(os.fsencode(root / folder), name)
            os.mkdir(place)
    for version in ("0", "-1", "01", "1e5", str(2**64), "1.0"):
        (root / "models" / "good" / version).mkdir()
    (root / "models" / "zero" / "1").mkdir(parents=True)
    (root / "models" / "zero" / "1" / MODEL_FILE).touch()
    (root / "models" / "round" / "1").mkdir(parents=True)
    (root / "models" / "round" / "1" / "again").symlink_to("../../round")
    os.mkfifo(root / "corpora" / ("ab" * 32))
    (root / "jobs" / "a-file").touch()
    (data_dir.jobs.directory("j") / "other.safetensors").touch()
    os.mkfifo(data_dir.jobs.directory("j") / "state.safetensors")
    data_dir.database.add_job(job_row("j", state="paused"))
    os.mkfifo(root / "models" / "round" / "1" / "model.safetensors")
    put_model(data_dir, "piped").path.with_name(HASH_FILE).unlink()
    os.mkfifo(root / "models" / "piped" / "1" / HASH_FILE)
    delete_expired(
        data_dir.database, data_dir.corpora, data_dir.jobs.root, RetentionPeriods(1, 1), 1e12
    )
    assert [model.name for model in data_dir.models.newest()] == ["good", "piped", "zero"]
    assert data_dir.models.describe(data_dir.models.find("piped")).sha256
    assert data_dir.models.versions("good") == [good.version]
    data_dir.close()
    capsys.readouterr()
    assert run(root, repair=True) == 1
    printed = capsys.readouterr().out.splitlines()
    assert int(printed[-1].split()[-2]) == len(printed) - 1  # a line a finding
    assert "\\udcff\\udcfe" in printed[-2] + "".join(printed)
    assert check(root, repair=True).clean
    data_dir = DataDir(root)
    assert data_dir.models.find("good") == good
    data_dir.close()


def test_files_where_directories_should_be_are_moved_away(tmp_path: Path) -> None:
    root = tmp_path / "data"
    open_and_close(root)
    for name in ("models", "jobs", "corpora", "tmp"):
        (root / name).rmdir()
        (root / name).write_text("a file")
    (root / DATABASE_FILE).unlink()
    (root / DATABASE_FILE).mkdir()
    (root / "damaged").write_text("a file")
    with pytest.raises(StoreError):
        DataDir(root)
    assert len(check(root, repair=False).findings) == 6
    assert len(check(root, repair=True).findings) == 6
    assert check(root, repair=True).clean
    open_and_close(root)
    assert (root / "damaged" / "models").read_text() == "a file"


def test_deep_trees_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 20, dir_fd=handle)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    assert files.remove(top)
    assert not top.exists()


def test_all_that_a_server_makes_is_closed_to_others(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir(mode=0o755)
    (root / "models").mkdir(mode=0o755)
    (root / "models").chmod(0o755)  # as an earlier server left it
    server = start()
    server.caller.trained(tiny_spec("m"), TEXT)
    for path in root.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_key_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    key.chmod(mode)
    with pytest.raises(SettingError, match=f"which others may write \\(mode {mode:04o}\\)"):
        ServerConfig(state_key_file=str(key)).state_key_bytes()


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o644])
def test_a_key_that_others_may_read_is_warned_of(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    key.chmod(mode)
    link = tmp_path / "link"  # as Kubernetes mounts secrets
    link.symlink_to(key)
    with caplog.at_level(logging.WARNING):
        assert ServerConfig(state_key_file=str(link)).state_key_bytes() == b"0123456789abcdef"
    assert ("may read the secret" in caplog.text) == (mode == 0o644)
