"""The cache of compiled kernels is in no folder that others can write, and leaves none behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.kernels import cache_folder
from treadle.kernels.cache_folder import choose_cache_folder, remove_temporary_folders

PATIENCE_S = 120.0
MODULE = Path(cache_folder.__file__)

HOLD = """
import runpy, sys, tempfile
tempfile.tempdir = {tmp!r}
module = runpy.run_path({module!r})
print(module["choose_cache_folder"]("name", "/proc/none").path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of the test's own, and an environment that it may change."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(cache_folder, "_made", [])
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    yield folder
    remove_temporary_folders()
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("variable", "value", "below"),
    [
        ("XDG_CACHE_HOME", "{}", "treadle/kernels"),
        ("HOME", "{}", ".cache/treadle/kernels"),
    ],
)
def test_the_folder_is_the_users(
    variable: str, value: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    monkeypatch.setenv(variable, value.format(tmp_path))
    folder = choose_cache_folder("name")
    assert (folder.path, folder.reason) == (tmp_path / below / "name", "")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_folder_that_is_named_wins(tmp_path: Path, temporary: Path) -> None:
    folder = choose_cache_folder("name", str(tmp_path / "named" / "deep"))
    assert (folder.path, folder.reason) == (tmp_path / "named" / "deep" / "name", "")
    assert os.environ["NUMBA_CACHE_DIR"] == ""
    assert not any(temporary.iterdir())


def test_a_user_without_a_home_shares_one_with_its_children(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    folder = choose_cache_folder("name")
    assert folder.path.parent.parent == temporary
    assert "no home" in folder.reason
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700
    # A child process reads the variable, and makes no folder of its own.
    child = choose_cache_folder("name", os.environ["NUMBA_CACHE_DIR"])
    assert (child.path, child.reason) == (folder.path, "")
    assert len(list(temporary.iterdir())) == 1


def test_kernels_that_lie_where_nothing_can_be_written_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "base" / "name" / "kernels_1"
    inner.mkdir(parents=True)
    (inner / "kernel.nbc").write_bytes(b"code")
    (inner / "kernel.nbc").chmod(0o444)
    for path in (inner, inner.parent):
        path.chmod(0o555)

    def refuse(**_: object) -> None:  # permissions stop nobody who runs the tests as root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    folder = choose_cache_folder("name", str(tmp_path / "base"))
    assert folder.path != inner.parent
    assert "cannot be written (Permission denied)" in folder.reason
    copy = folder.path / "kernels_1" / "kernel.nbc"
    assert copy.read_bytes() == b"code"
    copy.write_bytes(b"newer")
    (copy.parent / "other.nbc").write_bytes(b"")


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_what_others_can_write_is_neither_used_nor_copied(mode: int, tmp_path: Path) -> None:
    planted = tmp_path / "name"
    planted.mkdir()
    (planted / "kernel.nbc").write_bytes(b"planted")
    planted.chmod(mode)
    folder = choose_cache_folder("name", str(tmp_path))
    assert folder.path != planted
    assert "other users can write" in folder.reason
    assert not any(folder.path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    ("user", "group", "mode", "used"),
    [
        (12345, 0, 0o755, False),  # another user's
        (0, 12345, 0o775, False),  # another group's as well
        (0, 0, 0o775, True),  # as in the image
        (0, 12345, 0o755, True),
    ],
)
def test_a_folder_of_another_user_is_not_used(
    user: int, group: int, mode: int, used: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "name"
    folder.mkdir()
    os.chown(folder, user, group)
    folder.chmod(mode)
    assert (choose_cache_folder("name", str(tmp_path)).path == folder) is used


def test_a_file_in_the_way_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for base in (tmp_path / "file", tmp_path / "file" / "below"):
        folder = choose_cache_folder("name", str(base))
        assert "cannot be written" in folder.reason
        assert not any(folder.path.iterdir())
    (tmp_path / "name").write_text("")
    assert choose_cache_folder("name", str(tmp_path)).reason


def holder(temporary: Path) -> subprocess.Popen[str]:
    """Starts a process that holds a temporary folder, and prints it."""
    script = HOLD.format(tmp=str(temporary), module=str(MODULE))
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(temporary: Path) -> None:
    with holder(temporary) as killed, holder(temporary) as living:
        left, used = (Path(first_line(each)) for each in (killed, living))
        killed.send_signal(signal.SIGKILL)
        killed.wait(PATIENCE_S)
        assert left.exists()
        (temporary / "treadle-kernels-foreign").mkdir()  # without a lock: nobody knows whose
        own = choose_cache_folder("name", "/proc/none").path
        assert not left.parent.exists()
        assert used.exists()
        assert own.exists()
        living.communicate(timeout=PATIENCE_S)
        assert not used.parent.exists()
        (temporary / "treadle-kernels-foreign").rmdir()


def test_a_link_that_another_user_laid_is_not_followed(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_text("")
    (temporary / "treadle-kernels-link").symlink_to(precious)
    choose_cache_folder("name", "/proc/none")
    assert (precious / "lock").exists()
    (temporary / "treadle-kernels-link").unlink()


def test_no_temporary_folder_either_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(FileNotFoundError):
        choose_cache_folder("name", "/proc/none")
